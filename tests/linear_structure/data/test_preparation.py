"""Pictures of any kind become images that closed forms and numpy give, and one zip, or a reason."""

import io
import json
import struct
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from builders import png_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from linear_structure import get_parameters
from linear_structure.data import pictures, preparation
from linear_structure.data.datasets import load
from linear_structure.data.preparation import Form, formed, looking_at
from linear_structure.system import files
from linear_structure.system.errors import UsageError, run_command

ROOT = Path(__file__).resolve().parents[3]
RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SAME = Form(size=8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    note = Image.Exif()
    note[0x0112] = orientation
    return note


def in_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def pixels_of(content: bytes, form: Form = SAME) -> np.ndarray:
    return formed(content, form)[0].astype(int)


# What is done to one picture


def test_grey_bits_and_palettes_keep_their_pixels() -> None:
    palette = Image.fromarray(RGB).convert("P")
    bits = Image.fromarray(GREY).convert("1")
    for image, expected in (
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), in_rgb(GREY)),
        (palette, np.asarray(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]),
        (bits, in_rgb(np.asarray(bits) * 255)),
    ):
        assert np.array_equal(pixels_of(encoded(image)), expected)


@pytest.mark.parametrize("background", [(255, 255, 255), (9, 90, 200)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(mode: str, background: tuple[int, int, int]) -> None:
    alpha = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colour = in_rgb(GREY) if mode == "LA" else RGB
    if mode == "P":  # one entry is seen through
        image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
        content = encoded(image, transparency=7)
        colour, alpha = np.asarray(image.convert("RGB")), np.full((8, 8), 255)
        alpha[0, 7] = 0
    else:
        content = encoded(np.dstack([GREY if mode == "LA" else RGB, alpha]))
    share = alpha[..., None] / 255
    expected = share * colour + (1 - share) * np.array(background)
    assert abs(pixels_of(content, Form(8, background=background)) - expected).max() <= 1
    assert any("transparent" in text for text in formed(content, SAME)[1])


def test_cmyk_is_the_product_of_its_inks() -> None:
    inks = np.random.default_rng(1).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    content = encoded(Image.fromarray(inks, "CMYK"), "TIFF")
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert abs(pixels_of(content) - expected).max() <= 1
    assert formed(content, SAME)[1] == ["CMYK to RGB"]


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_camera_s_note_is_followed(orientation: int) -> None:
    wide = np.concatenate([RGB, RGB // 2], 1)
    shown = TURNS[orientation](wide)
    (top, left), (height, width) = [(n - 8) // 2 for n in shown.shape[:2]], (8, 8)
    pixels, done = formed(encoded(wide, exif=turned(orientation)), SAME)
    assert np.array_equal(pixels, shown[top : top + height, left : left + width])
    assert ("turned as EXIF says" in done) == (orientation > 1)


@pytest.mark.parametrize("damage", [b"XX", b"\xff" * 12])
def test_a_damaged_note_turns_nothing(damage: bytes) -> None:
    content = encoded(RGB, "JPEG", exif=turned(6))
    start = content.index(b"Exif\0\0") + 6
    content = content[:start] + damage + content[start + len(damage) :]
    assert np.array_equal(pixels_of(content), pixels_of(encoded(RGB, "JPEG")))


def test_of_16_bits_the_upper_8_are_kept_whatever_the_channels() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1023 + 300
    for content in (
        encoded(deep),
        encoded(deep, "TIFF"),
        b"P5 8 8 65535\n" + deep.astype(">u2").tobytes(),
    ):
        pixels, done = formed(content, SAME)
        assert np.array_equal(pixels, in_rgb(deep >> 8)) and done == ["16 bits scaled to 8"]
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        content = builders.deep_png(kind, channels)
        assert "16 bits scaled to 8" in formed(content, SAME)[1]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_pages_the_first_is_taken(kind: str) -> None:
    pages = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (250, 9, 99)]
    content = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
    pixels, done = formed(content, SAME)
    assert abs(pixels.astype(int) - np.array([250, 0, 0])).max() <= 8  # WEBP loses a little
    assert "first of several pages" in done


def test_what_becomes_smaller_is_the_mean_over_areas() -> None:
    means = RGB.astype(float).reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert abs(pixels_of(encoded(RGB), Form(4)) - means).max() <= 1
    whole = pixels_of(encoded(RGB[:, :4]), Form(4, crop="none"))
    halves = RGB[:, :4].astype(float).reshape(4, 2, 4, 3).mean(1)
    assert abs(whole - halves).max() <= 1
    assert np.array_equal(pixels_of(encoded(RGB[:, 1:5]), Form(4)), RGB[2:6, 1:5])
    grown = pixels_of(encoded(np.full((2, 3), 77, np.uint8)), SAME)
    assert (grown == 77).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello", "not an image"),
        (b"", "empty"),
        (encoded(RGB)[:90], "cut short"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "Pillow mode F"),
        (encoded(Image.new("I", (8, 8)), "TIFF"), "Pillow mode I,"),
        (encoded(Image.new("LAB", (8, 8)), "TIFF"), "Pillow mode LAB"),
    ],
)
def test_what_cannot_be_used_has_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        formed(content, SAME)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_images_of_too_many_pixels_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A few hundred kilobytes can stand for gigabytes; of several pages the first one counts."""
    assert 12_000 * 9_000 > pictures.PIXEL_LIMIT > 9_248 * 6_936  # of telephones: whole, binned
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 63)
    pages = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if kind == "GIF" else {}
    content = encoded(Image.fromarray(RGB), kind, **pages)
    with pytest.raises(UsageError, match="too large: 8 x 8 pixels, and at most 63 are decoded"):
        formed(content, SAME)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match="8 x 8 pixels, and at most 63"):
        load(tmp_path)
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 64)
    formed(content, SAME)


def test_a_value_of_16_bits_that_stands_for_transparent_shows_the_background() -> None:
    grey = np.array([[[515], [513], [40_000]]])  # two of one upper byte
    red = Form(size=3, crop="none", background=(255, 0, 0))
    pixels, done = formed(png_of(0, np.repeat(grey, 3, 0), clear=[515]), red)
    assert np.array_equal(pixels[0], [[255, 0, 0], [2, 2, 2], [156, 156, 156]])
    assert done == ["16 bits scaled to 8", "transparent: laid on #ff0000"]
    coloured = np.array([[[515, 9, 300], [9000, 9, 300], [0, 0, 0]]])
    pixels, _ = formed(png_of(2, np.repeat(coloured, 3, 0), clear=[515, 9, 300]), red)
    assert np.array_equal(pixels[0], [[255, 0, 0], [35, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grey_of_few_bits_that_stands_for_transparent_is_seen_through(
    tmp_path: Path, bits: int
) -> None:
    values = np.arange(64).reshape(8, 8) % 2**bits
    content = png_of(0, values[..., None], clear=[1], bits=bits)
    expected = in_rgb(values * 255 // (2**bits - 1))
    expected[values == 1] = 255, 0, 0
    pixels, done = formed(content, Form(8, background=(255, 0, 0)))
    assert np.array_equal(pixels, expected) and done == ["transparent: laid on #ff0000"]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match="transparent pixels"):
        load(tmp_path)


def tiff(bits: int, content: bytes, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of 8 x 8, without compression."""
    said = {256: 8, 257: 8, 258: bits, 259: 1, 262: 1 - white_is_zero, 273: 8, 277: 1, 278: 8}
    tags = b"".join(struct.pack("<HHII", *each) for each in ((k, 4, 1, v) for k, v in said.items()))
    end = struct.pack("<HHII", 279, 4, 1, len(content)) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    return head + content + struct.pack("<H", len(said) + 1) + tags + end


def test_tiffs_whose_greys_pillow_misreads_are_left_out_and_their_kin_are_read() -> None:
    dark = in_rgb(np.arange(64, dtype=np.uint8).reshape(8, 8))
    deep = (np.arange(64, dtype="<u2") << 8).tobytes()
    assert np.array_equal(pixels_of(tiff(16, deep)), dark)
    assert np.array_equal(pixels_of(tiff(8, bytes(range(64)))), dark)
    assert np.array_equal(pixels_of(tiff(8, bytes(range(64)), white_is_zero=True)), 255 - dark)
    for content in (tiff(12, bytes(96)), tiff(16, deep, white_is_zero=True)):
        with pytest.raises(UsageError, match="12 bits, or of 16 whose 0 is white"):
            formed(content, SAME)


def test_too_little_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(preparation, "_squared", fail)
    with pytest.raises(UsageError, match="it takes more memory than there is"):
        formed(encoded(RGB), SAME)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]),
    noise=st.dictionaries(st.integers(8, 10_000), st.integers(0, 255), min_size=1, max_size=4),
)
def test_noise_in_a_picture_is_pixels_or_one_sentence(kind: str, noise: dict[int, int]) -> None:
    data = bytearray(encoded(RGB, kind, exif=turned(6)))
    for place, value in noise.items():
        data[8 + place % (len(data) - 8)] = value
    try:
        assert formed(bytes(data), SAME)[0].shape == (8, 8, 3)
    except UsageError as error:
        assert str(error).startswith("it ") and "\n" not in str(error)


# Folders, zips and arrays


def mixed() -> dict[str, bytes]:
    """What people have: by name, content; all but three can be used."""
    pages = [Image.fromarray(np.roll(RGB, n, 0)) for n in range(3)]
    return {
        "cat/grey.png": encoded(GREY),
        "cat/palette.GIF": encoded(Image.fromarray(RGB).convert("P"), "GIF"),
        "cat/an image.PNG": encoded(np.tile(RGB, (2, 3, 1))),
        "cat/cut.png": encoded(RGB)[:80],
        "dog é/ünï 犬.JPG": encoded(RGB, "JPEG", exif=turned(6)),
        "dog é/rgba.png": encoded(np.dstack([RGB, GREY])),
        "dog é/cmyk.jpeg": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
        "dog é/moving.gif": encoded(pages[0], "GIF", save_all=True, append_images=pages[1:]),
        "dog é/deep.tif": encoded(GREY.astype(np.uint16) * 257, "TIFF"),
        "dog é/no ending": encoded(RGB),
        "notes.txt": b"hello",
        "empty.jpg": b"",
        ".hidden": b"not looked at",
    }


BAD = ("cat/cut.png", "empty.jpg", "notes.txt")


def folder_of(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    script = builders.module(ROOT / "scripts" / "prepare_images.py")

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["prepare_images.py", *map(str, arguments)])
        return run_command(script.main)

    return run


def test_a_folder_of_mixed_pictures_becomes_a_dataset(
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out = folder_of(tmp_path / "in put", mixed()), tmp_path / "out" / "o.zip"
    assert command(folder, out, "--size", 8) == 0
    said = capsys.readouterr().out
    for name in BAD:
        assert f"| {name} | it " in said
    for row in (
        "first of several pages | 1",
        "turned as EXIF says | 1",
        "CMYK to RGB | 1",
        "palette to RGB | 2",
        "16 bits scaled to 8 | 1",
        "left out | 3",
        "#ffffff | 1",
    ):
        assert f"{row} |" in said  # fmt: skip
    assert "9 of 12 files" in said and "RGB; cat, dog é" in said and ".hidden" not in said
    dataset = load(out)
    assert (dataset.count, dataset.shape) == (9, (3, 8, 8))
    names = sorted(name for name in mixed() if name not in (*BAD, ".hidden"))
    assert dataset.labels().tolist() == [int(name.startswith("dog")) for name in names]
    assert torch.equal(dataset.images()[names.index("cat/grey.png")][0], torch.from_numpy(GREY))
    assert {*out.parent.iterdir()} == {out, out.with_name(".o.zip.lock")}
    monkeypatch.setattr(sys, "argv", ["", str(out), "gaussian", str(tmp_path / "p"), "--by-class"])
    get_parameters.main()
    assert "class 1 (dog é): 6 images" in capsys.readouterr().out


def test_odd_names_stay_within_their_row(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "in", {"a|b.png": b"x", "c\n\x1b[1md.png": b"x"})
    (folder / "e.png").write_bytes(encoded(RGB))
    assert command(folder, tmp_path / "o.zip") == 0
    said = capsys.readouterr().out
    assert "| a\\|b.png | it is" in said and "| c\\n\\x1b[1md.png | it is" in said


def test_strict_names_all_bad_files_writes_no_zip_and_keeps_what_is_made(
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out = folder_of(tmp_path / "in", mixed()), tmp_path / "o.zip"
    assert command(folder, out, "--strict") == 2
    told = capsys.readouterr()
    assert all(name in told.out for name in BAD)
    assert "error: 3 of 12 files in" in told.err and "is not written" in told.err
    kept, lock = tmp_path / ".o.zip.unfinished", tmp_path / ".o.zip.lock"
    assert f"waits in {kept} for the same command" in told.err
    assert {*tmp_path.iterdir()} == {folder, kept, lock} and len([*kept.glob("*.npz")]) == 1
    assert command(folder_of(tmp_path / "bad", dict.fromkeys(BAD, b"x")), out) == 2
    assert "3 of 3 files" in capsys.readouterr().err and not out.exists()
    monkeypatch.setattr(preparation, "formed", None)  # a call would raise
    assert command(folder, out) == 0 and not kept.exists()


def test_a_zip_in_the_folder_that_it_was_made_from_is_no_file_of_it(
    tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "in", {"a.png": encoded(RGB), "b.png": encoded(GREY)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "link.zip").symlink_to("o.zip")
    for source, out in (
        ("in", "in/o.zip"),
        ("in", "in/link.zip"),
        (tmp_path / "in", "in/o.zip"),
        ("./in/", "in/o.zip"),
    ):
        assert command(source, out, "--strict") == 0
    assert load("in/o.zip").count == 2
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    assert command("in", "in/o.zip") == 0
    assert load("in/o.zip").count == 2


def test_a_file_that_changes_between_two_looks_is_noticed(
    tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = folder_of(tmp_path / "in", {"a.png": encoded(RGB), "b.png": encoded(GREY)})

    def meanwhile(content: bytes, form: Form) -> tuple[np.ndarray, list[str]]:
        (folder / "b.png").write_bytes(encoded(255 - GREY))
        return formed(content, form)

    monkeypatch.setattr(preparation, "formed", meanwhile)
    assert command(folder, tmp_path / "o.zip", "--size", 8) == 1
    assert "b.png in" in (said := capsys.readouterr().err) and "was changed meanwhile" in said
    assert command(folder, tmp_path / "o.zip", "--size", 8) == 0
    assert torch.equal(load(tmp_path / "o.zip").images()[1, 0], torch.from_numpy(255 - GREY))


def test_pictures_beside_folders_are_a_class_with_a_name(
    tmp_path: Path, command: Callable[..., int]
) -> None:
    names = ("!odd/b.png", "a.png", "dogs/c.png")
    folder = folder_of(tmp_path / "in", dict.fromkeys(names, encoded(RGB)))
    assert command(folder, tmp_path / "o.zip") == 0
    for dataset in (load(folder), load(tmp_path / "o.zip")):
        assert dataset.class_names == (".", "!odd", "dogs")
        assert dataset.classes().tolist() == [1, 0, 2]


def test_the_zip_is_edm_s_and_holds_no_moment(tmp_path: Path, command: Callable[..., int]) -> None:
    folder = folder_of(tmp_path / "in", {"a.png": encoded(GREY), "b.png": encoded(GREY)})
    assert command(folder, tmp_path / "o.zip") == 0
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        names = ["00000/img00000000.png", "00000/img00000001.png", "dataset.json"]
        assert archive.namelist() == names
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        stated = json.loads(archive.read("dataset.json"))
    assert stated["labels"] is None and "classes" not in stated
    assert stated["prepared"]["background"] == "#ffffff"


PACKING = 10  # the step after all files were looked at


@pytest.mark.parametrize("stop", [1, 3, 4, 9, PACKING])
def test_what_was_killed_continues_and_ends_with_the_same_bytes(
    tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(preparation, "FILES", 3)
    folder = folder_of(tmp_path / "in", {f"{n}.png": encoded(RGB + n) for n in range(9)})
    assert command(folder, tmp_path / "whole.zip") == 0
    looked, add, limit = list[bytes](), preparation._add, [stop]

    def look(content: bytes, form: Form) -> tuple[np.ndarray, list[str]]:
        if len(looked) + 1 == limit[0]:
            raise KeyboardInterrupt
        looked.append(content)
        return formed(content, form)

    def pack(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
        if limit[0] == PACKING and name.endswith("4.png"):
            raise KeyboardInterrupt
        add(archive, name, content)

    monkeypatch.setattr(preparation, "formed", look)
    monkeypatch.setattr(preparation, "_add", pack)
    out = tmp_path / "o.zip"
    assert command(folder, out) == 130 and not out.exists()
    looked.clear()
    limit[0] = 0
    assert command(folder, out) == 0
    assert len(looked) == 9 - (stop - 1) // 3 * 3
    assert out.read_bytes() == (tmp_path / "whole.zip").read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"in", "whole.zip", "o.zip", ".whole.zip.lock", ".o.zip.lock"}


@pytest.mark.parametrize("foreign", [False, True])
def test_equal_commands_at_once_are_made_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    """Who waited looks again what is there: not this command's, perhaps."""
    folder = folder_of(tmp_path / "in", {"a.png": encoded(RGB), "b.png": encoded(GREY)})
    out, waiting = tmp_path / "o.zip", threading.Semaphore(0)
    monkeypatch.setattr(files, "print", lambda *_, **__: waiting.release(), raising=False)

    def prepare() -> None:
        with looking_at(str(folder), out, SAME) as prepared:
            if not out.exists():
                assert all(waiting.acquire(timeout=10) for _ in range(3))
            prepared.pack(out, 3)
            if foreign:
                out.write_bytes(b"another's")

    with ThreadPoolExecutor() as pool:
        found = [each.exception() for each in [pool.submit(prepare) for _ in range(4)]]
    told = [each for each in found if each]
    assert len(told) == 3 * foreign and all("new file" in str(each) for each in told)
    assert foreign or load(out).count == 2


def test_a_block_that_is_damaged_or_of_other_files_is_made_again(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "in", {"a.png": encoded(RGB)}), tmp_path / "o.zip"
    with pytest.raises(KeyboardInterrupt), looking_at(str(folder), out, SAME) as before:
        raise KeyboardInterrupt
    before.blocks[0].write_bytes(before.blocks[0].read_bytes().replace(b"(1, ", b"(3, "))
    with looking_at(str(folder), out, SAME) as again:
        assert again.blocks == before.blocks
        again.pack(out, 3)
    (folder / "a.png").write_bytes(encoded(255 - RGB))
    with looking_at(str(folder), out, SAME) as other:
        assert other.blocks != before.blocks
        other.pack(out, 3)
    assert torch.equal(load(out).images()[0], torch.from_numpy(255 - RGB).permute(2, 0, 1))


def test_one_coloured_image_makes_all_rgb_unless_told(
    tmp_path: Path, command: Callable[..., int]
) -> None:
    folder = folder_of(tmp_path / "in", {"a.png": encoded(in_rgb(GREY)), "b.jpg": encoded(GREY)})
    shapes = {}
    for told in ((), ("--rgb",), ("--grey",)):
        assert command(folder, tmp_path / "o.zip", "--size", 8, *told) == 0
        shapes[told] = load(tmp_path / "o.zip").shape[0]
    assert [*shapes.values()] == [1, 3, 1]
    folder_of(folder, {"c.png": encoded(RGB)})
    assert command(folder, tmp_path / "o.zip", "--size", 8) == 0
    assert load(tmp_path / "o.zip").shape[0] == 3
    assert command(folder, tmp_path / "o.zip", "--size", 8, "--grey") == 0
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert abs(load(tmp_path / "o.zip").images()[2, 0].numpy() - luma).max() <= 1


def test_zips_and_arrays_are_prepared_with_their_labels(
    tmp_path: Path, command: Callable[..., int]
) -> None:
    images, labels = np.stack([RGB + n for n in range(5)]), np.array([2, 0, 1, 1, 2])
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    assert command(tmp_path / "a.npz", tmp_path / "o.zip", "--size", 8) == 0
    dataset = load(tmp_path / "o.zip")
    assert np.array_equal(dataset.images().permute(0, 2, 3, 1), images)
    assert dataset.labels().tolist() == labels.tolist() and dataset.class_names == ()
    wrapped = {f"photos/{'ab'[n % 2]}/{n}.png": encoded(images[n]) for n in range(5)}
    (tmp_path / "w.zip").write_bytes(builders.zip_of(**wrapped, **{"__MACOSX/._0.png": b"x"}))
    assert command(tmp_path / "w.zip", tmp_path / "p.zip", "--size", 8, "--strict") == 0
    assert load(tmp_path / "p.zip").labels().tolist() == [0, 0, 0, 1, 1]
    assert load(tmp_path / "p.zip").class_name(1) == "1 (b)"
    assert command(tmp_path / "p.zip", tmp_path / "q.zip", "--size", 8) == 0
    assert (tmp_path / "q.zip").read_bytes() == (tmp_path / "p.zip").read_bytes()


def test_a_zip_of_two_files_of_one_name_is_refused_as_it_is_read(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for twice, code in (("b.png", 2), ("dataset.json", 2), ("folder/", 0), (".hidden", 0)):
        with (
            warnings.catch_warnings(action="ignore"),
            zipfile.ZipFile(tmp_path / "a.zip", "w") as z,
        ):
            for name in ("a.png", "b.png", twice, twice):
                z.writestr(name, b'{"labels": null}' if "json" in name else encoded(RGB))
        assert command(tmp_path / "a.zip", tmp_path / "o.zip") == code
        said = capsys.readouterr().err
        assert (f"a.zip holds {twice} twice, one of 1 such names" in said) == (code == 2)
        (tmp_path / "o.zip").unlink(missing_ok=True)


@pytest.mark.parametrize("top", ["", "photos/", "my photos/2026/"])
@pytest.mark.parametrize("zipped", [True, False])
def test_labels_are_stated_where_the_folder_that_holds_all_begins(
    tmp_path: Path, command: Callable[..., int], top: str, zipped: bool
) -> None:
    stated = {"labels": [["x/1.png", 4], ["y/2.png", 0], ["z.png", 4]], "classes": ["a", "b"]}
    files = {f"{top}{name}": encoded(RGB) for name, _ in stated["labels"]}
    files |= {f"{top}dataset.json": json.dumps(stated).encode(), "__MACOSX/._a": b"x", ".b": b"x"}
    if zipped:
        (source := tmp_path / "in.zip").write_bytes(builders.zip_of(**files))
    else:
        source = folder_of(tmp_path / "in", files)
    assert command(source, tmp_path / "o.zip", "--size", 8, "--strict") == 0
    dataset = load(tmp_path / "o.zip")
    assert dataset.labels().tolist() == [4, 0, 4] and dataset.class_names == ("a", "b")


def test_labels_beside_the_folder_that_holds_all_are_of_whole_names(
    tmp_path: Path, command: Callable[..., int]
) -> None:
    """The one within it is no picture then."""
    stated = {"dataset.json": b'{"labels": [["in/1.png", 3]]}', "in/dataset.json": b"{}"}
    (tmp_path / "a.zip").write_bytes(builders.zip_of(**stated, **{"in/1.png": encoded(RGB)}))
    assert command(tmp_path / "a.zip", tmp_path / "o.zip") == 0
    assert load(tmp_path / "o.zip").labels().tolist() == [3]


def test_a_folder_of_idx_files_is_prepared(tmp_path: Path, command: Callable[..., int]) -> None:
    head = b"\0\0\x08\x03\0\0\0\1\0\0\0\x08\0\0\0\x08"
    folder_of(tmp_path / "in", {"train-images-idx3-ubyte": head + GREY.tobytes()})
    assert command(tmp_path / "in", tmp_path / "o.zip", "--size", 8) == 0
    assert np.array_equal(load(tmp_path / "o.zip").images()[0, 0], GREY)


def test_names_of_classes_that_are_none_are_left_alone(tmp_path: Path) -> None:
    for classes in ({"a": 1}, ["a", 1], "ab", None):
        stated = json.dumps({"labels": [["a.png", 0]], "classes": classes}).encode()
        folder = folder_of(tmp_path, {"a.png": encoded(RGB), "dataset.json": stated})
        assert load(folder).labels().tolist() == [0] and load(folder).class_name(0) == "0"


@pytest.mark.parametrize("name", ["photos.zip", "o.npz", "o"])
def test_nothing_else_is_replaced(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / name
    content = builders.zip_of(**{"a.png": encoded(RGB)})
    out.write_bytes(content)
    folder = folder_of(tmp_path / "in", {"a.png": encoded(RGB)})
    assert command(folder, out) == 2 and command(out, out) == 2
    assert "expected the name of a .zip" in (told := capsys.readouterr().err) or "new file" in told
    assert out.read_bytes() == content


def test_mistakes_are_one_sentence(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for source, reason in (("empty", "holds no files"), ("absent", "nor an existing path")):
        assert command(tmp_path / source, tmp_path / "o.zip") == 2
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert command(tmp_path / "empty", tmp_path / "o.zip", "--size", 100_000) == 2
    assert "100,000 pixels on a side: at most 8,192" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(tmp_path, tmp_path / "o.zip", "--background", "colourless")
    assert "no colour" in capsys.readouterr().err

"""Every source gives the pixels, order and labels that were put in, or one sentence."""

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import math
import pickle
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pickletools import genops

import builders
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from linear_structure.data import archives, pictures
from linear_structure.data.datasets import NAMES, Dataset, load, sources_of
from linear_structure.system.download import Source
from linear_structure.system.errors import UsageError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the real images are not here")

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)  # n, H, W, C
GREY = RGB[..., 0]
LOSSLESS = {"png": {}, "bmp": {}, "tif": {}, "ppm": {}, "webp": {"lossless": True}}


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    formats = {"tif": "TIFF", "ppm": "PPM", "jpg": "JPEG"}
    Image.fromarray(pixels).save(file, formats.get(kind, kind), **LOSSLESS.get(kind, {}))
    return file.getvalue()


def files(images: np.ndarray = RGB, folders: int = 1, kind: str = "png") -> dict[str, bytes]:
    """Relative path -> content, in the order that the dataset must have."""
    each = -(-len(images) // folders)
    return {f"{i // each}/{i:03}.{kind}": encoded(image, kind) for i, image in enumerate(images)}


def folder_of(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in reversed(content.items()):  # not in the order that is expected
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "folder"


def zip_of(root: Path, content: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in reversed(content.items()):
            archive.writestr(name, data)
    return root / "packed.zip"


packings = pytest.mark.parametrize("pack", [folder_of, zip_of])


def labelled(content: dict[str, bytes], labels: object) -> dict[str, bytes]:
    return {**content, "dataset.json": json.dumps({"labels": labels}).encode()}


def complaint(path: object) -> str:
    """The one sentence that loading or reading images ends with."""
    with pytest.raises(UsageError) as caught:
        load(path).images()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def label_complaint(path: object) -> str:
    """The one sentence that reading labels ends with; images are read all the same."""
    dataset = load(path)
    assert len(dataset.images()) == dataset.count
    with pytest.raises(UsageError) as caught:
        dataset.labels()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("images", [(5, 8, 9), (5, 8, 9, 3), (5, 8, 9, 1), (2, 3, 4, 5, 6)])
def test_images_in_memory_of_another_shape_or_type_are_refused(images):
    with pytest.raises(UsageError, match=r"mine are uint8 \(.*: expected uint8 \(n, C, H, W\)"):
        Dataset.of("mine", torch.zeros(images, dtype=torch.uint8))
    with pytest.raises(UsageError, match="mine are float32 "):
        Dataset.of("mine", torch.zeros(5, 3, 8, 8))
    assert Dataset.of("mine", torch.zeros(5, 3, 8, 3, dtype=torch.uint8)).shape == (3, 8, 3)


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))


# Names


def test_digits_are_those_of_scikit_learn() -> None:
    digits = load("digits")
    assert (digits.count, digits.shape, digits.label_dim) == (1797, (1, 8, 8), 10)
    raw = load_digits()
    expected = [[round(v * 255 / 16) for v in image.ravel()] for image in raw.images]
    assert digits.images().flatten(1).tolist() == expected
    assert digits.labels().tolist() == raw.target.tolist()


@pytest.mark.parametrize("name", ["CIFAR11", "cifar10", "no/such/folder", "missing.zip"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    message = complaint(name)
    assert all(known in message for known in (name, *NAMES)) and "path" in message


# Blocks


@given(size=st.integers(1, 9))
def test_blocks_put_together_are_the_whole(size: int) -> None:
    images = channels_first(RGB)
    blocks = list(Dataset.of("a", images).blocks(size))
    assert all(len(block) == size for block in blocks[:-1])
    assert torch.equal(torch.cat(blocks), images)


def test_a_block_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(load("digits").blocks(0))


# Folders and zips


@packings
@pytest.mark.parametrize(
    ("pixels", "kind"),
    [*((RGB, kind) for kind in LOSSLESS), *((GREY, kind) for kind in LOSSLESS if kind != "webp")],
)
def test_pixels_and_order_are_kept(
    tmp_path: Path, pack: Callable, pixels: np.ndarray, kind: str
) -> None:
    dataset = load(pack(tmp_path, files(pixels, folders=3, kind=kind)))
    assert dataset.shape == (1 if pixels is GREY else 3, 5, 6)
    assert torch.equal(dataset.images(), channels_first(pixels))
    assert torch.equal(torch.cat(list(dataset.blocks(3))), dataset.images())
    assert dataset.images().is_contiguous()


@packings
def test_the_order_is_that_of_path_strings(tmp_path: Path, pack: Callable) -> None:
    names = ["a.b/0.png", "a/1.png", "a/2.PNG", "a1.png", "b/c/3.png"]
    content = dict(zip(names, map(encoded, RGB), strict=False))
    assert torch.equal(load(pack(tmp_path, content)).images(), channels_first(RGB[:5]))


@packings
def test_other_and_hidden_files_are_left_out(tmp_path: Path, pack: Callable) -> None:
    others = {"readme.txt": b"a", "0/.hidden.png": b"b", ".cache/a.png": b"c", "__M/._0.png": b"d"}
    assert load(pack(tmp_path, files() | others)).count == len(RGB)


@packings
def test_labels_come_from_dataset_json(tmp_path: Path, pack: Callable) -> None:
    content = files(folders=2)
    rows = [[name, 3 * i] for i, name in enumerate(content)]
    dataset = load(pack(tmp_path, labelled(content, rows[::-1])))
    assert dataset.labels().tolist() == [3 * i for i in range(7)]
    assert dataset.label_dim == 19


@packings
def test_dataset_json_may_say_that_there_are_none(tmp_path: Path, pack: Callable) -> None:
    dataset = load(pack(tmp_path, labelled(files(folders=2), None)))
    assert dataset.labels() is None and dataset.label_dim == 0


def test_top_level_folders_are_classes_if_there_are_several(tmp_path: Path) -> None:
    content = {"dog/x/0.png": RGB[0], "cat/1.png": RGB[1], "dog/2.png": RGB[2]}
    dataset = load(folder_of(tmp_path, {name: encoded(image) for name, image in content.items()}))
    assert dataset.labels().tolist() == [0, 1, 1]
    assert load(folder_of(tmp_path / "one", files())).labels() is None


def test_linked_folders_count_once_whatever_circles_they_make(tmp_path: Path) -> None:
    stored = folder_of(tmp_path / "elsewhere", files(RGB[:2]))
    linked = folder_of(tmp_path / "images", {"b/2.png": encoded(RGB[2])})
    for name, target in (("a", stored), ("c", stored), ("b/back", linked), (".kept", stored)):
        (linked / name).symlink_to(target)
    dataset = load(linked)
    assert torch.equal(dataset.images(), channels_first(RGB[:3]))
    assert dataset.labels().tolist() == [0, 0, 1]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_transparent_pixels_are_refused_and_a_colour_that_no_pixel_has_is_not(
    tmp_path: Path, mode: str
) -> None:
    image = Image.new("RGB", (3, 2), (9, 9, 9)).convert(mode)
    (index,) = (color for _, color in image.getcolors())
    absent = (1, 2, 3) if mode == "RGB" else 200
    for name, color in (("seen", index), ("absent", absent)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png", transparency=color)
    assert "has transparent pixels" in complaint(tmp_path / "seen")
    assert load(tmp_path / "absent").count == 1


@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 7, 256, 257, 1000])
@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_any_transparency_is_pixels_or_one_sentence(tmp_path: Path, mode: str, length: int) -> None:
    content, stated = io.BytesIO(), b"tRNS" + b"\xff" * length
    Image.new("RGB", (3, 2), (9, 9, 9)).convert(mode).save(content, "PNG")
    head, data, rest = content.getvalue().partition(b"IDAT")
    chunk = struct.pack(">I", length) + stated + struct.pack(">I", zlib.crc32(stated))
    (tmp_path / "a.png").write_bytes(head[:-4] + chunk + head[-4:] + data + rest)
    with contextlib.suppress(UsageError):
        assert load(tmp_path).images().shape[1:] == (3 if mode in ("P", "RGB") else 1, 2, 3)


@pytest.mark.parametrize("mode", ["P", "1"])
def test_palettes_become_rgb_and_bits_grey(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB[0]).convert(mode)
    image.save(tmp_path / "a.png")
    expected = np.array(image.convert({"P": "RGB", "1": "L"}[mode]))
    assert torch.equal(load(tmp_path).images(), channels_first(expected[None]))


def test_images_are_decoded_when_they_are_asked_for(tmp_path: Path) -> None:
    content = files()
    path = folder_of(tmp_path, content)
    (path / list(content)[-1]).write_bytes(b"damaged")
    blocks = load(path).blocks(3)
    assert torch.equal(torch.cat([next(blocks), next(blocks)]), channels_first(RGB[:6]))
    with pytest.raises(UsageError, match=r"006\.png"):
        next(blocks)


@packings
def test_images_of_two_shapes_are_both_named(tmp_path: Path, pack: Callable) -> None:
    content = files() | {"0/004.png": encoded(RGB[4, :3])}
    message = complaint(pack(tmp_path, content))
    assert all(part in message for part in ("000.png is 6x5 RGB", "004.png is 6x3 RGB"))
    content = files() | {"0/004.png": encoded(GREY[4])}
    assert "004.png is 6x5 grey" in complaint(pack(tmp_path, content))


@packings
def test_without_images_there_is_no_dataset(tmp_path: Path, pack: Callable) -> None:
    assert "no images" in complaint(pack(tmp_path, {"readme.txt": b"nothing here"}))


@packings
@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "bmp", "tif"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_truncated_image_is_named(tmp_path: Path, pack: Callable, kind: str) -> None:
    content = files(np.tile(RGB, (1, 8, 8, 1)), kind=kind)
    name = f"0/003.{kind}"
    for share in (0, 0.02, 0.5, 0.9):
        cut = content[name][: int(share * len(content[name]))]
        assert f"003.{kind}" in complaint(pack(tmp_path, content | {name: cut}))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "jpg", "gif", "bmp", "ppm", "webp", "tiff"]),
    noise=st.dictionaries(st.integers(30, 10_000), st.integers(0, 255), min_size=1, max_size=4),
)
def test_noise_in_an_image_is_pixels_or_one_sentence(kind: str, noise: dict[int, int]) -> None:
    data = bytearray(encoded(RGB[0], kind))
    for place, value in noise.items():
        data[30 + place % (len(data) - 30)] = value
    try:
        pictures._decode(bytes(data), Path("folder"), "a")
    except UsageError as error:
        assert "a in folder" in str(error)


def test_a_giant_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "exceeds limit" in complaint(folder_of(tmp_path, files()))


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FILE_LIMIT", 100)
    assert "larger than 100 bytes" in complaint(zip_of(tmp_path, files()))


@pytest.mark.parametrize(
    "pixels", [RGB.astype(np.uint16)[0, ..., 0] * 257, np.dstack([RGB[0], GREY[0]])]
)
def test_what_is_not_8_bit_grey_or_rgb_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    assert "8-bit grey or RGB" in complaint(folder_of(tmp_path, {"a.png": encoded(pixels)}))


@pytest.mark.parametrize("method", [0, 8, 12, 14], ids=["stored", "deflate", "bzip2", "lzma"])
def test_any_damaged_byte_of_a_zip_is_one_sentence_or_none(tmp_path: Path, method: int) -> None:
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.ppm", encoded(GREY[0, :2, :2], "ppm"))
    whole = path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), (1, 8, 128)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
            load(path).images()
        except UsageError as error:
            assert "packed.zip" in str(error)


@pytest.mark.parametrize("damage", [b"no zip at all", b"", "cut", "flip"])
def test_a_damaged_zip_is_one_sentence(tmp_path: Path, damage: bytes | str) -> None:
    path = zip_of(tmp_path, files())
    whole = path.read_bytes()
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 20])
    broken = {"cut": whole[:-30], "flip": flipped + whole[middle + 20 :]}
    path.write_bytes(damage if isinstance(damage, bytes) else broken[damage])
    assert "packed.zip" in complaint(path)


@packings
@pytest.mark.parametrize(
    "text", ["{", "[]", "null", "{}", '{"labels": 3}', '{"labels": [["a.png"]]}', "[" * 9999]
)
def test_a_malformed_dataset_json_is_one_sentence(
    tmp_path: Path, pack: Callable, text: str
) -> None:
    stated = files() | {"dataset.json": text.encode()}
    assert "must hold" in label_complaint(pack(tmp_path, stated))


@packings
@pytest.mark.parametrize("label", [None, -1, 1.5, True, "6", [0, 1], 2**31])
def test_a_label_that_is_no_class_is_named(tmp_path: Path, pack: Callable, label: object) -> None:
    rows = [[name, 0] for name in files()]
    rows[3][1] = label
    message = label_complaint(pack(tmp_path, labelled(files(), rows)))
    assert "0/003.png" in message and "class number" in message


@packings
def test_an_image_without_a_label_is_named(tmp_path: Path, pack: Callable) -> None:
    rows = [[name, 0] for name in files() if "004" not in name]
    message = label_complaint(pack(tmp_path, labelled(files(), rows)))
    assert "no label for 0/004.png" in message


@packings
def test_vectors_are_labels_too(tmp_path: Path, pack: Callable) -> None:
    rows = [[name, [i / 4, 0.5, -1]] for i, name in enumerate(files())]
    dataset = load(pack(tmp_path, labelled(files(), rows)))
    assert dataset.labels().dtype == torch.float32
    assert dataset.labels().tolist() == [label for _, label in rows]
    assert dataset.label_dim == 3
    with pytest.raises(UsageError, match="vectors of 3 numbers: class numbers are needed"):
        dataset.classes()


@packings
@pytest.mark.parametrize("odd", [[0.5], [0.5, "a"], [0.5, math.nan], 3, None, [0.5, 1e300]])
def test_a_label_that_is_no_vector_is_named(tmp_path: Path, pack: Callable, odd: object) -> None:
    rows = [[name, [0.5, 1]] for name in files()]
    rows[3][1] = odd
    message = label_complaint(pack(tmp_path, labelled(files(), rows)))
    assert "0/003.png" in message and "a vector of 2 numbers is needed" in message


@pytest.mark.parametrize("labels", [[], None, {}])
def test_no_labels_may_be_stated_in_several_ways(tmp_path: Path, labels: object) -> None:
    assert load(folder_of(tmp_path, labelled(files(folders=2), labels))).labels() is None


@packings
def test_an_image_listed_twice_has_one_label_or_is_named(tmp_path: Path, pack: Callable) -> None:
    rows = [[name, i] for i, name in enumerate(files())]
    dataset = load(pack(tmp_path / "same", labelled(files(), [*rows, rows[3]])))
    assert dataset.labels().tolist() == list(range(7))
    message = label_complaint(pack(tmp_path, labelled(files(), [*rows, ["0/003.png", 5]])))
    assert "lists 0/003.png twice, with 3 and 5" in message
    pairs = ", ".join(f'"{name}": {label}' for name, label in [*rows, ("0/004.png", 0)])
    stated = files() | {"dataset.json": f'{{"labels": {{{pairs}}}}}'.encode()}
    message = label_complaint(pack(tmp_path / "object", stated))
    assert "lists 0/004.png twice, with 4 and 0" in message


def test_a_zip_with_two_images_of_a_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for image in RGB[:2]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *_, **__: None)
                archive.writestr("a.png", encoded(image))
    assert "holds a.png twice" in complaint(tmp_path / "a.zip")


# What is no image


def deep_tiff(compression: int) -> bytes:
    """A TIFF of 16 bits a value: 3 x 2 RGB in one strip, raw (1) or deflated (8)."""
    data = bytes(36) if compression == 1 else zlib.compress(bytes(36))
    tags = [(256, 3, 1, 3), (257, 3, 1, 2), (258, 3, 3, 122), (259, 3, 1, compression)]
    tags += [
        (262, 3, 1, 2),
        (273, 4, 1, 128),
        (277, 3, 1, 3),
        (278, 3, 1, 2),
        (279, 4, 1, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0\x09\0" + entries + bytes(4) + struct.pack("<3H", 16, 16, 16) + data


DEEP = {
    "grey.png": builders.deep_png(0, 1),
    "rgb.png": builders.deep_png(2, 3),
    "grey-alpha.png": builders.deep_png(4, 2),
    "rgba.png": builders.deep_png(6, 4),
    "rgb.ppm": b"P6\n3 2\n65535\n" + bytes(36),
    "plain.ppm": b"P3\n3 2\n65535\n" + b"7 " * 18,
    "grey.pgm": b"P5\n3 2\n65535\n" + bytes(12),
    "raw.tif": deep_tiff(1),
    "deflated.tif": deep_tiff(8),
}


@packings
@pytest.mark.parametrize("name", DEEP)
def test_16_bits_are_refused_whatever_the_channels(
    tmp_path: Path, pack: Callable, name: str
) -> None:
    assert "8-bit grey or RGB" in complaint(pack(tmp_path, {name: DEEP[name]}))


def test_fewer_than_8_bits_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n1 1\n15\n\0\7\17")
    assert load(tmp_path).images().flatten().tolist() == [0, 119, 255]


@packings
@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_a_file_of_several_pages_is_refused(tmp_path: Path, pack: Callable, kind: str) -> None:
    first, *others = (Image.fromarray(image) for image in RGB[:4])
    content = io.BytesIO()
    first.save(content, kind, save_all=True, append_images=others)
    name = f"a.{kind.lower()}"
    assert f"{name} in " in (told := complaint(pack(tmp_path, {name: content.getvalue()})))
    assert "has 4 pages: one image in each file is needed" in told


@packings
@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1)])
def test_alpha_that_hides_nothing_is_dropped(
    tmp_path: Path, pack: Callable, mode: str, channels: int
) -> None:
    pixels = np.ascontiguousarray(RGB[..., :channels].squeeze())
    content = {}
    for i, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image).convert(mode).save(file, "PNG")
        content[f"{i}.png"] = file.getvalue()
    assert torch.equal(load(pack(tmp_path, content)).images(), channels_first(pixels))


def test_a_pointer_in_the_place_of_an_image_is_named(tmp_path: Path) -> None:
    content = files() | {"0/002.png": b"version https://git-lfs.github.com/spec/v1\n"}
    told = complaint(folder_of(tmp_path, content))
    assert "002.png in" in told and "git lfs pull" in told


@packings
def test_all_images_that_cannot_be_used_are_named_at_once(tmp_path: Path, pack: Callable) -> None:
    hidden = np.dstack([RGB[0], GREY[0]])
    bad = {
        "0/001.png": encoded(hidden),
        "0/003.png": encoded(RGB[3, :3]),
        "0/004.png": b"",
        "0/006.png": DEEP["rgb.png"],
    }
    message = complaint(pack(tmp_path, files() | bad))
    assert "4 of 7 images cannot be used: " in message
    parts = ("001.png in", "transparent", "003.png is 6x3 RGB", "004.png in", "empty", "006.png in")
    assert [part for part in parts if part not in message] == []
    message = complaint(pack(tmp_path / "first", files() | bad | {"0/000.png": b"no"}))
    assert "5 of 7 images cannot be used: 0/000.png in" in message
    many = {f"{i:03}.png": b"no" for i in range(50)}
    message = complaint(pack(tmp_path / "many", many))
    assert "50 of 50 images cannot be used" in message and message.endswith(
        f"; and 30 more{pictures.REMEDY}"
    )
    assert len(message) < 4000


# Arrays


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (RGB.transpose(0, 3, 1, 2), RGB),
        (np.asfortranarray(RGB), RGB),
        (GREY, GREY),
        (GREY[..., None], GREY),
        (GREY[:, None], GREY),
    ],
    ids=["NHWC", "NCHW", "Fortran order", "NHW", "NHW1", "N1HW"],
)
def test_arrays_are_read_in_each_layout(
    tmp_path: Path, array: np.ndarray, expected: np.ndarray
) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", images=array)
    for name in ("a.npy", "a.npz"):
        dataset = load(tmp_path / name)
        assert torch.equal(dataset.images(), channels_first(expected))
        assert (dataset.name, dataset.labels()) == ("a", None)
        assert dataset.shape == tuple(channels_first(expected).shape[1:])


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("arr_0", "arr_1")])
def test_npz_labels(tmp_path: Path, images: str, labels: str) -> None:
    np.savez(tmp_path / "a.npz", **{images: RGB, labels: np.arange(7, dtype=np.uint8)})
    dataset = load(tmp_path / "a.npz")
    assert torch.equal(dataset.labels(), torch.arange(7)) and dataset.label_dim == 7


def test_a_large_array_is_not_held_in_memory(tmp_path: Path) -> None:
    shape = (500_000, 64, 64, 3)  # 6 GB, of which the disk holds the header alone
    with (tmp_path / "a.npy").open("wb") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        file.truncate(file.tell() + int(np.prod(shape)))
    tracemalloc.start()
    images = load(tmp_path / "a.npy").read(499_990, 500_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.shape == (10, 3, 64, 64) and peak < 10_000_000


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": RGB / 255}, "uint8"),
        ({"images": RGB.astype(np.int64)}, "uint8"),
        ({"images": RGB[0, 0]}, "shape"),
        ({"images": RGB[None]}, "shape"),
        ({"images": RGB[..., :2]}, "shape"),
        ({"images": RGB[:0]}, "shape"),
        ({"images": np.array([RGB, "a"], dtype=object)}, "cannot be read"),
        ({"pixels": RGB}, "no array named images"),
    ],
)
def test_arrays_of_something_else_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], reason: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    message = complaint(tmp_path / "a.npz")
    assert reason in message and "a.npz" in message


ODD_LABELS = {
    "too few": np.arange(6),
    "floats": np.arange(7.0),
    "negative": np.arange(7) - 1,
    "beyond int64": np.full(7, 2**63, np.uint64),
    "beyond any class": np.full(7, 2**31),
    "durations": np.arange(7).astype("m8[s]"),
    "dates": np.arange(7).astype("M8[s]"),
    "booleans": np.ones(7, bool),
    "words": np.array(list("abcdefg")),
    "objects": np.array([None] * 7),
    "vectors of nothing": np.zeros((7, 0)),
    "vectors with NaN": np.full((7, 2), np.nan),
    "vectors beyond float32": np.full((7, 2), 1e300),
    "too few vectors": np.zeros((6, 2)),
    "matrices": np.zeros((7, 2, 2)),
}


@pytest.mark.parametrize("name", ODD_LABELS)
def test_arrays_that_are_no_labels_are_refused_when_they_are_used(
    tmp_path: Path, name: str
) -> None:
    np.savez(tmp_path / "a.npz", images=RGB, labels=ODD_LABELS[name])
    message = label_complaint(tmp_path / "a.npz")
    expected = "cannot be read" if name == "objects" else "7 class numbers"
    assert expected in message and "a.npz" in message


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, ">f4"])
def test_vectors_in_an_npz_are_labels(tmp_path: Path, dtype: object) -> None:
    vectors = np.arange(14).reshape(7, 2).astype(dtype)
    np.savez(tmp_path / "a.npz", images=RGB, labels=vectors)
    dataset = load(tmp_path / "a.npz")
    assert dataset.labels().dtype == torch.float32 and dataset.label_dim == 2
    assert dataset.labels().tolist() == vectors.tolist()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_shorter_than_its_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """What follows what a header tells of is never read, and no checksum is reached."""
    path = tmp_path / f"a{suffix}"
    digits = load("digits").images().numpy()
    np.save(path, digits) if suffix == ".npy" else np.savez(path, images=digits)
    path.write_bytes(path.read_bytes().replace(b"(1797, ", b"(1397, "))
    told = {".npy": "longer than its header says", ".npz": "images.npy in it has another checksum"}
    assert told[suffix] in complaint(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.zip"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (gzip.compress(b"x", mtime=0), "gunzip"),
        (b"<html>", "web page"),
    ],
)
def test_what_is_neither_array_nor_zip_is_named(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(data)
    assert told in complaint(tmp_path / name)


def test_an_encrypted_array_is_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=RGB)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    for signature, start in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(signature) + start] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    assert "cannot be read as numpy arrays" in complaint(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_a_truncated_array_is_one_sentence(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    np.save(path, RGB) if suffix == ".npy" else np.savez(path, images=RGB)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cannot be read" in complaint(path)


def test_a_pickle_that_calls_itself_an_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(pickle.dumps({"images": RGB}))
    assert "cannot be read" in complaint(tmp_path / "a.npy")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert "neither a folder nor a .zip" in complaint(tmp_path / "a.txt")


# CIFAR

ROWS = np.random.default_rng(1).integers(0, 256, (15, 3072), dtype=np.uint8)
LABELS = [i % 10 for i in range(15)]


def python2_string(data: bytes) -> bytes:
    if len(data) < 256:
        return b"U" + bytes([len(data)]) + data
    return b"T" + struct.pack("<i", len(data)) + data


def python2_batch(rows: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """The protocol 2 of Python 2 and numpy 1, opcode by opcode, as in the published archives."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in rows.shape) + b"t"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(rows.tobytes())
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return (
        b"\x80\x02}("
        + (python2_string(b"batch_label") + python2_string(b"training batch"))
        + (python2_string(b"data") + array)
        + (python2_string(key.encode()) + numbers)
        + b"u."
    )


def cpickle_batch(rows: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """The same with the memo that Python 2 writes, which counts from 1."""
    data, memo = python2_batch(rows, labels, key), itertools.count(1)
    written = b""
    for (opcode, _, start), (*_, end) in itertools.pairwise([*genops(data), (None, None, None)]):
        put = opcode.name in ("EMPTY_DICT", "EMPTY_LIST", "SHORT_BINSTRING", "BINSTRING")
        written += data[start:end] + (b"q" + bytes([next(memo)]) if put else b"")
    return written


def python3_batch(rows: np.ndarray, labels: list[int], key: str = "labels", **style: bool) -> bytes:
    """Protocol 2 of Python 3, with the names of this numpy or, if asked, of the other."""
    encode = str.encode if style.get("bytes_keys") else str
    fields = {encode("data"): rows, encode(key): labels, encode("filenames"): [b"a.png", "b"]}
    written = pickle.dumps(fields, protocol=2)
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    return written.replace(new, old) if style.get("numpy1") else written.replace(old, new)


def archive_of(folder: Path, batches: dict[str, bytes], name: str = "cifar.tar.gz") -> Source:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as archive:
        for batch, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return Source(("http://127.0.0.1:9/",), name, digest, 10**9)


def five(write: Callable[..., bytes] = python2_batch) -> dict[str, bytes]:
    """Five batches of three, stored in another order than they are to be read."""
    parts = {f"data_batch_{i + 1}": (ROWS[i::5], LABELS[i::5]) for i in (3, 0, 4, 2, 1)}
    return {name: write(*part) for name, part in parts.items()} | {"test_batch": b"unread"}


def cifar(folder: Path, batches: dict[str, bytes]) -> Dataset:
    return load("CIFAR10", folder, (archive_of(folder, batches),))


writers = [
    python2_batch,
    cpickle_batch,
    python3_batch,
    partial(python3_batch, numpy1=True),
    partial(python3_batch, bytes_keys=True),
]


@pytest.mark.parametrize(
    "write", writers, ids=["python2", "memo", "python3", "numpy1", "bytes keys"]
)
def test_cifar10_is_read_in_the_order_of_its_batches(tmp_path: Path, write: Callable) -> None:
    dataset = cifar(tmp_path, five(write))
    order = [i for first in range(5) for i in range(first, 15, 5)]
    expected = ROWS[order].reshape(-1, 3, 32, 32)
    assert (dataset.name, dataset.count, dataset.shape) == ("CIFAR10", 15, (3, 32, 32))
    assert torch.equal(dataset.images(), torch.from_numpy(expected))
    assert dataset.labels().tolist() == [LABELS[i] for i in order]


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    source = archive_of(tmp_path, {"train": python2_batch(ROWS, LABELS, key="fine_labels")})
    dataset = load("CIFAR100", tmp_path, (source,))
    assert torch.equal(dataset.images().flatten(1), torch.from_numpy(ROWS))
    assert dataset.labels().tolist() == LABELS


class Foreign:
    """Runs a command when it is unpickled by a reader that allows everything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "program",
    [
        lambda path: pickle.dumps({"data": Foreign(path)}, protocol=2),
        lambda path: b"cos\nsystem\nU\x04true\x85R.",
        lambda path: b"c__builtin__\neval\nU\x011\x85R.",
        lambda path: b"cnumpy\nload\nU\x01a\x85R.",
        lambda path: b"cnumpy.core.multiarray\nscalar\n.",
        lambda path: pickle.dumps({"data": np.array([path, {}], dtype=object)}, protocol=4),
    ],
)
def test_foreign_names_in_a_batch_are_refused(tmp_path: Path, program: Callable) -> None:
    made = tmp_path / "made"
    with pytest.raises(UsageError, match=r"data_batch_2 .*not allowed"):
        cifar(tmp_path / "data", five() | {"data_batch_2": program(made)})
    assert not made.exists()


def test_numpy_names_stand_for_inert_things(tmp_path: Path) -> None:
    """Whatever is passed to the allowed names, nothing but a uint8 array comes out."""
    for arguments in (b"cnumpy\ndtype\nU\x01OK\x00K\x01\x87R", b"U\x03abcU\x04zlib\x86"):
        program = b"\x80\x02c_codecs\nencode\n" + arguments + b"R."
        with pytest.raises(UsageError, match="data_batch_1"):
            cifar(tmp_path, five() | {"data_batch_1": program})


def attributes() -> list[tuple[object, dict]]:
    """All that BUILD could set on what the allowed names stand for."""
    stand_ins = archives._STAND_INS.values()
    return [(getattr(s, "__defaults__", None), {**getattr(s, "__dict__", {})}) for s in stand_ins]


@pytest.mark.parametrize("name", archives._STAND_INS)
def test_nothing_in_the_process_can_be_set(tmp_path: Path, name: str) -> None:
    """BUILD on the name itself, with a state of attributes, as pickle would set them."""
    values = b"}X\x0c\x00\x00\x00__defaults__X\x05\x00\x00\x00utf16\x85s"
    program = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nN" + values + b"\x86b."
    before = attributes()
    with pytest.raises(UsageError, match=r"data_batch_1 .* it sets the state of Global"):
        cifar(tmp_path, five() | {"data_batch_1": program})
    assert attributes() == before


wrong_batches = {
    "not a pickle": b"not a pickle",
    "empty": b"",
    "cut": five()["data_batch_2"][:-100],
    "a list": pickle.dumps([1, 2], protocol=2),
    "no labels": python2_batch(ROWS, LABELS, key="letters"),
    "too few labels": python2_batch(ROWS, LABELS[:-1]),
    "rows too short": python2_batch(ROWS[:, :-1], LABELS),
    "fewer bytes than the shape": python2_batch(ROWS, LABELS).replace(
        struct.pack("<i", 3072), struct.pack("<i", 3073), 1
    ),
    "signed bytes": python3_batch(ROWS.astype(np.int8), LABELS),
    "floats": python3_batch(ROWS.astype(np.float32), LABELS),
    "Fortran order": python3_batch(np.asfortranarray(ROWS), LABELS),
    "labels in words": python3_batch(ROWS, ["cat"] * 15),
    "negative labels": python3_batch(ROWS, [-1] * 15),
    "no rows": python3_batch(ROWS[:0], []),
}


@pytest.mark.parametrize("content", wrong_batches.values(), ids=wrong_batches.keys())
def test_a_wrong_batch_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"data_batch_2 in .* cannot be read as a CIFAR batch"):
        cifar(tmp_path, five() | {"data_batch_2": content})


@settings(deadline=None, max_examples=200)
@given(noise=st.dictionaries(st.integers(0), st.integers(0, 255), min_size=1, max_size=3))
def test_noise_in_a_batch_is_a_batch_or_one_sentence(noise: dict[int, int]) -> None:
    data = bytearray(python2_batch(ROWS[:1], LABELS[:1]))
    structure = [i for i in range(len(data)) if i < 200 or i > 3240]
    for place, value in noise.items():
        data[structure[place % len(structure)]] = value
    try:
        images, labels = archives._batch(bytes(data), "labels", "here")
        assert images.shape == (len(labels), 3, 32, 32) and images.dtype == torch.uint8
    except UsageError as error:
        assert "here" in str(error)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    batches = five()
    del batches["data_batch_4"]
    with pytest.raises(UsageError, match="does not contain data_batch_4"):
        cifar(tmp_path, batches)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_archive_is_one_sentence(tmp_path: Path, share: float) -> None:
    source = archive_of(tmp_path, five())
    path = tmp_path / source.name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UsageError, match="damaged or not a"):
        load("CIFAR10", tmp_path, (replace(source, sha256=None),))


# MNIST


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def mnist(folder: Path, images: bytes, labels: bytes) -> Dataset:
    (folder / "images.gz").write_bytes(images)
    (folder / "labels.gz").write_bytes(labels)
    unknown = Source(("http://127.0.0.1:9/",), "", None, 10**9)
    sources = replace(unknown, name="images.gz"), replace(unknown, name="labels.gz")
    return load("MNIST", folder, sources)


def test_mnist_is_read(tmp_path: Path) -> None:
    dataset = mnist(tmp_path, idx(GREY), idx(np.arange(7, dtype=np.uint8)))
    assert torch.equal(dataset.images(), channels_first(GREY))
    assert torch.equal(dataset.labels(), torch.arange(7))


@pytest.mark.parametrize(
    "images",
    [
        b"",
        b"no gzip",
        idx(GREY)[:50],
        gzip.compress(gzip.decompress(idx(GREY))[:-1]),
        gzip.compress(b"\0\0\x08\x03"),
        idx(RGB),
        gzip.compress(gzip.decompress(idx(GREY)).replace(b"\x08", b"\x0d", 1)),
        idx(GREY[:6]),
        gzip.compress(b"\0\0\x08\x03\0\0"),
        gzip.compress(b"\0\0\x08\x03" + 2 * b"\x80\0\0\0" + b"\0\0\0\4"),
    ],
    ids=["empty", "no gzip", "cut", "short", "no head", "4 axes", "floats", "fewer", "odd", "huge"],
)
def test_a_damaged_mnist_file_is_named(tmp_path: Path, images: bytes) -> None:
    with pytest.raises(UsageError, match=r"images\.gz"):
        mnist(tmp_path, images, idx(np.arange(7, dtype=np.uint8)))


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx_files(folder: Path, images: np.ndarray = GREY, part: str = "train", end: str = "") -> Path:
    """A folder of two IDX files; those that end in .gz are gzipped."""
    labels = np.arange(len(images), dtype=np.uint8) % 3
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        content = content if end else gzip.decompress(content)
        written(folder / f"{part}-{name}-ubyte{end}", content)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_in_any_folder_are_a_dataset(tmp_path: Path, end: str) -> None:
    folder = idx_files(tmp_path / "my digits", end=end)
    by_file = folder / f"train-images-idx3-ubyte{end}"
    for path in (folder, by_file, str(folder)):
        dataset = load(path)
        assert (dataset.name, dataset.shape) == ("my digits-train", (1, 5, 6))
        assert torch.equal(dataset.images(), channels_first(GREY))
        assert dataset.labels().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert list(map(len, load(folder).blocks(3))) == [3, 3, 1]


def test_of_training_and_test_images_the_training_is_read_and_both_by_file(tmp_path: Path) -> None:
    folder = idx_files(idx_files(tmp_path, part="t10k"), 255 - GREY, end=".gz")
    assert torch.equal(load(folder).images(), channels_first(255 - GREY))
    assert load(folder).name == f"{tmp_path.name}-train"
    test = load(folder / "t10k-images-idx3-ubyte")
    assert torch.equal(test.images(), channels_first(GREY)) and test.name.endswith("-t10k")


def test_a_gzipped_file_is_told_by_its_content(tmp_path: Path) -> None:
    written(tmp_path / "emnist.images.idx3-ubyte.gz", gzip.decompress(idx(GREY)))
    written(tmp_path / "emnist.labels.idx1-ubyte", idx(np.zeros(7, np.uint8)))
    assert load(tmp_path).labels().tolist() == [0] * 7
    assert load(tmp_path).name == f"{tmp_path.name}-emnist"


def test_a_folder_named_as_an_idx_file_is_none(tmp_path: Path) -> None:
    inner = tmp_path / "train-images-idx3-ubyte"
    idx_files(inner)
    folder = idx_files(tmp_path, part="t10k")
    assert torch.equal(load(folder).images()[:, 0], torch.from_numpy(GREY))
    assert load(inner).count == len(GREY)


def test_labels_of_idx_files_are_read_when_they_are_used(tmp_path: Path) -> None:
    folder = idx_files(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    written(labels, idx(np.zeros(6, np.uint8)))
    assert "has 7 images but" in (told := label_complaint(folder)) and "6 labels" in told
    written(labels, idx(GREY))
    assert "with 1 axes: it begins with 00 00 08 03, not with 00 00 08 01" in label_complaint(
        folder
    )
    labels.unlink()
    assert load(folder).labels() is None


PLAIN = gzip.decompress(idx(GREY))
WRONG_IDX = {
    "empty": (b"", "it is empty"),
    "words": (b"hello, world", "it begins with 68 65 6c 6c, not with 00 00 08 03"),
    "floats": (PLAIN.replace(b"\x08", b"\x0d", 1), "it begins with 00 00 0d 03"),
    "four axes": (idx(RGB), "it begins with 00 00 08 04"),
    "no head": (PLAIN[:9], "is damaged: its head ends after 9 bytes"),
    "the magic alone": (PLAIN[:4], "is damaged: its head ends after 4 bytes"),
    "cut": (PLAIN[:-1], "its head says 7 x 5 x 6 bytes, and 209 follow"),
    "longer": (PLAIN + b"a", "its head says 7 x 5 x 6 bytes, and more follow"),
    "none": (idx(GREY[:0]), "its head says 0 x 5 x 6 bytes, and none follow"),
    "cut within gzip": (idx(GREY)[:60], "is damaged: Compressed file ended"),
    "another checksum": (idx(GREY)[:-8] + bytes(8), "is damaged: CRC check failed"),
    "too large": (gzip.compress(PLAIN[:4] + b"\0\1\0\0" * 3), "at most 1,073,741,824 are read"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", WRONG_IDX)
def test_a_damaged_idx_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, reason = WRONG_IDX[name]
    written(idx_files(tmp_path) / "train-images-idx3-ubyte", content)
    told = complaint(tmp_path)
    assert reason in told and "train-images-idx3-ubyte" in told


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """100 MB of zeros follow what its head tells of."""
    path = tmp_path / "images-idx3-ubyte"
    with gzip.open(path, "wb", 1) as file:
        file.write(PLAIN)
        for _ in range(100):
            file.write(bytes(1_000_000))
    tracemalloc.start()
    assert "and more follow" in complaint(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


# Downloading


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A small CIFAR-10 on a web server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("LINEAR_STRUCTURE_OFFLINE", raising=False)
    monkeypatch.delenv("LINEAR_STRUCTURE_SOURCES", raising=False)
    source = archive_of(tmp_path / "site", five())
    handler = partial(Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield replace(source, urls=(f"http://127.0.0.1:{server.server_port}/{source.name}",))
        server.shutdown()


def test_a_named_dataset_is_downloaded_to_where_it_is_wanted(
    published: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    first = load("CIFAR10", sources=(published,))
    assert (tmp_path / "cache" / published.name).exists()
    second = load("CIFAR10", tmp_path / "mine", (published,))
    assert (tmp_path / "mine" / published.name).exists()
    assert torch.equal(first.images(), second.images())


def test_every_published_file_states_a_digest_and_a_place() -> None:
    for name in NAMES:
        for source in sources_of(name):
            assert source.pinned and source.urls and source.size_limit < 300_000_000
    assert len(sources_of("CIFAR10")[0].urls) == 2 and sources_of("digits") == ()


# Real images


@needs_shared
def test_the_real_cifar10_in_a_zip() -> None:
    dataset = load(SHARED / "cifar10-train.zip")
    assert (dataset.count, dataset.shape, dataset.label_dim) == (50_000, (3, 32, 32), 10)
    assert dataset.labels().bincount().tolist() == [5000] * 10
    assert dataset.labels()[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    images = dataset.read(0, 500)
    assert images[0, :, 0, 0].tolist() == [59, 62, 63]
    ends = torch.cat((images, dataset.read(49_900, 50_000)))
    assert (
        hashlib.sha256(ends.numpy().tobytes()).hexdigest()
        == "eab2cfcc85cd7fefb98abf80a849aa84da0dd3f6449fe71be6054ccaf4639472"
    )


@needs_shared
def test_the_archive_and_the_zip_give_the_same_images(tmp_path: Path) -> None:
    real = load(SHARED / "cifar10-test1000.zip")
    rows, labels = real.images().flatten(1).numpy(), real.labels().tolist()
    cuts = [slice(200 * i, 200 * i + 200) for i in range(5)]
    parts = {f"data_batch_{i + 1}": python2_batch(rows[c], labels[c]) for i, c in enumerate(cuts)}
    dataset = cifar(tmp_path, parts)
    assert torch.equal(dataset.images(), real.images())
    assert torch.equal(dataset.labels(), real.labels())


@needs_shared
def test_the_real_mnist() -> None:
    sources = [replace(s, name=Path(s.name).name) for s in sources_of("MNIST")]
    by_name, by_path = load("MNIST", SHARED / "mnist", tuple(sources)), load(SHARED / "mnist")
    assert by_path.name == "mnist-train" and by_path.digest() == by_name.digest()
    for dataset in (by_name, by_path):
        assert (dataset.count, dataset.shape, dataset.label_dim) == (60_000, (1, 28, 28), 10)
        assert dataset.labels()[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert load(SHARED / "mnist" / "t10k-images-idx3-ubyte.gz").count == 10_000


@needs_shared
def test_the_real_fashion_mnist_in_an_npz() -> None:
    dataset = load(SHARED / "fashion-train.npz")
    assert (dataset.count, dataset.shape, dataset.label_dim) == (60_000, (1, 28, 28), 10)
    assert dataset.labels()[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]

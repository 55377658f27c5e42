"""Pictures as people have them, made into images of one square shape, in an EDM zip.

What is done to each, in this order: of several pages the first is taken; of 16 bits a value the
upper 8; a camera's note to turn it is followed; what is transparent is laid on a background;
palettes, CMYK (without a profile) and other modes become RGB; the middle square is cut out, or the
whole is squeezed into one; and that is resized, by the mean over areas where it becomes smaller, by
Lanczos where a side grows. What a file is, is told by its content, whatever its name.

Images are kept in blocks, known by the content of their files, until the zip is whole: what was
stopped continues, and ends with the same bytes.
"""

import hashlib
import io
import json
import math
import os
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.data.pictures import (
    ALPHA,
    FORMATS,
    LABEL_FILE,
    PIXEL_LIMIT,
    UNREADABLE_IMAGES,
    Files,
    Labels,
    classes_of_folders,
    files_below,
    files_within,
    is_deep,
    opened,
    raw_modes,
)
from linear_structure.system.arrays import read_npz
from linear_structure.system.errors import UsageError, WorkError, printable
from linear_structure.system.files import (
    alone_beside,
    check_output,
    digest_of,
    replacing,
    write_arrays,
)
from linear_structure.system.kinds import kind_of

FORMAT = 2  # of blocks
FILES, PIXELS = 250, 1 << 22  # of a block, at most
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can state
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
PREPARED = "prepared"  # key of what this says in `dataset.json`
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
WHITE_IS_ZERO = (262, 0)  # a TIFF's photometric interpretation, its tag and value
MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", *ALPHA)
PAGED, SCALED, TURNED = "first of several pages", "16 bits scaled to 8", "turned as EXIF says"
LAID, CONVERTED = "transparent: laid on {}", "{} to RGB"
CUT, SQUEEZED = "middle square cut out", "squeezed into a square"
SMALLER, LARGER = "made smaller, by area", "made larger, by Lanczos"


@dataclass(frozen=True)
class Form:
    """What pictures become.

    Attributes:
        size: pixels on either side.
        crop: "centre": the middle square is cut out; "none": the whole is squeezed into one.
        background: behind what is transparent: R, G, B, 0 to 255.

    Raises:
        UsageError: so many pixels are not read again.
    """

    size: int = 32
    crop: str = "centre"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        if self.size**2 > PIXEL_LIMIT:
            most = math.isqrt(PIXEL_LIMIT)
            raise UsageError(f"images of {self.size:,} pixels on a side: at most {most:,} are read")

    @property
    def colour(self) -> str:
        """The background as #rrggbb."""
        return f"#{bytes(self.background).hex()}"


class Record(NamedTuple):
    """What became of a file."""

    done: list[str]  # nothing where it is used as it was, or left out
    fault: str = ""  # why it is left out


@dataclass(frozen=True)
class Material:
    """Files that may be pictures, and the labels of those of given names.

    Attributes:
        files: by their names, in order; an array's images are PNGs "image 0", "image 1", ...
        labels: those of some of the names, in their order; raises a UsageError if they do not fit.
    """

    files: Files
    labels: Callable[[Sequence[str]], Labels]

    @classmethod
    def at(cls, source: str, out: Path) -> "Material":
        """What a folder or zip holds, or a dataset; without hidden files, and without `out`.

        Labels are those that `dataset.json` states in the innermost folder that holds all.

        Raises:
            UsageError: a zip holds two files of one name; and as `datasets.load`, of what is
                neither folder nor zip.
        """
        path = Path(source)
        pictured = path.suffix.lower() == ".zip" or (path.is_dir() and not datasets.file_of(path))
        if source in datasets.NAMES or not pictured:
            return cls._of(datasets.load(source))
        files = files_below(path) if path.is_dir() else files_within(path)
        place = path.resolve()
        chosen = sorted(name for name in {*files.names} if _counts(name, place, out))
        files.check_once(chosen)
        top = chosen[0].removesuffix(_unwrapped(chosen)[0]) if chosen else ""
        below = files.below(top)
        names = tuple(name for name in chosen if name != top + LABEL_FILE)

        def labels(names: Sequence[str]) -> Labels:
            inner = [name.removeprefix(top) for name in names]
            return below.labels(inner) or classes_of_folders(_unwrapped(inner))

        return cls(Files(path, names, files.content), labels)

    @classmethod
    def _of(cls, dataset: Dataset) -> "Material":
        names = tuple(f"image {number}" for number in range(dataset.count))

        def content(name: str) -> bytes:
            number = _number(name)
            return png(dataset.read(number, number + 1)[0].permute(1, 2, 0).numpy())

        def labels(names: Sequence[str]) -> Labels:
            values = dataset.labels()
            chosen = None if values is None else values[[_number(name) for name in names]]
            return Labels(chosen, dataset.class_names)

        return cls(Files(Path(dataset.name), names, content), labels)


def _number(name: str) -> int:
    return int(name.rpartition(" ")[2])


def _counts(name: str, source: Path, out: Path) -> bool:
    hidden = "/." in f"/{name}"
    if hidden or name.endswith("/"):
        return False
    return os.path.realpath(source / name) != str(out)  # also by a link


def _unwrapped(names: Sequence[str]) -> Sequence[str]:
    """Names from the folder on that holds all of them, as a zip often wraps what it holds."""
    tops = {name.partition("/")[0] for name in names}
    while len(tops) == 1 and all("/" in name for name in names):
        names = [name.partition("/")[2] for name in names]
        tops = {name.partition("/")[0] for name in names}
    return names


def formed(content: bytes, form: Form) -> tuple[np.ndarray, list[str]]:
    """Pixels of a picture, uint8 (size, size, 3), and what was done to it.

    Raises:
        UsageError: it cannot be used; the message begins with "it".
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            upright, done = _upright(opened(content))
            opaque = _opaque(upright, form, done)
            return np.asarray(_squared(opaque, form, done)), done
    except Image.DecompressionBombError as error:
        raise UsageError(f"it is too large: {error}") from error
    except MemoryError as error:
        raise UsageError("it takes more memory than there is") from error
    except UnidentifiedImageError as error:
        text = kind_of(content) or f"it is not an image ({', '.join(FORMATS)})"
        raise UsageError(text) from error
    except UNREADABLE_IMAGES as error:
        raise UsageError("it is damaged or cut short") from error


def _upright(image: Any) -> tuple[Image.Image, list[str]]:
    """The first page, decoded, of 8 bits, turned; and what was done."""
    several = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # these are previews
    deep, turned = is_deep(image) or image.mode in DEEP[1:], _is_turned(image)
    if _is_misread(image):
        raise UsageError("it is a TIFF of 12 bits, or of 16 whose 0 is white: save it in 8 bits")
    image.load()
    done = [text for text, holds in ((PAGED, several), (SCALED, deep), (TURNED, turned)) if holds]
    upright: Image.Image = ImageOps.exif_transpose(image) if turned else image
    if deep:
        upright = _shallow(upright)
    if upright.mode not in MODES:
        raise UsageError(f"it has Pillow mode {upright.mode}, whose values mean no colours")
    return upright, done


def _is_misread(image: Any) -> bool:
    """Whether Pillow takes values for 16 bits from black to white, which they are not."""
    tag, value = WHITE_IS_ZERO
    white = image.format == "TIFF" and image.tag_v2.get(tag) == value
    return "I;12" in raw_modes(image) or (white and image.mode in DEEP)


def _shallow(image: Image.Image) -> Image.Image:
    """An image of 16 bits in 8, of which Pillow drops the lower ones itself where it has colour.

    The value that stands for what is transparent is compared before that in grey, after it else.
    """
    clear = image.info.pop("transparency", None)
    if image.mode not in DEEP:
        if isinstance(clear, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _is_turned(image: Any) -> bool:
    try:
        return image.getexif().get(ORIENTATION) in range(2, 9)
    except UNREADABLE_IMAGES:  # the note is damaged, not the picture
        return False


def _opaque(image: Image.Image, form: Form, done: list[str]) -> Image.Image:
    """In RGB, on the background."""
    if image.mode in ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] != 255:
            done.append(LAID.format(form.colour))
            behind = Image.new("RGBA", image.size, form.background)
            return Image.alpha_composite(behind, layer).convert("RGB")
        return layer.convert("RGB")
    if image.mode not in ("1", "L", "RGB"):
        done.append(CONVERTED.format("palette" if image.mode == "P" else image.mode))
    return image.convert("RGB")


def _squared(image: Image.Image, form: Form, done: list[str]) -> Image.Image:
    size, (width, height) = form.size, image.size
    if width != height:
        done.append(CUT if form.crop == "centre" else SQUEEZED)
    if form.crop == "centre":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size == (size, size):
        return image
    grows = size > min(image.size)
    done.append(LARGER if grows else SMALLER)
    how = Image.Resampling.LANCZOS if grows else Image.Resampling.BOX
    return image.resize((size, size), how)


@dataclass(frozen=True)
class Prepared:
    """All files, looked at.

    Attributes:
        records: of each file by its name.
        blocks: where the pixels are of those that can be used, in order.
        coloured: whether one of them has colour.
    """

    material: Material
    form: Form
    records: dict[str, Record]
    blocks: list[Path]
    coloured: bool

    @property
    def used(self) -> list[str]:
        """Names of the files that can be used."""
        return [name for name, record in self.records.items() if not record.fault]

    def table(self) -> str:
        """What was done to how many, and each file that is left out, as Markdown."""
        done = Counter(text for record in self.records.values() for text in record.done)
        faults = [
            (_cell(name), _cell(record.fault))
            for name, record in self.records.items()
            if record.fault
        ]
        rows = [("what was done", "files"), ("---", "---:"), *sorted(done.items())]
        if untouched := sum(record == Record([]) for record in self.records.values()):
            rows += [("nothing", untouched)]
        if faults:
            rows += [("left out", len(faults)), ("", ""), ("left out", "why"), ("---", "---")]
        lines = (f"| {left} | {right} |" if left else "" for left, right in (*rows, *faults))
        return "\n".join(lines)

    def pack(self, out: Path, channels: int) -> Labels:
        """Write the zip, whole or not at all, with images of 1 or 3 channels; their labels.

        Raises:
            UsageError: the labels that are stated do not suit the images.
        """
        labels, names = self.material.labels(self.used), list[str]()
        with replacing(out) as beside, zipfile.ZipFile(beside, "w") as archive:
            for pixels in tqdm(self._pixels(), "packing", len(self.used), unit=" images"):
                names.append(f"{len(names) // 1000:05d}/img{len(names):08d}.png")
                _add(archive, names[-1], png(pixels, channels))
            _add(archive, LABEL_FILE, self._stated(names, labels).encode())
        return labels

    def _pixels(self) -> Iterator[np.ndarray]:
        for path in self.blocks:
            yield from read_npz(path, "pixels")["pixels"]

    def _stated(self, names: Sequence[str], labels: Labels) -> str:
        values = None if labels.values is None else labels.values.tolist()
        rows = None if values is None else list(zip(names, values, strict=True))
        how = {**asdict(self.form), "background": self.form.colour, "format": FORMAT}
        named = {"classes": labels.names} if labels.names else {}
        return json.dumps({"labels": rows, **named, PREPARED: how}, sort_keys=True)


def _cell(text: str) -> str:
    """A name or sentence within a row of Markdown, whatever characters it has."""
    return printable(text).replace("|", "\\|")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Store a file, with nothing of the machine or the moment."""
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    archive.writestr(entry, content)


def png(pixels: np.ndarray, channels: int = 3) -> bytes:
    """An image, uint8 (H, W, C) of 1 or 3 channels, as PNG; of 1 channel, grey by ITU-R 601."""
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    content = io.BytesIO()
    (image.convert("L") if channels == 1 else image).save(content, "PNG")
    return content.getvalue()


def check_target(source: str, out: Path) -> None:
    """Refuse, before any work, a place where the zip cannot or should not be.

    Raises:
        UsageError: it has another ending, or is something that this did not make.
        OSError: nothing can be written there.
    """
    if out.suffix.lower() != ".zip":
        raise UsageError(f"{out}: expected the name of a .zip to write")
    check_output(out, None if Path(source).is_dir() else source)
    if out.exists() and not _is_ours(out):
        raise UsageError(f"{out} was not made by this command: name a new file")


def _is_ours(out: Path) -> bool:
    try:
        return PREPARED in json.loads(files_within(out).content(LABEL_FILE))
    except (UsageError, OSError, KeyError, ValueError, TypeError, RecursionError):
        return False


@contextmanager
def looking_at(source: str, out: Path, form: Form) -> Iterator[Prepared]:
    """All files of a folder, zip or array, looked at, with a bar.

    What is made of them is kept in a hidden folder beside `out`, until the block ends well. Of
    several processes, each waits for the one before: a hidden lock stays there, too.

    Raises:
        UsageError: there are none; and as `check_target` and `Material.at`.
        WorkError: a file was changed meanwhile.
    """
    check_target(source, out)
    place = out.resolve()
    material = Material.at(source, place)
    if not material.files.names:
        raise UsageError(f"{source} holds no files: expected pictures")
    work = place.with_name(f".{place.name}.unfinished")
    with alone_beside(place, f"prepares {out}"):
        check_target(source, out)  # again: another process may have made it
        work.mkdir(exist_ok=True)
        yield _looked_at(material, form, work)
        shutil.rmtree(work)


def _looked_at(material: Material, form: Form, work: Path) -> Prepared:
    names, count = material.files.names, max(1, min(FILES, PIXELS // form.size**2))
    records, blocks, coloured = dict[str, Record](), list[Path](), False
    with tqdm(total=len(names), desc="preparing", unit=" files") as bar:
        for start in range(0, len(names), count):
            part = names[start : start + count]
            marks = [_read(material.files, name)[1] for name in part]
            key = digest_of([FORMAT, PIL.__version__, asdict(form), part, marks])
            path = work / f"{key[:32]}.npz"
            pixels, found = _block(path, material.files, dict(zip(part, marks, strict=True)), form)
            records |= zip(part, found, strict=True)
            blocks.append(path)
            coloured |= bool((pixels != pixels[..., :1]).any())
            bar.update(len(part))
    return Prepared(material, form, records, blocks, coloured)


def _read(files: Files, name: str) -> tuple[bytes | None, str]:
    """What a file holds, and its SHA-256; or nothing, and why it cannot be read."""
    try:
        content = files.content(name)
    except OSError as error:
        return None, f"it cannot be read: {error.strerror}"
    except UsageError as error:
        return None, str(error)
    return content, hashlib.sha256(content).hexdigest()


def _block(
    path: Path, files: Files, marks: dict[str, str], form: Form
) -> tuple[np.ndarray, list[Record]]:
    """Pixels (n, size, size, 3) of those of the files that can be used, and all their records.

    Args:
        marks: by the files' names, what `_read` said of each, by which the block is known.

    Raises:
        WorkError: a file was changed since then.
    """
    if path.exists():
        with suppress(UsageError):  # it is damaged
            kept = read_npz(path, "pixels", "records")
            return kept["pixels"], [Record(*each) for each in json.loads(kept["records"].tobytes())]
    found, records = [np.empty((0, form.size, form.size, 3), np.uint8)], list[Record]()
    for name, mark in marks.items():
        content, now = _read(files, name)
        if now != mark:
            raise WorkError(f"{name} in {files.where} was changed meanwhile: run this again")
        try:
            if content is None:
                raise UsageError(mark)
            pixels, done = formed(content, form)
            found.append(pixels[None])
            records.append(Record(done))
        except UsageError as error:
            records.append(Record([], str(error)))
    pixels = np.concatenate(found)
    told = np.frombuffer(json.dumps(records).encode(), np.uint8)
    write_arrays(path, {"pixels": pixels, "records": told})
    return pixels, records

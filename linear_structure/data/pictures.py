"""Image files in a folder or a zip, decoded when asked for.

The order is that of the relative paths with forward slashes, sorted as strings; names with a part
that starts with a dot are left out. Links are followed; a folder that is reached twice counts once.
Pixels are taken as they are stored: a camera's note to turn them is not followed. Labels come from
`dataset.json` at the root, the format of EDM's dataset tool: `{"labels": [["00000/img00000000.png",
6], ...]}` or `{"labels": null}`; a label may be a vector of numbers instead. Where a folder has no
such file, they come from its top-level folders, in sorted order, if there are several.
"""

import io
import json
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor
from tqdm import tqdm

from linear_structure.system.arrays import whole_zip
from linear_structure.system.errors import UsageError
from linear_structure.system.files import UNREADABLE_ARRAYS
from linear_structure.system.kinds import kind_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FILE_LIMIT = 1 << 28  # bytes of one unpacked file of a zip
LABEL_FILE = "dataset.json"
ALPHA = {"LA": "L", "RGBA": "RGB", "PA": "RGB"}  # Pillow's modes, and what they become
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB", **ALPHA}
NEEDED = "8-bit grey or RGB is needed"
NO_IMAGE = f"it is damaged, or not an image ({', '.join(FORMATS)})"
MOST_NAMED = 20  # of images that cannot be used, in one sentence
CLASS_LIMIT = 2**31
LARGEST = 3e38  # that float32 holds

Shape = tuple[int, int, int]  # C, H, W
Content = Callable[[str], bytes]  # of a file, by its name
Labels = Callable[[], Tensor | None]

Pictures = tuple[int, Shape, Callable[[int, int], Tensor], Labels]
"""Of n images: n, their shape, what decodes those of [start, stop) to uint8 (stop - start, C, H, W)
or raises a `UsageError` that names all that cannot be used, and what reads their labels: int64 (n,)
or float32 (n, L), None if there are none, a `UsageError` if they do not fit."""


def images_below(folder: Path) -> tuple[str, ...]:
    """The paths of the images below a folder, from there and with forward slashes, in order.

    Raises:
        UsageError: there is none.
    """
    return _images(_files_below(folder), folder)


def open_folder(folder: Path) -> Pictures:
    """The images below a folder.

    Raises:
        UsageError: there is none, or the first cannot be used.
    """
    names = images_below(folder)
    stated = folder / LABEL_FILE
    labels = partial(_classes_of_folders, names)
    if stated.exists():
        labels = partial(_stated_labels, stated.read_bytes, names, folder)
    return _pictures(_Files(folder, names, lambda name: (folder / name).read_bytes()), labels)


def open_zip(path: Path) -> Pictures:
    """The images in a zip file, which stays open as long as the result lives.

    Raises:
        UsageError: it is no zip, has no images, or two of a name, or the first cannot be used.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        try:
            archive = whole_zip(file)
        except UNREADABLE_ARRAYS as error:
            reason = kind_of(path) or error
            raise UsageError(f"{path} is damaged or not a zip file: {reason}") from error
        content, names = partial(_unpacked, archive, path), archive.namelist()
        images = _images(names, path)
        for name in {*names}.difference(images):  # a damaged name may have been an image's
            _opened(archive, path, name).close()
        counts = Counter(names)
        if twice := [name for name in (*images, LABEL_FILE) if counts[name] > 1]:
            raise UsageError(f"{path} holds {twice[0]} twice, one of {len(twice)} such names")
        stated = LABEL_FILE in names
        text = partial(content, LABEL_FILE)
        labels = partial(_stated_labels, text, images, path) if stated else lambda: None
        pictures = _pictures(_Files(path, images, content), labels)
        opened.pop_all()  # all went well: the file stays open
    return pictures


@dataclass(frozen=True)
class _Files:
    """Image files by their names, in the folder or zip `where`."""

    where: Path
    names: tuple[str, ...]
    content: Content

    def decode(self, name: str) -> Image.Image:
        return _decode(self.content(name), self.where, name)

    def read(self, shape: Shape, start: int, stop: int) -> Tensor:
        """Those of [start, stop): uint8 (stop - start, C, H, W)."""
        channels, height, width = shape
        pixels = np.empty((stop - start, *shape), np.uint8)
        for row, name in zip(pixels, self.names[start:stop], strict=True):
            with self.all_named():
                image = self.decode(name)
                self.compare(name, image, shape)
            flat = np.frombuffer(image.tobytes(), np.uint8)
            row[:] = flat.reshape(height, width, channels).transpose(2, 0, 1)
        return torch.from_numpy(pixels)

    def compare(self, name: str, image: Image.Image, shape: Shape) -> None:
        """Refuse an image of another shape than the first has."""
        if (found := _shape(image)) != shape:
            raise UsageError(
                f"{name} is {_said(found)} and {self.names[0]} is {_said(shape)}: images of one "
                f"shape are needed in {self.where}"
            )

    @contextmanager
    def all_named(self) -> Iterator[None]:
        """Once one image cannot be used, look at all, so that they can be mended at once."""
        try:
            yield
        except UsageError as error:
            raise UsageError(self.complaint()) from error

    def complaint(self) -> str:
        """One sentence on all that cannot be used, of which the first ones are named."""
        faults, shape = list[str](), None
        for name in tqdm(self.names, "looking for images like that", unit=" images", disable=None):
            try:
                image = self.decode(name)
                shape = shape or _shape(image)
                self.compare(name, image, shape)
            except UsageError as error:
                faults.append(str(error))
        told = "; ".join(faults[:MOST_NAMED])
        if len(faults) == 1:
            return told
        more = len(faults) - MOST_NAMED
        rest = f"; and {more:,} more" if more > 0 else ""
        return f"{len(faults):,} of {len(self.names):,} images cannot be used: {told}{rest}"


def _pictures(files: _Files, labels: Labels) -> Pictures:
    with files.all_named():
        shape = _shape(files.decode(files.names[0]))
    return len(files.names), shape, partial(files.read, shape), labels


def _files_below(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    entered = {folder.resolve()}
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        relative = Path(parent).relative_to(folder)
        yield from ((relative / file).as_posix() for file in files)
        below = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in below:
            if (place := Path(parent, name).resolve()) not in entered:
                entered.add(place)
                folders.append(name)


def _images(names: Iterable[str], where: Path) -> tuple[str, ...]:
    """Those of the names that are images, sorted."""
    known = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    images = tuple(
        name
        for name in sorted(set(names))
        if PurePosixPath(name).suffix.lower() in known and "/." not in f"/{name}"
    )
    if not images:
        raise UsageError(f"{where} contains no images ({', '.join(FORMATS)})")
    return images


def _unpacked(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    if archive.getinfo(name).file_size > FILE_LIMIT:
        raise UsageError(f"{name} in {path} is larger than {FILE_LIMIT} bytes")
    try:
        with _opened(archive, path, name) as file:
            return file.read()
    except UNREADABLE_ARRAYS as error:
        raise UsageError(f"{name} in {path} cannot be unpacked: {error}") from error


def _opened(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(name)
    except UNREADABLE_ARRAYS as error:
        raise UsageError(f"{name} in {path} cannot be unpacked: {error}") from error


def _decode(content: bytes, where: Path, name: str) -> Image.Image:
    """Decode to mode L or RGB; what Pillow raises for damage depends on the format."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        pages = getattr(image, "n_frames", 1)
        mode = f"{image.mode}, of 16 bits" if _is_deep(image) else image.mode
        image.load()
        seen_through = "transparency" in image.info or image.mode in ALPHA
        alpha = image.convert("RGBA").getchannel("A").getextrema() if seen_through else (255, 255)
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} in {where}: {error}") from error
    except (*UNREADABLE_ARRAYS, SyntaxError, LookupError, struct.error) as error:
        raise UsageError(f"{name} in {where}: {kind_of(content) or NO_IMAGE}") from error
    if mode not in MODES:
        raise UsageError(f"{name} in {where} has Pillow mode {mode}: {NEEDED}")
    if pages > 1 and image.format != "MPO":  # whose further pages are previews of the first
        raise UsageError(f"{name} in {where} has {pages} pages: one image in each file is needed")
    if alpha[0] != 255:  # of no pixel that has the colour, or the palette's entry, seen through
        raise UsageError(
            f"{name} in {where} has transparent pixels: {NEEDED}, so lay it on a background first"
        )
    image.info.pop("transparency", None)  # means nothing here, and Pillow would warn of it
    return image if MODES[image.mode] == image.mode else image.convert(MODES[image.mode])


def _is_deep(image: ImageFile) -> bool:
    """Whether an image that is not yet decoded has 16 bits a value, of which Pillow drops 8."""
    for tile in image.tile:
        form, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        scaled = tile.codec_name.startswith("ppm") and rest and rest[-1] > 255
        if scaled or str(form).endswith((";16B", ";16L", ";16N")):
            return True
    return False


def _shape(image: Image.Image) -> Shape:
    return len(image.mode), image.height, image.width


def _said(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _classes_of_folders(names: Sequence[str]) -> Tensor | None:
    """Those of the top-level folders in sorted order, if there are several."""
    tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
    classes = {top: index for index, top in enumerate(sorted(set(tops)))}
    return torch.tensor([classes[top] for top in tops]) if len(classes) > 1 else None


def _stated_labels(text: Callable[[], bytes], names: Sequence[str], where: Path) -> Tensor | None:
    try:
        rows = json.loads(text(), object_pairs_hook=partial(_once, where))["labels"]
        stated = _once(where, list(rows.items() if isinstance(rows, dict) else rows or ()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{where}: {LABEL_FILE} must hold {{"labels": [["path/of/image.png", 6], ...]}} '
            'or {"labels": null}'
        ) from error
    if not stated:
        return None
    if missing := [name for name in names if name not in stated]:
        raise UsageError(
            f"{where}: {LABEL_FILE} has no label for {missing[0]}, one of {len(missing)} such"
        )
    labels = [stated[name] for name in names]
    length = len(labels[0]) if isinstance(labels[0], list) else 0
    for name, label in zip(names, labels, strict=True):
        if not (_is_vector(label, length) if length else _is_class(label)):
            needed = f"a vector of {length} numbers" if length else "a class number"
            raise UsageError(f"{where}: {LABEL_FILE} labels {name} {label!r}: {needed} is needed")
    return torch.tensor(labels, dtype=torch.float32 if length else torch.int64)


def _once(where: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs, of which those of one name are equal."""
    found = dict[str, Any]()
    for name, label in pairs:
        if found.setdefault(name, label) != label:
            raise UsageError(
                f"{where}: {LABEL_FILE} lists {name} twice, with {found[name]!r} and {label!r}"
            )
    return found


def _is_class(label: Any) -> bool:
    return type(label) is int and label in range(CLASS_LIMIT)


def _is_vector(label: Any, length: int) -> bool:
    numbers = isinstance(label, list) and all(isinstance(value, int | float) for value in label)
    return numbers and len(label) == length and all(abs(value) < LARGEST for value in label)

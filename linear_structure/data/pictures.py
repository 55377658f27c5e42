"""Image files in a folder or a zip, decoded when asked for.

The order is that of the relative paths with forward slashes, sorted as strings; names with a part
that starts with a dot are left out. Links are followed; a folder that is reached twice counts once.
Pixels are taken as they are stored: a camera's note to turn them is not followed. Labels come from
`dataset.json` at the root, the format of EDM's dataset tool: `{"labels": [["00000/img00000000.png",
6], ...]}` or `{"labels": null}`; where a folder has no such file, from its top-level folders, in
sorted order, if there are several.
"""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from linear_structure.system.errors import UsageError
from linear_structure.system.files import UNREADABLE_ARRAYS

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FILE_LIMIT = 1 << 28  # bytes of one unpacked file of a zip
LABEL_FILE = "dataset.json"
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}  # Pillow's modes, and what they become

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Image files of one shape in a fixed order, with a label each or none at all."""

    where: Path
    names: tuple[str, ...]
    content: Callable[[str], bytes]
    shape: Shape  # C, H, W
    labels: Tensor | None  # int64 (n,)

    def read(self, start: int, stop: int) -> Tensor:
        """Decode the images [start, stop): uint8 (stop - start, C, H, W).

        Raises:
            UsageError: an image is damaged, or has another shape than the first.
        """
        channels, height, width = self.shape
        pixels = np.empty((stop - start, *self.shape), np.uint8)
        for row, name in zip(pixels, self.names[start:stop], strict=True):
            image = _decode(self.content(name), self.where, name)
            if _shape(image) != self.shape:
                raise UsageError(
                    f"{self.where}: images of one shape are needed, but {self.names[0]} is "
                    f"{_said(self.shape)} and {name} is {_said(_shape(image))}"
                )
            flat = np.frombuffer(image.tobytes(), np.uint8)
            row[:] = flat.reshape(height, width, channels).transpose(2, 0, 1)
        return torch.from_numpy(pixels)


def open_folder(folder: Path) -> Pictures:
    """The images below a folder.

    Raises:
        UsageError: there is none, the first is damaged, or the labels do not fit.
    """
    names = _images(_files_below(folder), folder)
    stated = folder / LABEL_FILE
    if stated.exists():
        labels = _stated_labels(stated.read_bytes(), names, folder)
    else:
        labels = _folder_labels(names)
    return _pictures(folder, names, lambda name: (folder / name).read_bytes(), labels)


def open_zip(path: Path) -> Pictures:
    """The images in a zip file, which stays open as long as the result lives.

    Raises:
        UsageError: it is no zip, has no images, the first is damaged, or the labels do not fit.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        pictures = _pictures_of_zip(path, file)
        opened.pop_all()  # all went well: the file stays open
    return pictures


def _pictures_of_zip(path: Path, file: BinaryIO) -> Pictures:
    try:
        archive = zipfile.ZipFile(file)
    except UNREADABLE_ARRAYS as error:
        raise UsageError(f"{path} is damaged or not a zip file: {error}") from error

    def content(name: str) -> bytes:
        return _unpacked(archive, name, path)

    names = _images(archive.namelist(), path)
    labels = None
    if LABEL_FILE in archive.namelist():
        labels = _stated_labels(content(LABEL_FILE), names, path)
    return _pictures(path, names, content, labels)


def _pictures(
    where: Path, names: tuple[str, ...], content: Callable[[str], bytes], labels: Tensor | None
) -> Pictures:
    first = _decode(content(names[0]), where, names[0])
    return Pictures(where, names, content, _shape(first), labels)


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


def _unpacked(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    if archive.getinfo(name).file_size > FILE_LIMIT:
        raise UsageError(f"{name} in {path} is larger than {FILE_LIMIT} bytes")
    try:
        return archive.read(name)
    except UNREADABLE_ARRAYS as error:
        raise UsageError(f"{name} in {path} cannot be unpacked: {error}") from error


def _decode(content: bytes, where: Path, name: str) -> Image.Image:
    """Decode to mode L or RGB; what Pillow raises for damage depends on the format."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        opaque = _opaque(image)
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} in {where}: {error}") from error
    except (*UNREADABLE_ARRAYS, SyntaxError, LookupError, struct.error) as error:
        raise UsageError(
            f"{name} in {where} is damaged, or not an image ({', '.join(FORMATS)})"
        ) from error
    if image.mode not in MODES:
        raise UsageError(
            f"{name} in {where} has Pillow mode {image.mode}: 8-bit grey or RGB is needed"
        )
    if not opaque:
        raise UsageError(f"{name} in {where} has transparent pixels: lay it on a background first")
    image.info.pop("transparency", None)  # means nothing here, and Pillow would warn of it
    return image if MODES[image.mode] == image.mode else image.convert(MODES[image.mode])


def _opaque(image: Image.Image) -> bool:
    """Whether no pixel has the colour, or the entry of the palette, that is to be seen through."""
    if "transparency" not in image.info:
        return True
    return min(image.convert("RGBA").getchannel("A").tobytes()) == 255


def _shape(image: Image.Image) -> Shape:
    return len(image.mode), image.height, image.width


def _said(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _folder_labels(names: Sequence[str]) -> Tensor | None:
    tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
    classes = {top: index for index, top in enumerate(sorted(set(tops)))}
    return torch.tensor([classes[top] for top in tops]) if len(classes) > 1 else None


def _stated_labels(text: bytes, names: Sequence[str], where: Path) -> Tensor | None:
    try:
        rows = json.loads(text)["labels"]
        stated = None if rows is None else dict(rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{where}: {LABEL_FILE} must hold {{"labels": [["path/of/image.png", 6], ...]}} '
            'or {"labels": null}'
        ) from error
    return None if stated is None else _class_numbers(stated, names, where)


def _class_numbers(stated: dict[str, object], names: Sequence[str], where: Path) -> Tensor:
    numbers = []
    for name in names:
        if name not in stated:
            raise UsageError(f"{where}: {LABEL_FILE} has no label for {name}")
        number = stated[name]
        if type(number) is not int or number not in range(2**31):
            raise UsageError(
                f"{where}: {LABEL_FILE} labels {name} {number!r}: a class number is needed"
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.int64)

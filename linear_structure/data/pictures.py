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
from functools import partial
from pathlib import Path, PurePosixPath

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

Shape = tuple[int, int, int]  # C, H, W
Content = Callable[[str], bytes]  # of a file, by its name

Pictures = tuple[int, Shape, Callable[[int, int], Tensor], Tensor | None]
"""Of n images: n, their shape, what decodes those of [start, stop) to uint8 (stop - start, C, H, W)
or raises `UsageError`, and the labels, int64 (n,)."""


def open_folder(folder: Path) -> Pictures:
    """The images below a folder.

    Raises:
        UsageError: there is none, the first is damaged, or the labels do not fit.
    """
    names = _images(_files_below(folder), folder)
    if (stated := folder / LABEL_FILE).exists():
        labels = _stated_labels(stated.read_bytes(), names, folder)
    else:
        tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
        classes = {top: index for index, top in enumerate(sorted(set(tops)))}
        labels = torch.tensor([classes[top] for top in tops]) if len(classes) > 1 else None
    return _pictures(folder, names, lambda name: (folder / name).read_bytes(), labels)


def open_zip(path: Path) -> Pictures:
    """The images in a zip file, which stays open as long as the result lives.

    Raises:
        UsageError: it is no zip, has no images, the first is damaged, or the labels do not fit.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        try:
            archive = zipfile.ZipFile(file)
        except UNREADABLE_ARRAYS as error:
            raise UsageError(f"{path} is damaged or not a zip file: {error}") from error
        content, labels = partial(_unpacked, archive, path), None
        names = _images(archive.namelist(), path)
        if LABEL_FILE in archive.namelist():
            labels = _stated_labels(content(LABEL_FILE), names, path)
        pictures = _pictures(path, names, content, labels)
        opened.pop_all()  # all went well: the file stays open
    return pictures


def _pictures(
    where: Path, names: tuple[str, ...], content: Content, labels: Tensor | None
) -> Pictures:
    shape = _shape(_decode(content(names[0]), where, names[0]))
    return len(names), shape, partial(_read, where, names, content, shape), labels


def _read(
    where: Path, names: tuple[str, ...], content: Content, shape: Shape, start: int, stop: int
) -> Tensor:
    channels, height, width = shape
    pixels = np.empty((stop - start, *shape), np.uint8)
    for row, name in zip(pixels, names[start:stop], strict=True):
        image = _decode(content(name), where, name)
        if _shape(image) != shape:
            raise UsageError(
                f"{where}: images of one shape are needed, but {names[0]} is {_said(shape)} and "
                f"{name} is {_said(_shape(image))}"
            )
        flat = np.frombuffer(image.tobytes(), np.uint8)
        row[:] = flat.reshape(height, width, channels).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


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
        return archive.read(name)
    except UNREADABLE_ARRAYS as error:
        raise UsageError(f"{name} in {path} cannot be unpacked: {error}") from error


def _decode(content: bytes, where: Path, name: str) -> Image.Image:
    """Decode to mode L or RGB; what Pillow raises for damage depends on the format."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        opaque = True  # no pixel has the colour, or the palette's entry, that is seen through
        if "transparency" in image.info:
            opaque = min(image.convert("RGBA").getchannel("A").tobytes()) == 255
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


def _shape(image: Image.Image) -> Shape:
    return len(image.mode), image.height, image.width


def _said(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _stated_labels(text: bytes, names: Sequence[str], where: Path) -> Tensor | None:
    try:
        rows = json.loads(text)["labels"]
        stated = None if rows is None else dict(rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{where}: {LABEL_FILE} must hold {{"labels": [["path/of/image.png", 6], ...]}} '
            'or {"labels": null}'
        ) from error
    if stated is None:
        return None
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

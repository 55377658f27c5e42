"""Image files in a folder or a zip, decoded when asked for.

The order is that of the relative paths with forward slashes, sorted as strings; names with a part
that starts with a dot are left out. Links are followed; a folder that is reached twice counts once.
Pixels are taken as they are stored: a camera's note to turn them is not followed. Labels come from
`dataset.json` at the root, the format of EDM's dataset tool: `{"labels": [["00000/img00000000.png",
6], ...]}` or `{"labels": null}`; a label may be a vector of numbers instead, and `"classes"` a list
of the classes' names. Where a folder has no such file, both come from its top-level folders, in
sorted order, if there are several.
"""

import io
import json
import os
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor
from tqdm import tqdm

from linear_structure.system.arrays import whole_zip
from linear_structure.system.errors import UsageError
from linear_structure.system.files import UNREADABLE_ARRAYS, check_regular
from linear_structure.system.kinds import kind_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FILE_LIMIT = 1 << 28  # bytes of one unpacked file of a zip
PIXEL_LIMIT = 1 << 26  # of one image, which takes 1.3 GB then, if it is transparent
LABEL_FILE = "dataset.json"
ALPHA = {"LA": "L", "RGBA": "RGB", "PA": "RGB"}  # Pillow's modes, and what they become
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB", **ALPHA}
STEPS = {"L;2": 85, "L;4": 17}  # by which Pillow spreads greys of 2 and 4 bits over 0 to 255
NEEDED = "8-bit grey or RGB is needed"
NO_IMAGE = f"it is damaged, or not an image ({', '.join(FORMATS)})"
UNREADABLE_IMAGES = (*UNREADABLE_ARRAYS, SyntaxError, LookupError, struct.error)
MOST_NAMED = 20  # of images that cannot be used, in one sentence
REMEDY = " (scripts/prepare_images.py makes a dataset of pictures of any kind)"
CLASS_LIMIT = 2**31
LARGEST = 3e38  # that float32 holds

Shape = tuple[int, int, int]  # C, H, W
Content = Callable[[str], bytes]  # of a file, by its name


class Labels(NamedTuple):
    """What images are of."""

    values: Tensor | None = None  # int64 (n,), or vectors, float32 (n, L)
    names: tuple[str, ...] = ()  # of the classes, from 0 on, where they are known


Pictures = tuple[int, Shape, Callable[[int, int], Tensor], Callable[[], Labels]]
"""Of n images: n, their shape, what decodes those of [start, stop) to uint8 (stop - start, C, H, W)
or raises a `UsageError` that names all that cannot be used, and what reads their labels, or raises
a `UsageError` if they do not fit."""


@dataclass(frozen=True)
class Files:
    """Files by their names, with forward slashes, in the folder or zip `where`."""

    where: Path
    names: tuple[str, ...]
    content: Content

    def images(self) -> "Files":
        """Those whose names say that they are images, sorted; UsageError where there is none."""
        return replace(self, names=_images(self.names, self.where))

    def below(self, folder: str) -> "Files":
        """Those whose names begin with that of a folder, such as "photos/", by the rest of them."""
        names = (name.removeprefix(folder) for name in self.names if name.startswith(folder))
        return Files(self.where / folder, tuple(names), lambda name: self.content(folder + name))

    def check_once(self, wanted: Iterable[str]) -> None:
        """Refuse (UsageError) two files of one of the names, as a zip may hold."""
        counts = Counter(self.names)
        if twice := [name for name in wanted if counts[name] > 1]:
            raise UsageError(f"{self.where} holds {twice[0]} twice, one of {len(twice)} such names")

    def labels(self, names: Sequence[str]) -> Labels | None:
        """The labels of the files of these names, where `dataset.json` states any.

        Raises:
            UsageError: it is damaged, or has none for one of them.
        """
        if LABEL_FILE not in self.names:
            return None
        return _stated_labels(partial(self.content, LABEL_FILE), names, self.where)


def images_below(folder: Path) -> tuple[str, ...]:
    """The paths of the images below a folder, from there and with forward slashes, in order.

    Raises:
        UsageError: there is none.
    """
    return files_below(folder).images().names


def open_folder(folder: Path) -> Pictures:
    """The images below a folder.

    Raises:
        UsageError: there is none, or the first cannot be used.
    """
    files = files_below(folder)
    images = _Images(files.images())
    return images.opened(lambda: files.labels(images.names) or classes_of_folders(images.names))


def open_zip(path: Path) -> Pictures:
    """The images in a zip file, which stays open as long as the result lives.

    Raises:
        UsageError: it is no zip, has no images, or two of a name, or the first cannot be used.
    """
    with _archive(path) as archive:
        files = _packed(archive, path)
        images = _Images(files.images())
        for name in {*files.names}.difference(images.names):  # a damaged one may have been an image
            _opened(archive, path, name).close()
        files.check_once((*images.names, LABEL_FILE))
        return images.opened(lambda: files.labels(images.names) or Labels())


def files_below(folder: Path) -> Files:
    """The files below a folder, sorted, but for what lies in folders that start with a dot."""
    names = tuple(sorted(_files_below(folder)))
    return Files(folder, names, partial(_stored, folder))


def files_within(path: Path) -> Files:
    """The files in a zip, which stays open as long as the result lives; UsageError if it is none.

    Of two of a name, the last counts.
    """
    with _archive(path) as archive:
        return _packed(archive, path)


@dataclass(frozen=True)
class _Images:
    """Image files, which are to have one shape."""

    files: Files

    @property
    def names(self) -> tuple[str, ...]:
        return self.files.names

    def opened(self, labels: Callable[[], Labels]) -> Pictures:
        """Those of them, once the first can be used."""
        with self.all_named():
            shape = _shape(self.decode(self.names[0]))
        return len(self.names), shape, partial(self.read, shape), labels

    def decode(self, name: str) -> Image.Image:
        return _decode(self.files.content(name), self.files.where, name)

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
                f"shape are needed in {self.files.where}"
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
            return told + REMEDY
        more = len(faults) - MOST_NAMED
        rest = f"; and {more:,} more" if more > 0 else ""
        return f"{len(faults):,} of {len(self.names):,} images cannot be used: {told}{rest}{REMEDY}"


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


def _stored(folder: Path, name: str) -> bytes:
    path = folder / name
    check_regular(path)
    if path.stat().st_size > FILE_LIMIT:
        raise UsageError(f"{name} in {folder} is larger than {FILE_LIMIT} bytes")
    return path.read_bytes()


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip, which stays open where the block ends well."""
    check_regular(path)
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        try:
            archive = whole_zip(file)
        except UNREADABLE_ARRAYS as error:
            reason = kind_of(path) or error
            raise UsageError(f"{path} is damaged or not a zip file: {reason}") from error
        yield archive
        opened.pop_all()


def _packed(archive: zipfile.ZipFile, path: Path) -> Files:
    return Files(path, tuple(archive.namelist()), partial(_unpacked, archive, path))


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
        image = opened(content)
        pages = getattr(image, "n_frames", 1)
        mode = f"{image.mode}, of 16 bits" if is_deep(image) else image.mode
        image.load()
        seen_through = "transparency" in image.info or image.mode in ALPHA
        alpha = image.convert("RGBA").getchannel("A").getextrema() if seen_through else (255, 255)
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} in {where}: {error}") from error
    except UNREADABLE_IMAGES as error:
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


def opened(content: bytes) -> ImageFile:
    """An image that is not yet decoded; the grey that it states as transparent is as decoded.

    Raises:
        Image.DecompressionBombError: it has more pixels than are decoded here.
        Exception: one of `UNREADABLE_IMAGES`.
    """
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > PIXEL_LIMIT:
        said = f"{image.width:,} x {image.height:,} pixels, and at most {PIXEL_LIMIT:,} are decoded"
        raise Image.DecompressionBombError(said)
    clear = image.info.get("transparency")
    if isinstance(clear, int) and (step := STEPS.get("".join(raw_modes(image)))):
        image.info["transparency"] = clear * step
    return image


def raw_modes(image: ImageFile) -> set[str]:
    """Pillow's words for how values are stored, "I;16B" say, of an image not yet decoded."""
    return {str(form) for _, (form, *_) in _decoders(image)}


def is_deep(image: ImageFile) -> bool:
    """Whether an image that is not yet decoded has 16 bits a value, of which Pillow drops 8."""
    for codec, (form, *rest) in _decoders(image):
        scaled = codec.startswith("ppm") and rest and rest[-1] > 255
        if scaled or str(form).endswith((";16B", ";16L", ";16N")):
            return True
    return False


def _decoders(image: ImageFile) -> list[tuple[str, tuple[Any, ...]]]:
    """Of each tile, the codec and its arguments, of which the first says how values are stored."""
    pairs = ((tile.codec_name, tile.args) for tile in image.tile)
    return [(codec, each if isinstance(each, tuple) else (each,)) for codec, each in pairs]


def _shape(image: Image.Image) -> Shape:
    return len(image.mode), image.height, image.width


def _said(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def classes_of_folders(names: Sequence[str]) -> Labels:
    """Those of the top-level folders in sorted order, if there are several.

    Images beside these folders are a class of their own, `.`, the first one.
    """
    tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
    found = tuple(sorted(set(tops)))
    if len(found) < 2:
        return Labels()
    number = {top: index for index, top in enumerate(found)}
    return Labels(torch.tensor([number[top] for top in tops]), tuple(top or "." for top in found))


def _stated_labels(text: Callable[[], bytes], names: Sequence[str], where: Path) -> Labels:
    try:
        content = json.loads(text(), object_pairs_hook=partial(_once, where))
        rows = content["labels"]
        stated = _once(where, list(rows.items() if isinstance(rows, dict) else rows or ()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{where}: {LABEL_FILE} must hold {{"labels": [["path/of/image.png", 6], ...]}} '
            'or {"labels": null}'
        ) from error
    if not stated:
        return Labels()
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
    values = torch.tensor(labels, dtype=torch.float32 if length else torch.int64)
    classes = content.get("classes")
    named = isinstance(classes, list) and all(isinstance(each, str) for each in classes)
    return Labels(values, tuple(classes) if named else ())


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

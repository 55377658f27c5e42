"""A directory of parameters: plain tensors that load with `weights_only=True`, and their story.

    gaussian    mu.pt (D,) float64, U.pt (D, r) float32, lambdas.pt (r,) float64, descending
    isotropic   mu.pt, s0.pt () float64
    mixture     pi.pt (K,), mu.pt (K, D), U.pt (K, D, r), lambdas.pt (K, r); short ranks padded by 0
    pointcloud  points.npy (N, D) uint8
    spectral    mu.pt, low.pt (C, h, w, C h w) and rest.pt (H, W, C, C) float32, lambdas.pt (D,)
    by_class/<label>/   one such directory for each class

`parameters.json` says which kind it is, what it was made from, and the SHA-256 of each file. The
earlier reproduction wrote three bare tensors, the mean as (3, 32, 32): they load as a Gaussian over
pixels in [-1, 1], and a bare mean alone as the isotropic model with s0 = 0.
"""

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linear_structure.denoise import Model
from linear_structure.gaussian import RANK_TOLERANCE, Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud
from linear_structure.spectral import Spectral
from linear_structure.system.arrays import map_npy, read_torch
from linear_structure.system.errors import UsageError
from linear_structure.system.files import (
    alone_beside,
    digest_of_file,
    digest_of_parts,
    read_sealed,
    replacing_folder,
    write_array,
    write_sealed,
)

FORMAT = 1
STORY = "parameters.json"
KINDS: dict[str, type[Model]] = {
    model.kind: model for model in (Gaussian, Isotropic, GaussianMixture, PointCloud, Spectral)
}
CONTENTS = {STORY, *(file for model in KINDS.values() for file in model.files)}
BY_CLASS = "by_class"


@dataclass(frozen=True)
class Story:
    """What a model was made from."""

    dataset: str  # name or path as given
    digest: str  # SHA-256 of the pixels in order
    count: int  # images used
    image_shape: tuple[int, int, int]  # (C, H, W)
    sigma_data: float  # standard deviation over all values, of pixels on the [-1, 1] scale
    label: int | None = None  # the class, None for all images
    pixel_range: tuple[int, int] | None = (-1, 1)  # None: real numbers, taken as they were
    selection: str | None = None  # which images of the dataset, None for all


@dataclass(frozen=True)
class Parameters:
    """A model read from a directory."""

    model: Model  # float64 mean and eigenvalues, float32 basis
    story: dict[str, Any]  # what parameters.json says, empty for bare tensors
    digest: str  # SHA-256 of the values, whatever file they came from
    notice: str = ""  # one sentence for the user, or nothing


def save(
    directory: str | Path, model: Model, story: Story, by_class: Iterable[tuple[Model, Story]] = ()
) -> None:
    """Write a parameter directory whole or not at all, in place of an earlier one.

    Of several processes that write it at once, each waits for the one before: a hidden lock stays
    beside it.

    Args:
        directory: made, with its parents, if it does not exist.
        by_class: models of single classes, each with a story that names its label.

    Raises:
        UsageError: as `check_target`.
        ValueError: a point cloud is not of uint8 pixels.
    """
    directory = Path(directory)
    with alone_beside(directory.resolve(), f"writes {directory}"):
        check_target(directory)  # not before: another process may be replacing it
        with replacing_folder(directory) as folder:
            _write(folder, model, story)
            for class_model, class_story in by_class:
                _write(folder / BY_CLASS / str(class_story.label), class_model, class_story)


def check_target(directory: str | Path) -> None:
    """Refuse to replace what `save` did not write.

    Raises:
        UsageError: the directory exists and holds something else, or is where a disk is mounted,
            which cannot be renamed; the message says what to do.
    """
    directory = Path(directory)
    if directory.resolve().is_mount():  # as it stands, . would be one
        raise UsageError(f"a disk is mounted at {directory}: name a new directory within it")
    known = (
        path.name in CONTENTS if path.is_file() else path.name == BY_CLASS or path.name.isdecimal()
        for path in directory.rglob("*")
    )
    ours = directory.is_dir() and (
        not any(directory.iterdir()) or ((directory / STORY).exists() and all(known))
    )
    if directory.exists() and not ours:
        raise UsageError(f"{directory} exists and was not made by this: name a new directory")


def _write(folder: Path, model: Model, story: Story) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.tensors()
    for file in model.files:
        _write_tensor(folder / file, tensors[Path(file).stem])
    floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
    description = {
        "format": FORMAT,
        "kind": model.kind,
        "rank_rule": f"eigenvalues above {RANK_TOLERANCE} of the largest",
        "dtype": {name: str(value.dtype)[6:] for name, value in floats.items()},
        "files": {path.name: digest_of_file(path) for path in folder.glob("*.*")},
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        **asdict(story),
    }
    write_sealed(folder / STORY, description)


def _write_tensor(path: Path, value: Tensor) -> None:
    if path.suffix == ".npy":
        if value.dtype != torch.uint8:
            raise ValueError(f"{path.stem} of {value.dtype}: only uint8 pixels are kept in files")
        write_array(path, value.cpu().numpy())
    else:
        content = io.BytesIO()
        own = value.cpu().clone().contiguous()  # of a view all of its storage would be kept
        torch.save(own, content)  # to a full disk it would raise no OSError
        path.write_bytes(content.getbuffer())


def load(directory: str | Path, eigenvalue_scale: float = 1.0) -> Parameters:
    """Read a parameter directory.

    Args:
        directory: as `save` or the earlier reproduction wrote it.
        eigenvalue_scale: factor on the eigenvalues; 4 where they describe pixels in [0, 1].

    Raises:
        UsageError: a file is missing, unreadable, changed, or not what its kind asks for.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory: make it with get_parameters.py")
    if not 0 < eigenvalue_scale < float("inf"):
        raise UsageError(f"eigenvalue scale {eigenvalue_scale}: expected a positive number")
    story = read_story(directory)
    kind = story.get("kind", "gaussian") if story else _bare_kind(directory)
    if kind not in tuple(KINDS):
        raise UsageError(f"{directory / STORY}: unknown kind {kind!r}, expected {', '.join(KINDS)}")
    optional = () if story else Isotropic.files[1:]
    files = [
        file for file in KINDS[kind].files if file not in optional or (directory / file).exists()
    ]
    tensors = {Path(file).stem: _read(directory, file) for file in files}
    try:
        model = KINDS[kind].from_tensors(tensors)
    except ValueError as error:
        raise UsageError(f"{directory}: {error}") from error
    if eigenvalue_scale != 1.0:
        model = model.rescale(eigenvalue_scale)
    notice = "" if story else f"{directory} has no {STORY}: {kind}, taken as pixels in [-1, 1]"
    if "pixel_range" in story and story["pixel_range"] is None:
        notice = f"{directory} describes real numbers as they were, not pixels in [-1, 1]"
    return Parameters(model, story, digest(model), notice)


def _bare_kind(directory: Path) -> str:
    """Of tensors that nothing describes: a mean alone is isotropic."""
    spread = any((directory / file).exists() for file in Gaussian.files[1:])
    return Gaussian.kind if spread or not (directory / "mu.pt").exists() else Isotropic.kind


def load_by_class(directory: str | Path, eigenvalue_scale: float = 1.0) -> dict[int, Parameters]:
    """The models of `by_class/<label>/`, by label, as `load` reads them; empty without any."""
    folders = [path for path in (Path(directory) / BY_CLASS).glob("*") if path.name.isdecimal()]
    ordered = sorted(folders, key=lambda path: int(path.name))
    return {int(path.name): load(path, eigenvalue_scale) for path in ordered}


def digest(model: Model) -> str:
    """SHA-256 of a model's values in the precision that files keep."""
    parts: list[str | Tensor] = [model.kind]
    for name, value in model.tensors().items():
        parts += [f"{name}{tuple(value.shape)}", value]
    return digest_of_parts(parts)


def read_story(directory: str | Path) -> dict[str, Any]:
    """What parameters.json says, once its files are the ones it lists; empty for bare tensors.

    Raises:
        UsageError: it is unreadable, or a file is missing or changed.
    """
    directory = Path(directory)
    path = directory / STORY
    if not path.exists():
        return {}
    try:
        story = read_sealed(path)
    except ValueError as error:
        sentence = f"{path} is not JSON as it was written ({error}): make the directory again"
        raise UsageError(sentence) from error
    if not isinstance(story, dict) or story.get("format") != FORMAT:
        raise UsageError(f"{path} is not of format {FORMAT}: make the directory again")
    files = story.get("files")
    if not isinstance(files, dict) or not files.keys() <= CONTENTS:
        raise UsageError(f"{path} does not list its files: make the directory again")
    for name, digest_then in files.items():
        if digest_of_file(_existing(directory, name)) != digest_then:
            raise UsageError(f"{directory / name} has changed since it was made: make it again")
    return story


def _existing(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        raise UsageError(f"{directory} holds no {name}: it is no complete parameter directory")
    return directory / name


def _read(directory: Path, name: str) -> Tensor:
    path = _existing(directory, name)
    if path.suffix != ".npy":
        return _read_tensor(path)
    try:
        return torch.from_numpy(np.array(map_npy(path)))
    except TypeError as error:
        raise UsageError(f"{path} holds no numbers: make the directory again") from error


def _read_tensor(path: Path) -> Tensor:
    """One finite tensor of floats, all of whose values are in the file."""
    value = read_torch(path)
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"{path} holds no tensor of float32 or float64: make it again")
    stored = value.device.type == "cpu" and not value.is_nested and value.layout == torch.strided
    if not stored or value.is_neg() or value.nbytes > value.untyped_storage().nbytes():
        raise UsageError(f"{path} holds a tensor that is nested, sparse or a view of fewer values")
    if not bool(torch.isfinite(value).all()):
        raise UsageError(f"{path} holds NaN or infinity: make it again")
    return value.detach()

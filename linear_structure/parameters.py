"""A directory of parameters: plain tensors that load with `weights_only=True`, and their story.

    gaussian    mu.pt (D,) float64, U.pt (D, r) float32, lambdas.pt (r,) float64, descending
    isotropic   mu.pt, s0.pt () float64
    mixture     pi.pt (K,), mu.pt (K, D), U.pt (K, D, r), lambdas.pt (K, r); short ranks padded by 0
    pointcloud  points.npy (N, D) uint8
    by_class/<label>/   one such directory for each class

`parameters.json` says which kind it is, what it was made from, and the SHA-256 of each file. The
earlier reproduction wrote three bare tensors, the mean as (3, 32, 32): they load as a Gaussian over
pixels in [-1, 1].
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from linear_structure.gaussian import RANK_TOLERANCE, Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud
from linear_structure.system.errors import UsageError
from linear_structure.system.files import (
    UNREADABLE_TENSORS,
    alone,
    digest_of_file,
    replacing_folder,
    write_array,
    write_json,
)

FORMAT = 1
STORY = "parameters.json"
Model = Gaussian | Isotropic | GaussianMixture | PointCloud
KINDS: dict[str, type] = {
    "gaussian": Gaussian,
    "isotropic": Isotropic,
    "mixture": GaussianMixture,
    "pointcloud": PointCloud,
}
CONTENTS = {STORY, *(f"{name}.pt" for name in ("mu", "U", "lambdas", "s0", "pi")), "points.npy"}
BY_CLASS = "by_class"
NEGATIVE_TOLERANCE = 1e-6  # of the sum of all: what rounding in float32 can leave
ORTHONORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Story:
    """What a model was made from.

    Attributes:
        dataset: name or path as given.
        digest: SHA-256 of the pixels in order.
        count: images used.
        image_shape: (C, H, W).
        sigma_data: pixel standard deviation on the [-1, 1] scale.
        label: the class, None for all images.
    """

    dataset: str
    digest: str
    count: int
    image_shape: tuple[int, int, int]
    sigma_data: float
    label: int | None = None


@dataclass(frozen=True)
class Parameters:
    """A model read from a directory.

    Attributes:
        model: the denoiser; float64 mean and eigenvalues, float32 basis.
        story: what parameters.json says, empty for bare tensors.
        digest: SHA-256 of the values, whatever file they came from.
        notice: one sentence for the user, or nothing.
    """

    model: Model
    story: dict[str, Any]
    digest: str
    notice: str = ""

    @property
    def kind(self) -> str:
        """Name of the model's kind, as on the command line."""
        return kind_of(self.model)


def kind_of(model: Model) -> str:
    """`gaussian`, `isotropic`, `mixture` or `pointcloud`."""
    return next(kind for kind, cls in KINDS.items() if isinstance(model, cls))


def save(
    directory: Path, model: Model, story: Story, by_class: Iterable[tuple[Model, Story]] = ()
) -> None:
    """Write a parameter directory whole or not at all, in place of an earlier one.

    Of several processes that write it at once, each waits for the one before: a hidden lock stays
    beside it.

    Args:
        directory: made, with its parents, if it does not exist.
        model: for all images.
        story: what it was made from.
        by_class: models of single classes, each with a story that names its label.

    Raises:
        UsageError: the directory exists and holds something else.
        ValueError: a point cloud is not of uint8 pixels.
    """
    place = directory.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_name(f".{place.name}.lock")
    with alone(lock, f"writes {directory}"):
        check_target(directory)  # not before: another process may be replacing it
        with replacing_folder(directory) as folder:
            _write(folder, model, story)
            for class_model, class_story in by_class:
                _write(folder / BY_CLASS / str(class_story.label), class_model, class_story)


def check_target(directory: Path) -> None:
    """Refuse to replace what `save` did not write.

    Raises:
        UsageError: the directory exists and holds something else, or is where a disk is mounted,
            which cannot be renamed; the message says what to do.
    """
    if directory.is_mount():
        raise UsageError(f"a disk is mounted at {directory}: name a new directory within it")
    if directory.exists() and not _is_ours(directory):
        raise UsageError(f"{directory} exists and was not made by this: name a new directory")


def _is_ours(directory: Path) -> bool:
    """Whether it is a folder, empty or with a description, of nothing but parameters."""
    if not directory.is_dir():
        return False
    known = (
        path.name in CONTENTS if path.is_file() else path.name == BY_CLASS or path.name.isdecimal()
        for path in directory.rglob("*")
    )
    return not any(directory.iterdir()) or ((directory / STORY).exists() and all(known))


def _write(folder: Path, model: Model, story: Story) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in _tensors(model).items():
        content = io.BytesIO()
        torch.save(value.clone().contiguous(), content)  # to a full disk it would raise no OSError
        (folder / f"{name}.pt").write_bytes(content.getbuffer())
    if isinstance(model, PointCloud):
        if model.points.dtype != torch.uint8:
            raise ValueError(f"points of {model.points.dtype}: only uint8 pixels are kept in files")
        write_array(folder / "points.npy", model.points.numpy())
    write_json(folder / STORY, _described(folder, model, story))


def load(directory: Path, eigenvalue_scale: float = 1.0) -> Parameters:
    """Read a parameter directory.

    Args:
        directory: as `save` or the earlier reproduction wrote it.
        eigenvalue_scale: factor on the eigenvalues; 4 where they describe pixels in [0, 1].

    Raises:
        UsageError: a file is missing, unreadable, changed, or not what its kind asks for.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory: make it with get_parameters.py")
    if not 0 < eigenvalue_scale < float("inf"):
        raise UsageError(f"eigenvalue scale {eigenvalue_scale}: expected a positive number")
    story = _read_story(directory)
    kind = story.get("kind", "gaussian")
    if kind not in tuple(KINDS):
        raise UsageError(f"{directory / STORY}: unknown kind {kind!r}, expected {', '.join(KINDS)}")
    model = _READERS[kind](directory)
    if eigenvalue_scale != 1.0:
        model = _rescaled(model, eigenvalue_scale)
    notice = "" if story else f"{directory} has no {STORY}: taken as pixels in [-1, 1]"
    return Parameters(model, story, digest(model), notice)


def load_by_class(directory: Path, eigenvalue_scale: float = 1.0) -> dict[int, Parameters]:
    """The models of `by_class/<label>/`, by label, as `load` reads them; empty without any."""
    folders = [path for path in (directory / BY_CLASS).glob("*") if path.name.isdecimal()]
    ordered = sorted(folders, key=lambda path: int(path.name))
    return {int(path.name): load(path, eigenvalue_scale) for path in ordered}


def digest(model: Model) -> str:
    """SHA-256 of a model's values in the precision that files keep."""
    sha = hashlib.sha256(kind_of(model).encode())
    values = _tensors(model)
    if isinstance(model, PointCloud):
        values = {"points": model.points}
    for name, value in values.items():
        sha.update(f"{name}{tuple(value.shape)}".encode())
        sha.update(value.contiguous().numpy().data)
    return sha.hexdigest()


def _tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of a model by file name, in the precision that files keep."""
    match model:
        case Gaussian():
            g = model.truncated()
            return {"mu": g.mean.double(), "U": g.basis.float(), "lambdas": g.eigenvalues.double()}
        case Isotropic(mean, s0):
            return {"mu": mean.double(), "s0": torch.tensor(s0, dtype=torch.float64)}
        case GaussianMixture(weights, components):
            stacks = [_tensors(component) for component in components]
            stacked = {name: _stacked([s[name] for s in stacks]) for name in stacks[0]}
            return {"pi": weights.double(), **stacked}
        case PointCloud():
            return {}


def _stacked(values: list[Tensor]) -> Tensor:
    """Stack along a new first axis; zeros fill up shorter last axes."""
    longest = max(value.shape[-1] for value in values)
    return torch.stack([pad(value, (0, longest - value.shape[-1])) for value in values])


def _described(folder: Path, model: Model, story: Story) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind_of(model),
        "pixel_range": [-1, 1],
        "rank_rule": f"eigenvalues above {RANK_TOLERANCE} of the largest",
        "dtype": {name: str(value.dtype)[6:] for name, value in _tensors(model).items()},
        "files": {path.name: digest_of_file(path) for path in folder.glob("*.*")},
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        **asdict(story),
    }


def _read_story(directory: Path) -> dict[str, Any]:
    path = directory / STORY
    if not path.exists():
        return {}
    try:
        story = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}): make the directory again") from error
    if not isinstance(story, dict) or story.get("format") != FORMAT:
        raise UsageError(f"{path} is not of format {FORMAT}: make the directory again")
    _check_files(directory, story)
    return story


def _check_files(directory: Path, story: dict[str, Any]) -> None:
    files = story.get("files")
    if not isinstance(files, dict) or not files.keys() <= CONTENTS:
        raise UsageError(f"{directory / STORY} does not list its files: make the directory again")
    for name, digest_then in files.items():
        if digest_of_file(_existing(directory, name)) != digest_then:
            raise UsageError(f"{directory / name} has changed since it was made: make it again")


def _existing(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        raise UsageError(f"{directory} holds no {name}: it is no complete parameter directory")
    return directory / name


def _read(directory: Path, name: str) -> Tensor:
    """One finite tensor of floats; its checksums, which torch ignores, are tested first."""
    path = _existing(directory, f"{name}.pt")
    content = io.BytesIO(path.read_bytes())
    try:
        damaged = zipfile.ZipFile(content).testzip()
        content.seek(0)
        value = torch.load(content, map_location="cpu", weights_only=True)
    except UNREADABLE_TENSORS as error:
        raise UsageError(f"{path} is no readable tensor file: make it again") from error
    if damaged:
        raise UsageError(f"{path} is damaged: make it again")
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"{path} holds no tensor of float32 or float64: make it again")
    if value.layout != torch.strided or not bool(torch.isfinite(value).all()):
        raise UsageError(f"{path} holds NaN or infinity, or is sparse: make it again")
    return value.detach()


def _read_gaussian(directory: Path) -> Gaussian:
    mean, basis, eigenvalues = (_read(directory, name) for name in ("mu", "U", "lambdas"))
    return _checked(mean.flatten(), basis, eigenvalues, directory)


def _checked(mean: Tensor, basis: Tensor, eigenvalues: Tensor, directory: Path) -> Gaussian:
    """A Gaussian in the standard form: descending eigenvalues, the rank rule applied."""
    dim, rank = mean.numel(), eigenvalues.numel()
    if (mean.shape, basis.shape, eigenvalues.shape) != ((dim,), (dim, rank), (rank,)):
        raise UsageError(
            f"{directory}: mu {tuple(mean.shape)}, U {tuple(basis.shape)} and lambdas "
            f"{tuple(eigenvalues.shape)} do not fit: expected (D,), (D, r) and (r,)"
        )
    order = eigenvalues.argsort(descending=True, stable=True)
    eigenvalues, basis = eigenvalues[order].double(), basis[:, order].float()
    if bool((eigenvalues < -NEGATIVE_TOLERANCE * eigenvalues.abs().sum()).any()):
        lowest = float(eigenvalues.min())
        raise UsageError(f"{directory}: lambdas holds {lowest:g}, a variance below 0")
    gaussian = Gaussian(mean.double(), basis, eigenvalues).truncated()
    probe = torch.linspace(1, 2, gaussian.basis.shape[1])  # no zeros: every column counts
    error = gaussian.basis.T @ (gaussian.basis @ probe) - probe
    stretched = (gaussian.basis.norm(dim=0) - 1).abs() > ORTHONORMAL_TOLERANCE
    if bool(stretched.any()) or float(error.norm()) > ORTHONORMAL_TOLERANCE * float(probe.norm()):
        raise UsageError(f"{directory}: the columns of U are not orthonormal")
    return gaussian


def _read_isotropic(directory: Path) -> Isotropic:
    s0 = _read(directory, "s0")
    if s0.numel() != 1 or float(s0) < 0:
        raise UsageError(f"{directory / 's0.pt'}: expected one standard deviation, 0 or more")
    return Isotropic(_read(directory, "mu").flatten().double(), float(s0))


def _read_mixture(directory: Path) -> GaussianMixture:
    weights, *parts = (_read(directory, name) for name in ("pi", "mu", "U", "lambdas"))
    if weights.ndim != 1 or any(part.shape[:1] != weights.shape for part in parts):
        raise UsageError(f"{directory}: pi, mu, U and lambdas do not count the same components")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > ORTHONORMAL_TOLERANCE:
        raise UsageError(f"{directory / 'pi.pt'}: expected positive weights of sum 1")
    components = (_checked(m, u, lam, directory) for m, u, lam in zip(*parts, strict=True))
    return GaussianMixture(weights.double(), tuple(components))


def _read_points(directory: Path) -> PointCloud:
    path = _existing(directory, "points.npy")
    try:
        with path.open("rb") as file:
            points = np.lib.format.read_array(file, allow_pickle=False)
    except UNREADABLE_TENSORS as error:
        raise UsageError(f"{path} is no readable array: make the directory again") from error
    if points.dtype != np.uint8 or points.ndim != 2 or not points.size:
        raise UsageError(f"{path}: expected uint8 of shape (N, D), N >= 1")
    return PointCloud(torch.from_numpy(points))


def _rescaled(model: Model, factor: float) -> Model:
    match model:
        case Gaussian(mean, basis, eigenvalues):
            return Gaussian(mean, basis, eigenvalues * factor)
        case GaussianMixture(weights, components):
            scaled = (Gaussian(c.mean, c.basis, c.eigenvalues * factor) for c in components)
            return GaussianMixture(weights, tuple(scaled))
        case _:
            raise UsageError(f"a model of kind {kind_of(model)} has no eigenvalues to rescale")


_READERS: dict[str, Callable[[Path], Model]] = {
    "gaussian": _read_gaussian,
    "isotropic": _read_isotropic,
    "mixture": _read_mixture,
    "pointcloud": _read_points,
}

"""Feature networks: uint8 images in, features out, for distances between sets of images.

Published FIDs rest on one network, `inception`; features of ours come from a small classifier,
`classifier`, and their distance goes by another name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from edm.evaluation import classifier
from linear_structure.system.arrays import read_torch
from linear_structure.system.download import Source, fetch
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of

PIECE = 64  # images that are resized at once
RELEASES = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
MIRROR = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
WEIGHTS = Source(
    urls=(
        f"{RELEASES}/weights-inception-2015-12-05-6726825d.pth",
        f"{MIRROR}/pt_inception-2015-12-05-6726825d.pth",
    ),
    name="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size_limit=95_628_359,
)


class Features(Protocol):
    """A fixed map from images to vectors, between whose Gaussians a distance is taken."""

    @property
    def name(self) -> str:
        """Which network, and in which arithmetic: part of what makes two results comparable."""

    @property
    def distance_name(self) -> str:
        """What the Frechet distance on these features is called: "FID" for Inception alone."""

    @property
    def dim(self) -> int:
        """Length of a feature vector."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, dim) float32 of uint8 images (n, C, H, W); ValueError for other images."""


@dataclass(frozen=True)
class Resized:
    """Features of images that are first brought to the size that their network learned on.

    Images that all have this size need it not: their features go by the plain name.
    """

    features: Features
    side: int  # pixels

    @property
    def name(self) -> str:
        return f"{self.features.name}-of-{self.side}-pixels"

    @property
    def distance_name(self) -> str:
        return self.features.distance_name

    @property
    def dim(self) -> int:
        return self.features.dim

    @property
    def digest(self) -> str:
        """Of the weights and the side: features of images as they are do not compare."""
        return digest_of([self.features.digest, self.side])

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(resized(images, self.side))

    def __str__(self) -> str:
        return f"{self.distance_name} is of images brought to {self.side} x {self.side}"


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 images (n, C, H, W) brought to (n, C, side, side), whose sides need not be equal.

    By antialiased bicubic interpolation, rounded to whole values.
    """
    parts = []
    for piece in images.split(PIECE):
        values = F.interpolate(piece.float(), (side, side), mode="bicubic", antialias=True)
        parts.append(values.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def load(
    path: str | Path | None = None, tf32: bool = False, device: torch.device | str = "cpu"
) -> Features:
    """The feature network whose weights are in a file, on `device`, ready to use.

    Args:
        path: a state dict of Inception as torch saves it, or a classifier of ours (safetensors);
            by default the published Inception, fetched once.
        tf32: see `Inception`; a classifier ignores it.
        device: where it computes.

    Raises:
        UsageError: the file holds something else.
        WorkError: the published weights cannot be fetched.
    """
    path = Path(path) if path else fetch(WEIGHTS)
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of length, then JSON
    if is_safetensors:
        return classifier.load(path).to(device)
    from edm.evaluation.inception import Inception  # takes seconds

    return Inception(_state_dict(path), tf32).to(device)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        state = read_torch(path)
    except UsageError as error:
        raise UsageError(
            f"{error}; it is not a file of weights: expected safetensors or a state dict of torch"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{path} is not a file of weights: it holds no state dict")
    return state

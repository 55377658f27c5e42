"""What a training learns from: the order in which it is seen, and what one forward pass gets.

Both are functions of a seed and a position alone, so that a training can stop and continue, and be
shared by processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from edm.training.state import mixed
from linear_structure.data.plane import Draw
from linear_structure.images import from_uint8
from linear_structure.system.files import digest_of_tensor

ORDER, NOISE, POINTS = 0, 1, 2  # streams of random numbers


class Piece(NamedTuple):
    """What one forward pass sees: a seed, images in [-1, 1], labels as vectors if conditional."""

    seed: int
    images: Tensor
    class_labels: Tensor | None


class Source(Protocol):
    """What a training learns from."""

    @property
    def identity(self) -> dict[str, str]:
        """What tells it from other data."""

    def order(self, batch: int, seed: int, position: int) -> Iterator[Tensor]:
        """Endless batches of indices (batch,), from a position, in images, on."""

    def piece(self, seed: int, index: Tensor) -> Piece:
        """The images at `index` (b,), and what random numbers in this pass start from."""


class Drawn(Source, Protocol):
    """What makes its images when they are asked for, and says of which shape they are."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def label_dim(self) -> int:
        """Number of classes, or length of labels that are vectors; 0 without labels."""


def resident(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device where they take at most half of its free memory, or as they are."""
    if device.type != "cuda" or values.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return values
    return values.to(device)


def rows(values: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """`values[index]` on a device, which nothing waits for; index (b,) lies on the CPU."""
    if values.device.type == device.type:
        return values[moved(index, device)]
    return moved(values[index], device)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device, which nothing waits for."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class Data(Source):
    """Images (n, C, H, W) uint8 in memory of the CPU or the device, and the device of batches.

    Labels are classes (n,), or vectors (n, label_dim).
    """

    images: Tensor
    labels: Tensor | None
    label_dim: int
    device: torch.device

    @property
    def identity(self) -> dict[str, str]:
        classes = self.labels if self.label_dim else None
        told = {} if classes is None else {"labels": digest_of_tensor(classes)}
        return {**told, "images": digest_of_tensor(self.images)}

    def order(self, batch: int, seed: int, position: int) -> Iterator[Tensor]:
        return batches(len(self.images), batch, seed, position)

    def piece(self, seed: int, index: Tensor) -> Piece:
        """The images at `index` (b,), channels last."""
        images = from_uint8(rows(self.images, index, self.device))
        images = images.contiguous(memory_format=torch.channels_last)
        if not self.label_dim or self.labels is None:
            return Piece(seed, images, None)
        labels = rows(self.labels, index, self.device)
        labels = F.one_hot(labels, self.label_dim) if labels.ndim == 1 else labels
        return Piece(seed, images, labels.float())


@dataclass(frozen=True)
class Points(Source):
    """Points (b, 2) of a distribution in the plane, drawn anew for each piece: none comes twice.

    A network takes them for images of two channels and one pixel, of which the pixel's axes are
    left out: `D(x, sigma)` with x (B, 2).

    Attributes:
        name: what tells it from other distributions.
        device: that pieces go to.
    """

    shape: ClassVar[tuple[int, int, int]] = (2, 1, 1)
    label_dim: ClassVar[int] = 0

    name: str
    draw: Draw
    device: torch.device

    @property
    def identity(self) -> dict[str, str]:
        return {"images": self.name}

    def order(self, batch: int, seed: int, position: int) -> Iterator[Tensor]:
        while True:
            yield torch.arange(position, position + batch)
            position += batch

    def piece(self, seed: int, index: Tensor) -> Piece:
        """As many points as `index` has, whatever it says: float32."""
        generator = Generator().manual_seed(mixed(seed, POINTS))
        points = self.draw(len(index), generator)
        return Piece(seed, points.to(self.device, torch.float32), None)


def batches(count: int, batch: int, seed: int, position: int = 0) -> Iterator[Tensor]:
    """Endless shuffled passes over `count` indices, cut into batches (batch,), from a position on.

    A batch may end one pass and begin the next.
    """
    epoch, done = divmod(position, count)
    queue = _shuffled(count, seed, epoch)[done:]
    while True:
        while len(queue) < batch:
            epoch += 1
            queue = torch.cat([queue, _shuffled(count, seed, epoch)])
        yield queue[:batch]
        queue = queue[batch:]


def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mixed(seed, ORDER, epoch))
    return torch.randperm(count, generator=generator)

"""Training of a denoiser: what one step does, and the state from which the next one continues.

No generator's state is carried along. The order of the images is a function of (seed, position),
and each piece of a batch seeds the generators with (seed, position of its first image) before
dropout, sigmas, augmentation and noise are drawn. So `images_seen` is the whole random state: a run
that stops and continues, and one shared by any number of processes in pieces of the same size, draw
the same numbers.

A batch is cut into pieces, each one forward and one backward pass; process r of R takes the pieces
r, r + R, ... The gradient is that of the batch mean of the summed squared errors, as published
(Karras et al. 2022): learning rate `rate min(images_seen / ramp, 1)`, so 0 in the first step, NaN
in a gradient becomes 0 and infinity 1e5; then Adam, then the moving average.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from edm.training import ema
from edm.training.recipes import Objective, Recipe
from edm.training.state import State, mixed
from linear_structure.images import from_uint8
from linear_structure.system.machine import rank, world_size

GRADIENT_LIMIT = 1e5
ORDER, NOISE = 0, 1  # streams of random numbers


class Piece(NamedTuple):
    """What one forward pass sees: a seed, images in [-1, 1], one-hot classes if conditional."""

    seed: int
    images: Tensor
    class_labels: Tensor | None


@dataclass(frozen=True)
class Data:
    """Images (n, C, H, W) uint8 and classes (n,) in memory, and the device that batches go to."""

    images: Tensor
    labels: Tensor | None
    label_dim: int
    device: torch.device

    def piece(self, seed: int, index: Tensor) -> Piece:
        """The images at `index` (b,), channels last."""
        images = from_uint8(self._moved(self.images[index]))
        images = images.contiguous(memory_format=torch.channels_last)
        if not self.label_dim or self.labels is None:
            return Piece(seed, images, None)
        labels = F.one_hot(self._moved(self.labels[index]), self.label_dim)
        return Piece(seed, images, labels.float())

    def _moved(self, values: Tensor) -> Tensor:
        pinned = values.pin_memory() if self.device.type == "cuda" else values
        return pinned.to(self.device, non_blocking=True)


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


def accumulate(
    network: nn.Module, objective: Objective, pieces: Sequence[Piece], scale: float
) -> Tensor:
    """Add the gradient of `scale` times the summed error of all pieces; return that sum, ().

    Processes exchange gradients once, in the last piece.
    """
    total = torch.zeros((), device=pieces[0].images.device)
    for i, (seed, images, class_labels) in enumerate(pieces, 1):
        waits = isinstance(network, DistributedDataParallel) and i < len(pieces)
        with network.no_sync() if waits else nullcontext():  # type: ignore[operator]
            torch.manual_seed(seed)
            error = objective(network, images, class_labels).sum()
            (scale * error).backward()
        total += error.detach()
    return total


def clean(parameters: Iterator[nn.Parameter]) -> None:
    """Replace NaN by 0 and infinities by +-1e5 in the gradients, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            limit = GRADIENT_LIMIT
            torch.nan_to_num(parameter.grad, 0, limit, -limit, out=parameter.grad)


@dataclass(frozen=True)
class Trainer:
    """Takes steps: the recipe, the data, the loss, and the network as it is called.

    Attributes:
        forward: the state's network itself, or what distributes it.
    """

    recipe: Recipe
    data: Data
    objective: Objective
    forward: nn.Module

    def steps(self, state: State) -> Iterator[Tensor]:
        """Train to the end of the recipe; yield after each step this process's summed error, ()."""
        recipe, position = self.recipe, state.images_seen
        order = batches(len(self.data.images), recipe.batch, recipe.seed, position)
        while state.images_seen < recipe.duration:
            yield self.step(state, next(order))

    def step(self, state: State, index: Tensor) -> Tensor:
        """Train on the images at `index` (batch,)."""
        recipe, seen, size = self.recipe, state.images_seen, self.recipe.piece
        pieces = [
            self.data.piece(mixed(recipe.seed, NOISE, seen + start), index[start : start + size])
            for start in range(rank() * size, len(index), world_size() * size)
        ]
        error = accumulate(self.forward, self.objective, pieces, world_size() / recipe.batch)
        clean(state.network.parameters())
        share = min(seen / recipe.ramp, 1) if recipe.ramp else 1
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * share
        state.optimizer.step()
        state.optimizer.zero_grad()
        decay = ema.Ema(recipe.ema_halflife, recipe.ema_ramp).decay(recipe.batch, seen)
        ema.update(state.average, state.network, decay)
        state.images_seen += recipe.batch
        return error

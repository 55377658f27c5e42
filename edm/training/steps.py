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

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edm.training import ema
from edm.training.data import NOISE, Piece, Source
from edm.training.recipes import Objective, Recipe
from edm.training.state import State, mixed
from linear_structure.system.machine import rank, world_size

GRADIENT_LIMIT = 1e5


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


def joined_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Zeros (n,) of which each parameter's gradient is from now on a part, in its own layout.

    One operation on the whole is one on every gradient.
    """
    trained = [each for each in parameters if each.requires_grad]
    joined = trained[0].new_zeros(sum(each.numel() for each in trained))
    for each, part in zip(trained, joined.split([each.numel() for each in trained]), strict=True):
        each.grad = part.as_strided(each.shape, each.stride(), part.storage_offset())
    return joined


def clean(gradients: Tensor) -> None:
    """Replace NaN by 0 and infinities by +-1e5, in place."""
    torch.nan_to_num(gradients, 0, GRADIENT_LIMIT, -GRADIENT_LIMIT, out=gradients)


@dataclass(frozen=True)
class Trainer:
    """Takes steps: the recipe, the data, the loss, and the network as it is called.

    Attributes:
        forward: the state's network itself, or what distributes it.
    """

    recipe: Recipe
    data: Source
    objective: Objective
    forward: nn.Module

    @cached_property
    def gradients(self) -> Tensor:
        """Those of all parameters, one after the other, (n,): zeros before and after a step."""
        return joined_gradients(self.forward.parameters())

    def steps(self, state: State) -> Iterator[Tensor]:
        """Train to the end of the recipe; yield after each step this process's summed error, ()."""
        recipe, position = self.recipe, state.images_seen
        order = self.data.order(recipe.batch, recipe.seed, position)
        while state.images_seen < recipe.duration:
            yield self.step(state, next(order))

    def step(self, state: State, index: Tensor) -> Tensor:
        """Train on the images at `index` (batch,)."""
        recipe, seen, size = self.recipe, state.images_seen, self.recipe.piece
        pieces = [
            self.data.piece(mixed(recipe.seed, NOISE, seen + start), index[start : start + size])
            for start in range(rank() * size, len(index), world_size() * size)
        ]
        gradients = self.gradients
        error = accumulate(self.forward, self.objective, pieces, world_size() / recipe.batch)
        clean(gradients)
        share = min(seen / recipe.ramp, 1) if recipe.ramp else 1
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * share
        state.optimizer.step()
        gradients.zero_()
        decay = ema.decay(recipe.ema_halflife, recipe.ema_ramp, recipe.batch, seen)
        ema.update(state.average, state.network, decay)
        state.images_seen += recipe.batch
        return error

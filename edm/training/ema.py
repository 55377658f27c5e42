"""Exponential moving average of a network's parameters, its half-life counted in images.

    average <- parameter + beta (average - parameter),   beta = 0.5^(batch / half-life)

Early in training the half-life is a share (`ramp`) of the images seen so far, so that the first
update copies the network and the random start is soon forgotten.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ema:
    """Half-life in images; `ramp`: at most this share of the images seen, 0 for no ramp."""

    halflife: float = 500_000
    ramp: float = 0.05

    def decay(self, batch: int, images_seen: int) -> float:
        """Beta of the update after a step on `batch` images, `images_seen` having come before."""
        halflife = min(self.halflife, self.ramp * images_seen) if self.ramp else self.halflife
        return 0.5 ** (batch / max(halflife, 1e-8))


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average's parameters towards the network's; buffers are constant and stay."""
    kept: list[Tensor] = list(average.parameters())
    new: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(kept, new, 1 - decay)

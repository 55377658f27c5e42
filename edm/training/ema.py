"""Exponential moving average of a network's parameters, its half-life counted in images.

    average <- parameter + beta (average - parameter),   beta = 0.5^(batch / half-life)

Early in training the half-life is a share (`ramp`) of the images seen so far, so that the first
update copies the network and the random start is soon forgotten.
"""

import torch
from torch import nn


def decay(halflife: float, ramp: float, batch: int, images_seen: int) -> float:
    """Beta of the update after a step on `batch` images, `images_seen` having come before.

    Args:
        halflife: in images.
        ramp: it is at most this share of the images seen; 0 for no ramp.
    """
    halflife = min(halflife, ramp * images_seen) if ramp else halflife
    return 0.5 ** (batch / max(halflife, 1e-8))


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average's parameters towards the network's; buffers are constant and stay."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)

"""What the tests of codes, of heads and of linear theory share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edm.representation.probing import Split

GOLDEN = Path(__file__).parents[2] / "golden/trajectories.npz"
RINGS = 3
COUNTS = (600, 300, 3000)  # of training, validation and test images


@pytest.fixture(scope="session")
def golden():
    """Vectors made with numpy and torch alone."""
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def rings():
    """Make codes of a class each: a ring in the plane, seen through more noise at each level."""

    def make(levels=3, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        n = sum(COUNTS)
        labels = torch.randint(RINGS, (n,), generator=generator)
        angle = 2 * torch.pi * torch.rand(n, generator=generator)
        at = (1 + labels)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        noise = torch.randn(n, levels, 2, generator=generator)
        z = at[:, None] + noise * (0.2 + 0.2 * torch.arange(levels))[:, None]
        part = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
        return Split.of(z.to(dtype), labels, part, torch.arange(n)).standardised()

    return make

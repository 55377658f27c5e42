"""Data in the plane, within about 4 of the origin, to look at what scores and samplers do.

Each function draws (count, 2) float64 points with a CPU generator, torch's global one by default.
Scikit-learn's are seeded by one draw from it, and have equally many points on each moon or ring.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from linear_structure.gaussian import Gaussian
from linear_structure.mixture import GaussianMixture
from linear_structure.system.errors import UsageError

Draw = Callable[[int, Generator | None], Tensor]
"""Draws points: count, generator -> (count, 2) float64."""


def mixture() -> GaussianMixture:
    """`0.4 N((2, 2), diag(2, 1)) + 0.6 N((-1, 1), diag(0.5, 3))`: density and score in closed form.

    Its mean is (0.2, 1.4), its covariance [[3.26, 0.72], [0.72, 2.44]].
    """
    means = torch.tensor([[2.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
    variances = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    parts = zip(means, variances.diag_embed(), strict=True)
    components = tuple(Gaussian.from_covariance(*part) for part in parts)
    return GaussianMixture(torch.tensor([0.4, 0.6], dtype=torch.float64), components)


def swiss_roll(count: int, generator: Generator | None = None) -> Tensor:
    """A spiral of one and a half turns."""
    from sklearn.datasets import make_swiss_roll  # takes over a second

    return _drawn(make_swiss_roll, count, generator, noise=0.5)[:, [0, 2]] / 4


def moons(count: int, generator: Generator | None = None) -> Tensor:
    """Two half circles, each reaching into the other."""
    from sklearn.datasets import make_moons

    centre = torch.tensor([0.5, 0.25], dtype=torch.float64)
    return 2 * (_drawn(make_moons, count, generator, noise=0.05) - centre)


def rings(count: int, generator: Generator | None = None) -> Tensor:
    """Two circles around the origin, of radius 3 and 1.5."""
    from sklearn.datasets import make_circles

    return 3 * _drawn(make_circles, count, generator, noise=0.03, factor=0.5)


def checkerboard(count: int, generator: Generator | None = None) -> Tensor:
    """Uniform on the 8 dark squares of a board of 4 x 4, each 2 wide."""
    square = torch.randint(8, (count,), generator=generator)
    column = square % 4
    row = 2 * (square // 4) + column % 2
    inside = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    return 2 * (torch.stack([column, row], 1) + inside) - 4


def _from_mixture(count: int, generator: Generator | None = None) -> Tensor:
    return mixture().sample(count, generator=generator)


DRAWS: dict[str, Draw] = {
    "mixture": _from_mixture,
    "swiss_roll": swiss_roll,
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
}
"""By the name on command lines, everything that there is."""


def find(name: str) -> Draw:
    """What draws the points of this name; where there is none, a UsageError lists the names."""
    if name not in DRAWS:
        raise UsageError(f"data {name!r} are not known: expected one of {', '.join(DRAWS)}")
    return DRAWS[name]


def _drawn(
    make: Callable[..., Any], count: int, generator: Generator | None, **settings: float
) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    points, _ = make(count, random_state=seed, **settings)
    return torch.from_numpy(points)

"""Noise levels and step sizes of annealed Langevin dynamics from the data (techniques 1, 2 and 4).

    python scripts/noise_scales.py digits
    python scripts/noise_scales.py CIFAR10 --overlap 0.567
    python scripts/noise_scales.py mixture --gamma 1.3

noise_scales.json holds them for scripts/train.py. A run on the same data and settings reads it.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.options import check_unused
from experiments.results import SCORE_BASED, surroundings
from linear_structure.data import datasets, plane
from linear_structure.images import from_uint8
from linear_structure.sampling.scales import (
    SMALLEST_DIM,
    Scales,
    largest_distance,
    ratio,
    step_ratio,
)
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import digest_of_tensor
from linear_structure.system.machine import set_threads, usable_cores
from linear_structure.system.options import folder, named_path, positive, word
from linear_structure.system.store import kept

DRAWN = 10_000  # points of data in the plane
OVERLAP = 0.5
LOWEST = 1e-15  # of levels, whose squares are steps
Value = TypeVar("Value")


class Data(NamedTuple):
    """Points (n, D), and in what they are measured."""

    name: str
    points: Tensor
    digest: str
    unit: str


def load(typed: argparse.Namespace) -> Data:
    """Data in the plane, or the pixels of images.

    Raises:
        UsageError: as `datasets.load`.
    """
    if typed.dataset in plane.DRAWS:
        points = plane.DRAWS[typed.dataset](DRAWN, torch.Generator().manual_seed(0))
        return Data(typed.dataset, points, digest_of_tensor(points), "plane")
    dataset = datasets.load(typed.dataset, typed.data_dir)
    images = dataset.images()
    points = from_uint8(images.flatten(1))
    return Data(dataset.name, points, digest_of_tensor(images), "pixels in [-1, 1]")


def accepted(compute: Callable[[], Value], advice: str = "") -> Value:
    """What is computed from options; what they make impossible, as a UsageError."""
    try:
        return compute()
    except ValueError as error:
        raise UsageError(f"{error}{advice}") from error


def ratio_of(typed: argparse.Namespace, dim: int) -> float:
    """The ratio of levels that is asked for, if there is one and a step size for it."""
    gamma = typed.gamma
    if gamma is None:
        advice = " with --gamma" if dim < SMALLEST_DIM else ""
        gamma = accepted(partial(ratio, dim, typed.overlap), advice)
    accepted(partial(step_ratio, gamma, typed.steps))
    return gamma


def measured(data: Data, gamma: float, typed: argparse.Namespace) -> Scales:
    """The scales, from the distances of all pairs, with a bar.

    Raises:
        UsageError: no two points differ, or sigma_1 is not above --sigma-min.
    """
    bar = partial(tqdm, desc="distances", unit=" blocks", disable=None)
    sigma_max, count = largest_distance(data.points, progress=bar), len(data.points)
    if not sigma_max:
        raise UsageError(f"all {count:,} of {data.name} are equal: expected two that differ")
    if sigma_max <= typed.sigma_min:
        raise UsageError(
            f"--sigma-min {typed.sigma_min:g} is not below sigma_1 = {sigma_max:.4g}, the largest "
            f"distance in {data.name}"
        )
    return Scales.between(sigma_max, typed.sigma_min, gamma, typed.steps)


def inputs_of(data: Data, typed: argparse.Namespace) -> dict[str, Any]:
    """What the scales depend on, as JSON values."""
    count, dim = data.points.shape
    return {
        "dataset": data.name,
        "digest": data.digest,
        "n": count,
        "dim": dim,
        "unit": data.unit,
        "pairs": "all",
        "sigma_min": typed.sigma_min,
        "steps": typed.steps,
        "overlap": typed.overlap if typed.gamma is None else None,
        "gamma": typed.gamma,
    }


def show(data: Data, scales: Scales, gamma: float, typed: argparse.Namespace) -> None:
    """Print them; what has a unit, for pixels in [0, 1] as well."""
    images, (count, dim) = data.unit != "plane", data.points.shape
    eps = scales.ratio * scales.sigma_min**2
    given = typed.gamma is not None
    source = "--gamma" if given else f"technique 2, overlap {typed.overlap:g}"

    def both(value: float, shrink: int) -> str:
        return f"{value:.5g} in [-1, 1], {value / shrink:.5g} in [0, 1]" if images else f"{value:g}"

    what = "images" if images else "points"
    print(f"{data.name}: {count:,} {what} of {dim:,} values")
    print(f"sigma_1  {both(scales.sigma_max, 2)}: all pairs of {count:,} {what}")
    print(f"sigma_L  {both(scales.sigma_min, 2)}")
    print(f"gamma    {scales.gamma:.5f} between {scales.levels} levels; {gamma:.5f} of {source}")
    print(f"L        {scales.levels} levels")
    print(f"T        {scales.steps} steps at each")
    print(f"r        {scales.ratio:.5f} = eps / sigma_L^2")
    print(f"eps      {both(eps, 4)}")
    print(f"q        {scales.variance:.4f}, variance after the steps over that of the level")
    print(f"calls    {scales.levels * scales.steps + 1}, the last denoising among them")


def parse() -> argparse.Namespace:
    """The command line; UsageError for an overlap of shells beside a ratio of levels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    known = ", ".join((*datasets.NAMES, *plane.DRAWS))
    kinds = f"{known}; or a folder of images, a zip, .npy, .npz or IDX file"
    add("dataset", type=word, help=kinds)
    add("--sigma-min", type=float, default=0.02, help="sigma_L, in units of the data")
    add("--steps", type=positive, default=5, help="T, at each level (default 5)")
    add("--overlap", type=float, help=f"C of technique 2 (default {OVERLAP})")
    add("--gamma", type=float, help="ratio of neighbouring levels, in place of technique 2's")
    add("--out", type=folder, help=f"folder of noise_scales.json (default {SCORE_BASED}/DATASET)")
    add("--data-dir", type=named_path, help="where archives are kept or looked for")
    add("--threads", type=int, default=usable_cores(), help="of the CPU (default: all)")
    typed = parser.parse_args()
    if typed.gamma is not None:
        check_unused(typed, ("overlap",), "--gamma takes the place of what follows from it")
    typed.overlap = OVERLAP if typed.overlap is None else typed.overlap
    return typed


def main() -> None:
    """Measure, or read what was measured; print and write."""
    typed = parse()
    set_threads(typed.threads)
    if not LOWEST <= typed.sigma_min < math.inf:
        number = f"expected a number above 0, of {LOWEST:g} or more"
        raise UsageError(f"--sigma-min {typed.sigma_min:g}: {number}")
    data = load(typed)
    if len(data.points) < 2:
        raise UsageError(f"{data.name} holds one image: its largest distance takes two or more")
    gamma = ratio_of(typed, data.points.shape[1])
    path = (typed.out or SCORE_BASED / data.name) / "noise_scales.json"
    make = lambda: measured(data, gamma, typed).to_json()  # noqa: E731
    found = kept(path, inputs_of(data, typed), make, made=surroundings())
    scales = Scales.from_json(found)
    show(data, scales, gamma, typed)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The analytic denoisers beside the plain formulations of the same values.

Teleport and Gaussian score: thin products against the D x D matrix that published reproductions
build for each sigma. Point cloud: one pass over the points against its two matrix products alone,
at levels where all points count, where many nearly do, and where one does.
Repetitions alternate, so that all meet the same machine; times are medians. The limits are the
rates of a large matrix product of the same type, and of a large copy, measured here.
"""

import argparse
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from moments import natural
from timing import Report, alternate, bandwidth, medians, parse, peak
from torch import Tensor

from linear_structure.data import datasets
from linear_structure.denoise import score
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.points import PointCloud
from linear_structure.system.options import word
from linear_structure.system.precision import set_tf32

START, STOP = 80.0, 3.0
SIGMA = 0.5
LEVELS = (80.0, 3.0, 1.0, 0.3, 0.002)


def extra_memory(call: Callable[[], object], device: str) -> int:
    """Most bytes that torch holds at once during a call beyond those before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    changes = (
        e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    return max(accumulate(changes))


def gaussian(dim: int, dtype: torch.dtype, device: str) -> Gaussian:
    """Full rank, eigenvalues that decay as those of images do."""
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=dtype, device=device))
    eigenvalues = 200 / torch.arange(1, dim + 1, dtype=dtype, device=device) ** 1.5
    return Gaussian(torch.zeros_like(eigenvalues), basis, eigenvalues)


def dense_flow(g: Gaussian, x: Tensor, start: float, stop: float) -> Tensor:
    """The teleport as one D x D matrix, made for this pair of levels."""
    inside = torch.sqrt((g.eigenvalues + stop**2) / (g.eigenvalues + start**2))
    outside = torch.eye(g.dim, dtype=x.dtype, device=x.device) - g.basis @ g.basis.T
    matrix = stop / start * outside + g.basis @ torch.diag(inside) @ g.basis.T
    return g.mean + (x - g.mean) @ matrix.T


def dense_score(g: Gaussian, x: Tensor, sigma: float) -> Tensor:
    """The score by the D x D inverse covariance, made for this level."""
    shrink = g.basis @ torch.diag(g.eigenvalues / (g.eigenvalues + sigma**2)) @ g.basis.T
    one = torch.eye(g.dim, dtype=x.dtype, device=x.device)
    return -(x - g.mean) @ (one - shrink).T / sigma**2


def measure_gaussian(args: Namespace, report: Report, dtype: torch.dtype, dim: int) -> None:
    """Teleport and score in both forms; a batch this small reads more than it computes."""
    g = gaussian(dim, dtype, args.device)
    x = START * torch.randn(args.batch, dim, dtype=dtype, device=args.device)
    kept = Gaussian(g.mean, g.basis.float(), g.eigenvalues)
    works = {
        "teleport": lambda: g.flow(x, START, STOP),
        "dense teleport": lambda: dense_flow(g, x, START, STOP),
        "score": lambda: score(g.denoise, x, SIGMA),
        "dense score": lambda: dense_score(g, x, SIGMA),
        "teleport from float32": lambda: kept.flow(x, START, STOP),  # as files keep the basis
    }
    seconds, limit, moves = (
        medians(alternate(works, args.repeats)),
        peak(args, dtype),
        bandwidth(args),
    )
    flop, moved = 4 * args.batch * dim**2, 2 * g.basis.nbytes
    for name, taken in seconds.items():
        shares = {"of_peak": flop / taken / limit, "of_bandwidth": moved / taken / moves}
        dense = seconds.get(f"dense {name}")
        ratio = {"times_dense": dense / taken, **shares} if dense else {}
        report.row(f"{name}, {str(dtype)[6:]}", milliseconds=1e3 * taken, **ratio)


def measure_points(args: Namespace, report: Report, pixels: Tensor) -> None:
    """The point-cloud denoiser in multiples of its matrix products, and its memory."""
    points, count = from_uint8(pixels), len(pixels)
    clouds = {"float32": PointCloud(points), "uint8": PointCloud(pixels)}
    weights = torch.rand(args.batch, count, device=args.device)
    noise = torch.randn(args.batch, points.shape[1], device=args.device)
    flop, limit = 4 * args.batch * points.numel(), peak(args)
    for sigma in LEVELS:
        x = points[:: count // args.batch][: args.batch] + sigma * noise
        products = {"products": partial(two_products, x, points, weights)}
        denoisers = {name: partial(cloud.denoise, x, sigma) for name, cloud in clouds.items()}
        seconds = medians(alternate(products | denoisers, args.repeats))
        for name, taken in seconds.items():
            told = {"milliseconds": 1e3 * taken, "of_peak": flop / taken / limit}
            if name in denoisers:
                told["times_products"] = taken / seconds["products"]
                told["extra_megabytes"] = extra_memory(denoisers[name], args.device) / 1e6
            report.row(f"points, sigma {sigma:g}, {name}", **told)


def two_products(x: Tensor, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What a denoiser of points needs at least: all inner products, and one weighted sum."""
    return x @ points.T, weights @ points


def main() -> None:
    """Report every ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="images or queries at a time")
    parser.add_argument(
        "--images", type=word, help="points: a dataset's name or path; default: synthetic"
    )
    parser.add_argument("--points", type=int, default=50_000, help="how many synthetic points")
    args = parse(parser, repeats=7, batch=2, points=64, images="digits")
    torch.manual_seed(0)
    set_tf32(False)
    report = Report("analytic", args.json)
    images = datasets.load(args.images).images() if args.images else None
    pixels = torch.from_numpy(natural(args.points)) if images is None else images
    pixels = pixels.flatten(1).to(args.device)
    measure_points(args, report, pixels)
    for dtype in (torch.float32, torch.float64):
        measure_gaussian(args, report, dtype, pixels.shape[1])


if __name__ == "__main__":
    main()

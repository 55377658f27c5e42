"""The analytic denoisers beside the plain formulations of the same values.

Teleport and Gaussian score: thin products against the D x D matrix that published reproductions
build for each sigma. Point cloud: one pass over the points against its two matrix products alone,
at levels where all points count, where many nearly do, and where one does.
Repetitions alternate, so that all meet the same machine; times are medians. The arithmetic limit
is the rate of a large matrix product of the same type, measured here.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from moments import natural
from timing import alternate, medians, peak
from torch import Tensor

from linear_structure.data import datasets
from linear_structure.denoise import score
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.points import PointCloud

DIM = 3072
START, STOP = 80.0, 3.0
SIGMA = 0.5
LEVELS = (80.0, 3.0, 1.0, 0.3, 0.002)


def extra_memory(call: Callable[[], object]) -> int:
    """Most bytes that torch holds at once during a call beyond those before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    changes = (
        e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    return max(accumulate(changes))


def gaussian(dtype: torch.dtype) -> Gaussian:
    """Full rank, eigenvalues that decay as those of images do."""
    basis, _ = torch.linalg.qr(torch.randn(DIM, DIM, dtype=dtype))
    eigenvalues = 200 / torch.arange(1, DIM + 1, dtype=dtype) ** 1.5
    return Gaussian(torch.zeros(DIM, dtype=dtype), basis, eigenvalues)


def dense_flow(g: Gaussian, x: Tensor, start: float, stop: float) -> Tensor:
    """The teleport as one D x D matrix, made for this pair of levels."""
    inside = torch.sqrt((g.eigenvalues + stop**2) / (g.eigenvalues + start**2))
    outside = torch.eye(DIM, dtype=x.dtype) - g.basis @ g.basis.T
    matrix = stop / start * outside + g.basis @ torch.diag(inside) @ g.basis.T
    return g.mean + (x - g.mean) @ matrix.T


def dense_score(g: Gaussian, x: Tensor, sigma: float) -> Tensor:
    """The score by the D x D inverse covariance, made for this level."""
    shrink = g.basis @ torch.diag(g.eigenvalues / (g.eigenvalues + sigma**2)) @ g.basis.T
    return -(x - g.mean) @ (torch.eye(DIM, dtype=x.dtype) - shrink).T / sigma**2


def report_gaussian(dtype: torch.dtype, batch: int, repeats: int) -> None:
    """Times of teleport and score in both forms, and the thin form's share of the peak rate."""
    g, x = gaussian(dtype), START * torch.randn(batch, DIM, dtype=dtype)
    kept = Gaussian(g.mean, g.basis.float(), g.eigenvalues)
    works = {
        "teleport": lambda: g.flow(x, START, STOP),
        "from float32": lambda: kept.flow(x, START, STOP),
        "dense teleport": lambda: dense_flow(g, x, START, STOP),
        "score": lambda: score(g.denoise, x, SIGMA),
        "dense score": lambda: dense_score(g, x, SIGMA),
    }
    seconds = medians(alternate(works, repeats))
    flop, limit = 4 * batch * DIM**2, peak(dtype)
    moved = 2 * g.basis.nbytes
    print(f"\n{dtype}: {flop / 1e9:.1f} GFLOP and {moved / 1e6:.0f} MB in the thin form,", end=" ")
    print(f"{4 * DIM**3 / 1e9:.0f} GFLOP in the dense one; peak {limit / 1e9:.0f} GFLOP/s")
    for name in ("teleport", "score"):
        thin, dense = seconds[name], seconds[f"dense {name}"]
        print(f"{name:9} {thin * 1e3:6.1f} ms, dense {dense * 1e3:6.0f} ms:", end=" ")
        print(f"{dense / thin:.1f} times faster, {flop / thin / limit:.0%} of the peak")
    taken = seconds["from float32"] * 1e3
    print(f"teleport with the basis in float32, as files keep it: {taken:.1f} ms")


def report_points(pixels: Tensor, batch: int, repeats: int) -> None:
    """Times of the point-cloud denoiser, in multiples of its matrix products, and its memory."""
    points, count = from_uint8(pixels), len(pixels)
    flop, limit = 4 * batch * count * DIM, peak(torch.float32)
    print(f"\n{batch} queries, {count:,} points: {flop / 1e9:.0f} GFLOP,", end=" ")
    print(f"{2 * points.nbytes / 1e9:.1f} GB in two passes; peak {limit / 1e9:.0f} GFLOP/s")
    clouds = {"float32": PointCloud(points), "uint8": PointCloud(pixels)}
    weights, noise = torch.rand(batch, count), torch.randn(batch, DIM)
    for sigma in LEVELS:
        x = points[:: count // batch][:batch] + sigma * noise
        products = {"products": partial(two_products, x, points, weights)}
        denoisers = {name: partial(cloud.denoise, x, sigma) for name, cloud in clouds.items()}
        seconds = medians(alternate(products | denoisers, repeats))
        print(f"sigma {sigma:g}: products {seconds['products'] * 1e3:.0f} ms", end="")
        for name, denoise in denoisers.items():
            ratio, extra = seconds[name] / seconds["products"], extra_memory(denoise) / 1e6
            print(f"; points in {name} {ratio:.2f} of them, {extra:.0f} MB extra", end="")
        print()


def two_products(x: Tensor, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What a denoiser of points needs at least: all inner products, and one weighted sum."""
    return x @ points.T, weights @ points


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="images or queries at a time")
    parser.add_argument("--images", help="points: a dataset's name or path; default: synthetic")
    parser.add_argument("--points", type=int, default=50_000, help="how many synthetic points")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {DIM}")
    images = datasets.load(options.images).images().numpy() if options.images else None
    pixels = natural(options.points) if images is None else images
    report_points(torch.from_numpy(pixels).flatten(1), options.batch, options.repeats)
    for dtype in (torch.float32, torch.float64):
        report_gaussian(dtype, options.batch, options.repeats)


if __name__ == "__main__":
    main()

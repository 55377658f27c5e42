"""The Frechet distance beside `scipy.linalg.sqrtm`, and Inception beside the arithmetic limit.

The distance is taken between two covariances whose spectra decay, with a known result: S2 = A S1 A
for a positive definite A has tr sqrt(S1 S2) = tr(A S1). Inception's limit is the rate of a large
float32 matrix product, measured here; its operations are counted by PyTorch.
"""

import argparse
import math
import time

import scipy.linalg
import torch
from timing import alternate, medians, peak
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm.evaluation.fid import Statistics, frechet, measure
from edm.evaluation.inception import SIZE, Inception, inception3
from linear_structure.system.machine import set_threads, usable_cores


def covariances(dim: int) -> tuple[Tensor, Tensor, float]:
    """S1, S2 and tr sqrt(S1 S2); eigenvalues of S1 from 1 down to 1e-9."""
    axes = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    first = (axes * torch.logspace(0, -9, dim, dtype=torch.float64)) @ axes.T
    factor = torch.randn(dim, dim, dtype=torch.float64) / dim**0.5
    change = factor @ factor.T + torch.eye(dim, dtype=torch.float64) / 2
    return first, change @ first @ change, float((change @ first).trace())


def naive(a: Statistics, b: Statistics) -> float:
    """The formula as the published scripts write it."""
    root = scipy.linalg.sqrtm((a.sigma @ b.sigma).numpy()).real
    return float((a.mu - b.mu).square().sum() + (a.sigma + b.sigma).trace()) - 2 * root.trace()


def distances(dim: int) -> None:
    """Time and error of the distance, alone and with the reference decomposed before."""
    first, second, overlap = covariances(dim)
    expected = float((first + second).trace()) - 2 * overlap
    mu = torch.zeros(dim, dtype=torch.float64)
    reference, slow = Statistics(mu, second), math.nan
    for name, way in (("sqrtm", naive), ("ours", frechet), ("ours, same reference", frechet)):
        start = time.perf_counter()
        found = way(Statistics(mu, first), reference)
        took = time.perf_counter() - start
        slow = took if way is naive else slow
        error = abs(found - expected) / overlap
        print(f"{name:20} {took:6.2f} s  {slow / took:5.1f} x  error {error:.0e} of the trace term")


def moments(dim: int, rows: int) -> None:
    """Rate at which features become statistics, beside the product that they need at least."""
    x = torch.randn(rows, dim)
    wide = x.double()
    seconds = medians(
        alternate({"ours": lambda: measure(x.split(64)), "product": lambda: wide.T @ wide}, 3)
    )
    print(
        f"statistics of {rows} rows: {seconds['ours']:.2f} s, "
        f"their product alone {seconds['product']:.2f} s"
    )


def inception(batch: int, device: str) -> None:
    """Images per second, and the share of the rate of a plain matrix product."""
    network = Inception(inception3().state_dict()).to(device)
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        network(images)
    limit = peak(device=device)
    took = medians(alternate({"inception": lambda: network(images)}, 3))["inception"]
    rate = counter.get_total_flops() / took
    print(
        f"Inception at {SIZE} px: {batch / took:.1f} images/s, "
        f"{counter.get_total_flops() / batch / 1e9:.2f} GFLOP each, {rate / 1e9:.0f} GFLOP/s; "
        f"matrix product {limit / 1e9:.0f} GFLOP/s: {rate / limit:.0%}"
    )


def main() -> None:
    """Print all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    set_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.threads} threads, torch {torch.__version__}, device {args.device}")
    distances(args.dim)
    moments(args.dim, args.rows)
    inception(args.batch, args.device)


if __name__ == "__main__":
    main()

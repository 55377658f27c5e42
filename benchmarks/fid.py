"""The Frechet distance beside `scipy.linalg.sqrtm`, and Inception beside the arithmetic limit.

The distance is taken between two covariances whose spectra decay, with a known result: S2 = A S1 A
for a positive definite A has tr sqrt(S1 S2) = tr(A S1). Inception's limit is the rate of a large
float32 matrix product, measured here; its operations are counted by PyTorch.
"""

import argparse
import math
import time
from argparse import Namespace

import scipy.linalg
import torch
from timing import Report, alternate, medians, parse, peak
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm.evaluation.fid import Statistics, frechet, measure
from edm.evaluation.inception import SIZE, Inception, inception3
from linear_structure.system.machine import set_threads, usable_cores
from linear_structure.system.precision import set_tf32


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


def distances(report: Report, dim: int) -> None:
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
        report.row(f"distance, {name}", seconds=took, times_sqrtm=slow / took, error=error)


def moments(report: Report, dim: int, rows: int) -> None:
    """How fast features become statistics, beside the product that they need at least."""
    x = torch.randn(rows, dim)
    wide = x.double()
    works = {"ours": lambda: measure(x.split(64)), "product": lambda: wide.T @ wide}
    for name, took in medians(alternate(works, 3)).items():
        report.row(f"statistics, {name}", seconds=took)


def inception(args: Namespace, report: Report) -> None:
    """Images per second, and the share of the rate of a plain matrix product."""
    network = Inception(inception3().state_dict()).to(args.device)
    images = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        network(images)
    works = {f"{SIZE} pixels": lambda: network(images)}
    seconds = alternate(works, args.repeats, uncounted=0)  # counting was the first call
    report.rates("inception", seconds, args.batch, counter.get_total_flops(), peak(args))


def main() -> None:
    """Report all three; Inception alone is measured on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parse(parser, repeats=3, dim=32, rows=64, batch=1)
    set_threads(args.threads)
    set_tf32(False)
    torch.manual_seed(0)
    report = Report("fid", args.json)
    distances(report, args.dim)
    moments(report, args.dim, args.rows)
    inception(args, report)


if __name__ == "__main__":
    main()

"""From images in memory to mean, eigenvectors and eigenvalues: ours beside the naive chain.

The naive chain is that of published reproductions: torchvision's transform image by image, a stack
of float32, `torch.cov`, `torch.svd`. Each chain runs in a process of its own over the same array
of uint8 images, which counts towards the peak memory of both. The chains take turns; times and
memory are medians. The arithmetic limit is the rate of a large float32 matrix product, which our
sums exceed where the processor has units for products of 8-bit integers.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import Report, parse, peak
from torch import Tensor

from linear_structure.data import datasets
from linear_structure.gaussian import Gaussian
from linear_structure.moments import PixelSums
from linear_structure.system.options import named_path, word

SHAPE = (3, 32, 32)
BLOCK = 1000


def natural(count: int) -> np.ndarray:
    """Smooth random colour fields with a little noise: uint8 (count, 3, 32, 32)."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    amplitude = 1 / np.maximum(frequency, 1 / 32) ** 1.2
    images = np.empty((count, *SHAPE), np.uint8)
    for start in range(0, count, BLOCK):
        white = np.fft.fft2(generator.standard_normal((min(BLOCK, count - start), *SHAPE)))
        field = np.fft.ifft2(white * amplitude).real
        images[start : start + BLOCK] = (128 + 4 * field).clip(0, 255)
    return images


def ours(images: np.ndarray) -> dict[str, float]:
    """Exact sums, then one decomposition in float64, as `get_parameters` does."""
    start = time.perf_counter()
    moments = _sums(torch.from_numpy(images)).moments()
    summed = time.perf_counter()
    mean, covariance = moments.mean, moments.covariance
    del moments
    Gaussian.from_covariance(mean, covariance, overwrite=True)
    rate = len(images) * len(mean) ** 2 / (summed - start) / 1e9
    return {"sums": summed - start, "decomposition": time.perf_counter() - summed, "gflops": rate}


def naive(images: np.ndarray) -> dict[str, float]:
    """A transform for each image, then everything at once in float32."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    start = time.perf_counter()
    pictures = [Image.fromarray(image.transpose(1, 2, 0).squeeze()) for image in images]
    transformed = [transform(picture) for picture in pictures]
    samples = torch.stack(transformed).flatten(1)
    loaded = time.perf_counter()
    samples.mean(0)
    torch.svd(torch.cov(samples.T))
    return {"transforms": loaded - start, "decomposition": time.perf_counter() - loaded}


CHAINS: dict[str, Callable[[np.ndarray], dict[str, float]]] = {"ours": ours, "naive": naive}


def _sums(images: Tensor) -> PixelSums:
    sums = PixelSums(images[0].numel())
    for block in images.split(BLOCK):
        sums.add(block)
    return sums


def _run_chain(name: str, path: Path) -> None:
    """Print as JSON what the chain took; in its own process."""
    images = np.load(path)
    start = time.perf_counter()
    report = CHAINS[name](images)
    report["seconds"] = time.perf_counter() - start
    report["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(report))


def _medians(reports: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(report[key] for report in reports) for key in reports[0]}


def _measure(name: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--chain", name, "--array", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report: dict[str, float] = json.loads(text)
    return report


def main() -> None:
    """Run both chains in turns, and report what they took and the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=word, help="a dataset's name or path; default: synthetic images"
    )
    parser.add_argument("--count", type=int, default=50_000, help="how many synthetic images")
    parser.add_argument("--chain", choices=CHAINS, help=argparse.SUPPRESS)
    parser.add_argument("--array", type=named_path, help=argparse.SUPPRESS)
    args = parse(parser, repeats=3, devices=("cpu",), images="digits")
    if args.chain:
        _run_chain(args.chain, args.array)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        images = datasets.load(args.images).images() if args.images else None
        np.save(path, natural(args.count) if images is None else images.numpy())
        rounds = [[_measure(name, path) for name in CHAINS] for _ in range(args.repeats)]
    report = Report("moments", args.json)
    mine, theirs = (_medians(list(reports)) for reports in zip(*rounds, strict=True))
    report.row("ours", **mine, of_peak=mine["gflops"] * 1e9 / peak(args))
    report.row("naive", **theirs)
    times = theirs["seconds"] / mine["seconds"]
    report.row("ratios", times_naive=times, memory=mine["megabytes"] / theirs["megabytes"])


if __name__ == "__main__":
    main()

"""Spectral covariances: what they miss of the full one, and what they cost.

    python benchmarks/spectral.py                        the flow beside its transforms' arithmetic
    python benchmarks/spectral.py --images IMAGES.zip    the deviation from the full covariance
    python benchmarks/spectral.py --fit 256              memory and time of a fit to many PNG files

The deviation is the root mean square, over pixels and latents of seeds 0 to 63, of the difference
of the teleported states, in units of sigma, all in float64. The fit runs in a process of its own,
whose peak memory counts all that it imports.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import alternate, medians, peak
from torch import Tensor

from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.denoise import Model
from linear_structure.fit import measure
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.seeds import Seeds
from linear_structure.spectral import Spectral, block_size, transform
from linear_structure.teleport import flow

SIGMAS = sigma_grid(18)
SKIPS = (5, 6, 7, 8, 9)  # to 12.9, 8.4, 5.32, 3.26 and 1.92
LOWS = (0, 4, 8, 12)
COUNTS = (100, 300, 1000, 3000, 10_000)
SUBSETS = 3
SHAPES = ((3, 32, 32), (4, 64, 64), (4, 128, 128), (3, 256, 256), (16, 128, 128))
BATCH = 8
PHOTOGRAPHS = 2000


def deviations(model: Model, full: Model, x: Tensor) -> list[float]:
    """Of the flow of x from the first level, at each skip, in units of sigma."""
    ends = [(SIGMAS[k], flow(model, x, SIGMAS[0], SIGMAS[k])) for k in SKIPS]
    expected = [flow(full, x, SIGMAS[0], SIGMAS[k]) for k in SKIPS]
    pairs = zip(ends, expected, strict=True)
    return [float((end - other).square().mean().sqrt() / sigma) for (sigma, end), other in pairs]


def report_deviations(dataset: Dataset) -> None:
    """A row for each structure, and for the counts of images of one."""
    moments, _ = measure(dataset)
    full = Gaussian.from_covariance(moments.mean, moments.covariance, overwrite=True)
    x = SIGMAS[0] * Seeds.of(range(64)).latents(dataset.shape).double()
    print("sigma".ljust(34) + "".join(f"{float(SIGMAS[k]):9.2f}" for k in SKIPS), flush=True)
    images = dataset.images()
    print_row("isotropic", deviations(Isotropic(full.mean), full, x))
    for low in LOWS:
        print_row(f"spectral, low {low}", deviations(Spectral.from_samples(images, low), full, x))
    for count in COUNTS:
        if count <= dataset.count:
            rows = [
                deviations(Spectral.from_samples(part), full, x) for part in subsets(images, count)
            ]
            mean = [statistics.fmean(values) for values in zip(*rows, strict=True)]
            print_row(f"low 8 of {count:,} images, mean of {SUBSETS}", mean)


def subsets(images: Tensor, count: int) -> list[Tensor]:
    """Random ones of so many images."""
    chosen = (torch.Generator().manual_seed(seed) for seed in range(SUBSETS))
    return [images[torch.randperm(len(images), generator=g)[:count]] for g in chosen]


def print_row(title: str, values: list[float]) -> None:
    """One structure's deviations."""
    print(title.ljust(34) + "".join(f"{value:9.6f}" for value in values), flush=True)


def report_flow(repeats: int) -> None:
    """Milliseconds of a flow of 8 latents in float32, and of its transforms' operations alone."""
    limit = peak()
    print(f"{torch.get_num_threads()} threads, peak {limit / 1e9:.0f} GFLOP/s, {BATCH} latents")
    for shape in SHAPES:
        _, height, width = shape
        torch.manual_seed(0)
        x = 80 * torch.randn(BATCH, *shape)
        model = Spectral.from_samples(torch.randn(2, *shape), low=4).to(x)
        works = {
            "flow": lambda x=x, model=model: model.flow(x, 80.0, 5.3),
            "transforms": lambda x=x: (transform(x), transform(x)),
        }
        seconds = medians(alternate(works, repeats, uncounted=3))
        flop = 4 * BATCH * x[0].numel() * (height + width)
        stored = 4 * sum(tensor.numel() for tensor in model.tensors().values())
        print(
            f"{' x '.join(map(str, shape)):14} {seconds['flow'] * 1e3:7.1f} ms,"
            f" its transforms {seconds['transforms'] * 1e3:6.1f} ms: {flop / 1e9:.2f} GFLOP,"
            f" {flop / limit * 1e3:.1f} ms at the peak; {stored / 1e6:.1f} MB kept"
        )


def write_photographs(folder: Path, size: int) -> None:
    """Random RGB fields of amplitude 1 / frequency, as PNG files."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    amplitude = 1 / np.maximum(frequency, 1 / size)
    amplitude *= 50 / np.sqrt((amplitude**2).mean())
    for number in range(PHOTOGRAPHS):
        white = np.fft.fft2(generator.standard_normal((3, size, size)))
        field = 128 + np.fft.ifft2(white * amplitude).real
        pixels = field.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:05}.png", compress_level=1)


def report_fit(size: int) -> None:
    """Peak resident memory and seconds of the command, on so many images."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "images"
        folder.mkdir()
        write_photographs(folder, size)
        script = Path(__file__).parents[1] / "linear_structure/get_parameters.py"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, str(script), str(folder), "spectral", str(Path(made) / "p")],
            check=True,
        )
        seconds = time.perf_counter() - start
    resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    per_block = block_size((3, size, size))
    print(f"{PHOTOGRAPHS:,} images of {size} x {size}, {per_block} at a time:", end=" ")
    print(f"{seconds:.0f} s, peak {resident:.2f} GB resident")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a dataset whose full covariance is compared with")
    parser.add_argument("--fit", type=int, metavar="SIZE", help="side of images that are fitted")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    if options.images:
        report_deviations(datasets.load(options.images))
    elif options.fit:
        report_fit(options.fit)
    else:
        report_flow(options.repeats)


if __name__ == "__main__":
    main()

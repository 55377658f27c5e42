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
from timing import Report, alternate, medians, parse, peak
from torch import Tensor

from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.denoise import Model
from linear_structure.fit import measure
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.seeds import Seeds
from linear_structure.spectral import Spectral, block_size, transform
from linear_structure.system.options import word
from linear_structure.system.precision import set_tf32
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


def report_deviations(report: Report, dataset: Dataset) -> None:
    """A row for each structure, and for the counts of images of one."""
    moments, _ = measure(dataset)
    full = Gaussian.from_covariance(moments.mean, moments.covariance, overwrite=True)
    x = SIGMAS[0] * Seeds.of(range(64)).latents(dataset.shape).double()
    images = dataset.images()
    add_row(report, "isotropic", deviations(Isotropic(full.mean), full, x))
    for low in LOWS:
        add_row(
            report, f"spectral, low {low}", deviations(Spectral.from_samples(images, low), full, x)
        )
    for count in COUNTS:
        if count <= dataset.count:
            rows = [
                deviations(Spectral.from_samples(part), full, x) for part in subsets(images, count)
            ]
            mean = [statistics.fmean(values) for values in zip(*rows, strict=True)]
            add_row(report, f"low 8 of {count:,} images, mean of {SUBSETS}", mean)


def subsets(images: Tensor, count: int) -> list[Tensor]:
    """Random ones of so many images."""
    chosen = (torch.Generator().manual_seed(seed) for seed in range(SUBSETS))
    return [images[torch.randperm(len(images), generator=g)[:count]] for g in chosen]


def add_row(report: Report, title: str, values: list[float]) -> None:
    """One structure's deviations, by the level that it is carried to."""
    levels = (f"sigma_{float(SIGMAS[k]):.2f}" for k in SKIPS)
    report.row(title, **dict(zip(levels, values, strict=True)))


def report_flow(report: Report, args: argparse.Namespace) -> None:
    """A flow of 8 latents in float32, and its transforms alone, whose operations are counted."""
    set_tf32(False)
    limit = peak(args)
    for shape in SHAPES[:1] if args.quick else SHAPES:
        _, height, width = shape
        torch.manual_seed(0)
        x = 80 * torch.randn(BATCH, *shape).to(args.device)
        model = Spectral.from_samples(torch.randn(2, *shape), low=4).to(x)
        works = {
            "flow": lambda x=x, model=model: model.flow(x, 80.0, 5.3),
            "transforms": lambda x=x: (transform(x), transform(x)),
        }
        flop = 4 * BATCH * x[0].numel() * (height + width)
        stored = 4 * sum(tensor.numel() for tensor in model.tensors().values())
        for name, taken in medians(alternate(works, args.repeats, uncounted=3)).items():
            told = {"milliseconds": 1e3 * taken, "of_peak": flop / taken / limit}
            report.row(f"{name}, {' x '.join(map(str, shape))}", **told, megabytes=stored / 1e6)


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


def report_fit(report: Report, size: int) -> None:
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
    report.row(
        f"fit of {PHOTOGRAPHS:,} images of {size} x {size}",
        images_at_a_time=block_size((3, size, size)),
        seconds=seconds,
        peak_gigabytes=resident,
    )


def main() -> None:
    """Report what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=word, help="a dataset whose full covariance is compared with"
    )
    parser.add_argument("--fit", type=int, metavar="SIZE", help="side of images that are fitted")
    args = parse(parser, repeats=15)
    report = Report("spectral", args.json)
    if args.images:
        report_deviations(report, datasets.load(args.images))
    elif args.fit:
        report_fit(report, args.fit)
    else:
        report_flow(report, args)


if __name__ == "__main__":
    main()

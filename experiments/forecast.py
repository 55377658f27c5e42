"""What a sweep will cost, before anything is fetched or written.

Operations are counted on the meta device, which computes nothing; the speed is that of real
calls of a network of the same configuration, with random weights where the file is not here yet.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from edm import checkpoints
from edm.evaluation import features
from edm.evaluation.features import WEIGHTS as INCEPTION
from edm.precondition import Preconditioned, build
from edm.training.recipes import RECIPES
from experiments.loading import check_features, resize_if_shipped
from experiments.networks import Code, File
from experiments.presets import Preset
from experiments.sweep import block_starts
from linear_structure import parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import NAMES, sources_of
from linear_structure.system.download import Source, cache_dir
from linear_structure.teleport import Teleport

PROBE = 64  # images at most of a call that is timed
PROBES = 8  # calls of which the fastest counts
ENOUGH = 2.0  # seconds after which no other begins
WORKING_SET = 6  # largest activations alive at once within a block
SMALL, PASSES = "laptop", 3  # the recipe of a first network; passes forward that a step is worth
FLOAT = 4  # bytes
SOURCES = "LINEAR_STRUCTURE_SOURCES"


@dataclass(frozen=True)
class Work:
    """What a network takes for a whole sweep.

    Attributes:
        flops: floating-point operations, those of the teleports too; a multiply-add counts two.
        flops_per_call: of the network, for one image.
        weights: bytes of the network's weights.
        activations: bytes that one block of images needs beside them, estimated.
        seconds: estimated from the fastest of some timed calls on this device.
        busy: a sentence where the machine did other work meanwhile.
    """

    flops: float
    flops_per_call: float
    weights: int
    activations: int
    seconds: float
    busy: str = ""


@dataclass(frozen=True)
class Forecast:
    """The cost of a sweep, as far as it is known.

    Attributes:
        nfe: skipped steps -> network calls of an image.
        images: images that the whole sweep computes: blocks are never cut.
        work: None where the network is not here and nothing is known of it.
        features: bytes of features that the sweep leaves on disk, None where these are not known.
        downloads: name and bytes at most, of the files that are not in the cache yet.
        missing: what the user named, and is not there.
    """

    nfe: dict[int, int]
    images: int
    work: Work | None
    features: int | None
    downloads: dict[str, int]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        calls = ", ".join(f"{skip}: {count}" for skip, count in self.nfe.items())
        fetched = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in self.downloads.items())
        limit = f"at most, unless {SOURCES} says otherwise" if SOURCES in os.environ else "at most"
        lines = [
            f"network calls of an image, by skipped steps: {calls}",
            f"images computed, in whole blocks: {self.images:,}",
            *self._costs(),
            f"to download, {limit}: {fetched or 'nothing'}",
        ]
        if self.missing:
            lines.append(f"missing, and needed: {', '.join(self.missing)}")
        return "\n".join(lines)

    def _costs(self) -> Iterator[str]:
        """A line for each cost, or for why it is not known."""
        if self.features is None:
            yield "the features are not here: their operations and disk are not known"
        else:
            yield f"disk: {self.features / 1e6:.0f} MB of features"
        if (work := self.work) is None:
            yield "the network is not here, or is code: operations, memory and time are not known"
            return
        yield f"operations: {work.flops:.3g} FLOP, {work.flops_per_call / 1e9:.3g} GFLOP a call"
        yield (
            f"memory: {work.weights / 1e6:.0f} MB of weights, "
            f"about {work.activations / 1e6:.0f} MB for a block"
        )
        yield f"estimated time on this device: {told(work.seconds)}"
        if work.busy:
            yield work.busy


def told(seconds: float) -> str:
    """A time in the unit that suits it."""
    time = f"{seconds:.0f} seconds"
    for unit, length in (("minutes", 60), ("hours", 3600), ("days", 86400)):
        if seconds >= 2 * length:
            time = f"{seconds / length:.1f} {unit}"
    return time


def training_of(images: str, name: str, device: torch.device) -> str:
    """The command that trains a network on images, and how long it takes on this device.

    Args:
        images: path or name of a dataset.
        name: what the network is called.

    Raises:
        UsageError: the images cannot be used, or are no squares.
    """
    recipe, out = RECIPES[SMALL], Path("training", name)
    config = recipe.network(datasets.load(images))
    seen = -(-recipe.duration // recipe.batch) * recipe.batch
    seconds = seen * PASSES * _seconds_per_image(config, recipe.piece, device)
    command = f"python scripts/train.py {quote(images)} --recipe {SMALL} --out {quote(str(out))}"
    made = out / f"network-{seen:09d}.safetensors"
    return f"{made} is made in about {told(seconds)} on this device by {command}"


def forecast(preset: Preset, device: torch.device) -> Forecast:
    """The cost of the whole sweep of a preset on this device; writes and fetches nothing.

    Raises:
        UsageError: a file that is here is no network, or no feature network or parameters for its
            images.
    """
    extractor, config = _features(preset), _config(preset)
    images = _images_of_a_skip(preset) * len(preset.skips)
    return Forecast(
        nfe={skip: preset.calls(skip) for skip in preset.skips},
        images=images,
        work=_work(preset, config, extractor, device) if config else None,
        features=FLOAT * extractor.dim * images if extractor else None,
        downloads=_downloads(preset),
        missing=tuple(_missing(preset)),
    )


def _images_of_a_skip(preset: Preset) -> int:
    return len(block_starts(preset.seeds, preset.block)) * preset.block


@dataclass(frozen=True)
class _FeatureCost:
    """Length of the features, and the operations that they take for an image of a network."""

    dim: int
    flops: Callable[[Preconditioned], float]


def _work(
    preset: Preset, config: dict[str, Any], extractor: _FeatureCost | None, device: torch.device
) -> Work:
    with torch.device("meta"):
        blank = build(config)
        one_call = _flops(blank, _images(blank, 1, torch.device("meta")), torch.ones(()))
    judged = len(preset.skips) * extractor.flops(blank) if extractor else 0.0
    teleports = sum(skip > 0 for skip in preset.skips) * _teleport_flops(preset, blank)
    calls = sum(map(preset.calls, preset.skips))
    flops = _images_of_a_skip(preset) * (calls * one_call + judged + teleports)
    return Work(
        flops=flops,
        flops_per_call=one_call,
        weights=FLOAT * sum(p.numel() for p in blank.parameters()),
        activations=preset.block * _kept_activations(blank),
        seconds=flops / one_call * _seconds_per_image(config, preset.block, device),
        busy=_busy(),
    )


def _busy() -> str:
    """A sentence where more processes want to run than there are cores, by the last minute."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load <= cores:
        return ""
    return (
        f"this machine is busy, with a load of {load:.1f} on {cores} cores: alone it takes less, "
        "and beside others --threads 1 may"
    )


def _config(preset: Preset) -> dict[str, Any] | None:
    """The network's configuration: of its file if that is here, else what the preset knows."""
    if isinstance(preset.network, Code):
        return None
    path = _cached(preset.network)
    if path.is_file():
        return checkpoints.load(path).config
    return preset.knowledge if preset.knowledge and "network" not in preset.replaced else None


def _cached(file: File) -> Path:
    return cache_dir() / file.name if isinstance(file, Source) else file


def _images(network: Preconditioned, count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, *network.shape, device=device)


def _flops(call: Callable[..., Tensor], *inputs: Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # brings triton, for dry runs alone

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call(*inputs)
    return float(counter.get_total_flops())


def _features(preset: Preset) -> _FeatureCost | None:
    """Of the file if that is here; Inception is known without it."""
    if preset.features == INCEPTION:
        from edm.evaluation.inception import SIZE, Inception, inception3  # takes seconds

        with torch.device("meta"):
            flops = _flops(inception3().eval(), torch.zeros(1, 3, SIZE, SIZE))
        return _FeatureCost(Inception.dim, lambda _: flops)
    path = _cached(preset.features)
    if not path.is_file():
        return None
    found = features.load(path)

    def flops_of(network: Preconditioned) -> float:
        extractor = resize_if_shipped(found, path, network.shape)
        check_features(extractor, network)
        return _flops(extractor, _images(network, 1, torch.device("cpu")).to(torch.uint8))

    return _FeatureCost(found.dim, flops_of)


def _teleport_flops(preset: Preset, network: Preconditioned) -> float:
    """Of one image; 0 where the parameters are not here: those that are made are a Gaussian's."""
    if not preset.parameters.is_dir():
        return 0.0
    teleport = Teleport(parameters.load(preset.parameters, preset.eigenvalue_scale).model)
    teleport.check(network)
    image = _images(network, 1, torch.device("cpu"))
    return _flops(lambda x: teleport.flow(x, preset.sigma_max, preset.sigma_min), image)


def _kept_activations(network: Preconditioned) -> int:
    """Bytes that one image keeps: what the decoder takes up again, and a block's working set."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
        for name, module in network.model.named_modules()
        if name.startswith("enc.") and name.count(".") == 1
    ]
    with torch.inference_mode():
        network(_images(network, 1, torch.device("meta")), torch.ones((), device="meta"))
    for hook in hooks:
        hook.remove()
    return FLOAT * (sum(sizes) + WORKING_SET * max(sizes))


def _downloads(preset: Preset) -> dict[str, int]:
    """Files that are not in the cache, with the most bytes that each may have."""
    named = [preset.network, preset.features, preset.reference]
    if dataset := _dataset_read(preset):
        named += sources_of(dataset)
    sources = [file for file in named if isinstance(file, Source) and not _cached(file).exists()]
    return {source.name: source.size_limit for source in sources}


def _dataset_read(preset: Preset) -> str | None:
    """The dataset, if a sweep reads it: for a reference, to make parameters, or to compare."""
    unknown = "dataset" in preset.replaced or not preset.parameters.is_dir()
    read = preset.reference is None or (preset.makes_parameters and unknown)
    return preset.dataset if read else None


def _missing(preset: Preset) -> Iterator[str]:
    """The paths that must be there, and are not."""
    for file in (preset.network, preset.features, preset.reference):
        if isinstance(file, Path) and not file.is_file():
            yield str(file)
    if not (preset.makes_parameters or preset.parameters.is_dir()):
        yield str(preset.parameters)
    dataset = _dataset_read(preset)
    if dataset and dataset not in NAMES and not Path(dataset).exists():
        yield dataset


def _seconds_per_image(config: dict[str, Any], block: int, device: torch.device) -> float:
    """Of a call for as many images as take a second, PROBE or a block."""
    network = build(config).eval().to(device)
    most = min(PROBE, block)
    count, seconds = 0, 0.0
    while count < most and seconds < 1:
        count = min(4 * count or 1, most)
        seconds = _seconds_of_call(network, count, device, 1 if count < most else PROBES)
    return seconds / count


def _seconds_of_call(
    network: Preconditioned, count: int, device: torch.device, calls: int
) -> float:
    """Of the fastest of some calls of this shape after the first one, which prepares."""
    x, sigma = _images(network, count, device), torch.ones((), device=device)
    took: list[float] = []
    while len(took) < 2 or (len(took) <= calls and sum(took) < ENOUGH):
        started = time.perf_counter()
        with torch.inference_mode():
            network(x, sigma).sum().item()  # waits for the device
        took.append(time.perf_counter() - started)
    return min(took[1:])

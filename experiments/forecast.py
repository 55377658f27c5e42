"""What a sweep will cost, before anything is fetched or written.

Operations are counted on the meta device, which computes nothing; the speed is that of one real
call of a network of the same configuration, with random weights where the file is not here yet.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm import checkpoint, features
from edm.inception import SIZE, Inception, inception3
from edm.precondition import Preconditioned, build
from experiments.presets import File, Preset
from experiments.sampling import image_shape, nfe
from linear_structure.datasets import sources_of
from linear_structure.download import Source, cache_dir

PROBE = 8  # images of the call that is timed
WORKING_SET = 6  # largest activations alive at once within a block
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Forecast:
    """The cost of a sweep.

    Attributes:
        nfe: skipped steps -> network calls of an image.
        images: images of the whole sweep.
        flops: floating-point operations of the whole sweep; a multiply-add counts two.
        flops_per_call: of the network, for one image.
        weights: bytes of the network's weights.
        activations: bytes that one block of images needs beside them, estimated.
        features: bytes of features that the sweep leaves on disk.
        downloads: name and bytes at most, of the files that are not in the cache yet.
        seconds: estimated from one timed call on this device.
    """

    nfe: dict[int, int]
    images: int
    flops: float
    flops_per_call: float
    weights: int
    activations: int
    features: int
    downloads: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        calls = ", ".join(f"{skip}: {count}" for skip, count in self.nfe.items())
        fetched = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in self.downloads.items())
        return "\n".join(
            [
                f"network calls of an image, by skipped steps: {calls}",
                f"images: {self.images:,}",
                f"operations: {self.flops:.3g} FLOP, {self.flops_per_call / 1e9:.3g} GFLOP a call",
                f"memory: {self.weights / 1e6:.0f} MB of weights, "
                f"about {self.activations / 1e6:.0f} MB for a block",
                f"disk: {self.features / 1e6:.0f} MB of features",
                f"to download, at most: {fetched or 'nothing'}",
                f"estimated time on this device: {_duration(self.seconds)}",
            ]
        )


def forecast(preset: Preset, device: torch.device) -> Forecast:
    """The cost of the whole sweep of a preset on this device; writes and fetches nothing."""
    config = _config(preset)
    with torch.device("meta"):
        blank = build(config)
    calls = {skip: nfe(preset.steps, skip) for skip in preset.skips}
    images = preset.seeds.count * len(preset.skips)
    meta = torch.device("meta")
    per_call = _flops(blank, _images(blank, 1, meta), torch.ones((), device=meta))
    flops_of_features, dim = _feature_cost(preset, blank)
    total = preset.seeds.count * sum(calls.values()) * per_call + images * flops_of_features
    return Forecast(
        nfe=calls,
        images=images,
        flops=total,
        flops_per_call=per_call,
        weights=FLOAT * sum(p.numel() for p in blank.parameters()),
        activations=preset.block * _kept_activations(blank),
        features=FLOAT * dim * images,
        downloads=_downloads(preset),
        seconds=total / _speed(config, device),
    )


def _config(preset: Preset) -> dict[str, Any]:
    """The network's configuration: of its file if that is here, else what the preset knows."""
    path = _cached(preset.network)
    return (
        checkpoint.load(path).config if path.exists() or not preset.knowledge else preset.knowledge
    )


def _cached(file: File) -> Path:
    return cache_dir() / file.name if isinstance(file, Source) else file


def _images(network: Preconditioned, count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, *image_shape(network), device=device)


def _flops(call: Callable[..., Tensor], *inputs: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call(*inputs)
    return float(counter.get_total_flops())


def _feature_cost(preset: Preset, network: Preconditioned) -> tuple[float, int]:
    """Operations for one image, and the length of its features."""
    if not isinstance(preset.features, Source):
        extractor = features.load(preset.features)
        pixels = _images(network, 1, torch.device("cpu")).to(torch.uint8)
        return _flops(extractor, pixels), extractor.dim
    with torch.device("meta"):
        blank = inception3().eval()
    return _flops(blank, torch.zeros(1, 3, SIZE, SIZE, device="meta")), Inception.dim


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
    if not preset.parameters.exists():
        named += sources_of(preset.dataset)
    sources = [file for file in named if isinstance(file, Source) and not _cached(file).exists()]
    return {source.name: source.size_limit for source in sources}


def _speed(config: dict[str, Any], device: torch.device) -> float:
    """Operations a second of one call, after one that warms up."""
    network = build(config).eval().to(device)
    x, sigma = _images(network, PROBE, device), torch.ones((), device=device)
    flops = _flops(network, x, sigma)
    started = time.perf_counter()
    with torch.inference_mode():
        network(x, sigma).sum().item()  # waits for the device
    return flops / (time.perf_counter() - started)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"

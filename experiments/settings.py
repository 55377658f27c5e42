"""From the words of a command line to a preset, a device and everything a sweep needs, loaded."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm import checkpoint, features, fid
from edm.features import Features
from edm.precondition import Preconditioned
from experiments import presets, results
from experiments.presets import Preset, SeedRange, as_file, locate
from experiments.sampling import check_shape, image_shape
from experiments.sweep import Sweep
from linear_structure import datasets, distributed, get_parameters, parameters
from linear_structure.denoise import Denoiser
from linear_structure.errors import UsageError
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.parameters import Parameters
from linear_structure.points import PointCloud

REFERENCE_BATCH = 500


def add_preset(parser: argparse.ArgumentParser, default: str = "cifar10") -> None:
    """The preset, and an option for each of its values."""
    parser.add_argument("preset", nargs="?", default=default, help=", ".join(presets.presets()))
    change = parser.add_argument_group("values of the preset that may be changed")
    change.add_argument("--dataset", help="known name, folder, zip or array of images")
    change.add_argument("--parameters", type=Path, help="parameter directory to teleport with")
    change.add_argument("--network", help="checkpoint: path or URL")
    change.add_argument("--network-sha256", help="digest that a fetched network must have")
    change.add_argument("--features", help="feature network: path or URL")
    change.add_argument("--features-sha256", help="digest that fetched features must have")
    change.add_argument("--reference", help="feature statistics (.npz) of real images: path or URL")
    change.add_argument("--reference-sha256", help="digest that fetched statistics must have")
    change.add_argument("--steps", type=int, help="steps of the sigma grid")
    change.add_argument("--sigma-min", type=float)
    change.add_argument("--sigma-max", type=float)
    change.add_argument("--rho", type=float)
    change.add_argument("--skips", type=parse_skips, help="numbers of skipped steps, such as 0,2,4")
    change.add_argument("--seeds", type=parse_range, help="range FIRST-LAST, such as 0-999")
    change.add_argument("--block", type=int, help="seeds that are sampled together")


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda, cuda:1")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: the preset's, else all usable cores)"
    )


def parse_skips(text: str) -> tuple[int, ...]:
    """Ascending numbers of a comma list, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers and commas, such as 0,2,4")
    return tuple(sorted({int(part) for part in parts}))


def parse_range(text: str) -> SeedRange:
    """An inclusive range FIRST-LAST."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIRST-LAST, such as 0-999")
    return SeedRange(int(first), int(last))


def chosen_preset(options: argparse.Namespace) -> Preset:
    """The preset with the values that were given in place of its own."""
    preset = presets.find(options.preset)
    plain = ("dataset", "parameters", "steps", "sigma_min", "sigma_max", "rho", "skips", "seeds")
    given: dict[str, Any] = {name: getattr(options, name) for name in (*plain, "block")}
    for name in ("network", "features", "reference"):
        text, sha256 = getattr(options, name), getattr(options, f"{name}_sha256")
        if sha256 and not text:
            raise UsageError(f"--{name}-sha256 goes with --{name}")
        given[name] = as_file(text, sha256) if text else None
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def chosen_device(
    options: argparse.Namespace, preset: Preset | None = None
) -> tuple[torch.device, int]:
    """Device and CPU threads; the threads are set here, once, whatever the environment says.

    Raises:
        UsageError: the device is unknown or not there.
    """
    wanted = (options.threads, preset.threads if preset else None, distributed.usable_cores())
    threads = next(count for count in wanted if count is not None)
    if threads < 1:
        raise UsageError(f"--threads {threads}: expected 1 or more")
    distributed.set_threads(threads)
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: there is no such device here") from error
    return device, threads


def load_sweep(preset: Preset, device: torch.device, threads: int, save_images: bool) -> Sweep:
    """Load everything a sweep needs; a missing default parameter directory is made."""
    network = load_network(preset, device)
    extractor = features.load(locate(preset.features), device=device)
    check_features(extractor, network)
    return Sweep(
        preset=preset,
        network=network,
        network_digest=checkpoint.network_digest(network),
        parameters=load_parameters(preset),
        features=extractor,
        reference=load_reference(preset, extractor),
        device=device,
        threads=threads,
        root=results.ROOT,
        save_images=save_images,
    )


def check_features(extractor: Features, network: Preconditioned) -> None:
    """Refuse a feature network for images of other channels, before anything is sampled.

    Raises:
        UsageError: it is.
    """
    try:
        extractor(torch.zeros(1, *image_shape(network), dtype=torch.uint8))
    except ValueError as error:
        raise UsageError(f"the features do not suit the network's images: {error}") from error


def load_network(preset: Preset, device: torch.device) -> Preconditioned:
    """The preset's network, in evaluation mode on the device."""
    return prepared(checkpoint.load(locate(preset.network)), device)


def prepared(
    network: Preconditioned,
    device: torch.device,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Preconditioned:
    """The network on the device, in the layout that is fastest there.

    Args:
        dtype: what it computes in; None: as it was published.
        compiled: whether to compile it at the first call.

    Raises:
        UsageError: half precision on a CPU.
    """
    if dtype in (torch.float16, torch.bfloat16) and device.type == "cpu":
        raise UsageError(f"{dtype} is for GPUs: expected float32 on a CPU")
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.compute_dtype = dtype
    if compiled:
        network.compile()
    return network


def analytic_models(preset: Preset, network: Preconditioned) -> dict[str, Denoiser]:
    """The denoisers that a network's score is compared with, by name."""
    model = load_parameters(preset).model
    if not isinstance(model, Gaussian):
        raise UsageError(f"{preset.parameters} holds no Gaussian: scores are compared with one")
    check_shape(model, network)
    points = PointCloud(datasets.load(preset.dataset).images().flatten(1))
    isotropic = Isotropic(model.mean)
    return {
        "isotropic": isotropic.denoise,
        "Gaussian": model.denoise,
        "exact point cloud": points.denoise,
    }


def load_parameters(preset: Preset) -> Parameters:
    """The preset's parameter directory; the default one is made from the dataset if it is absent.

    Raises:
        UsageError: a directory that the user named does not exist.
    """
    directory = preset.parameters
    default = directory == presets.find(preset.name).parameters
    if default and not directory.exists():
        if distributed.rank() == 0:
            make_parameters(preset)
        distributed.wait_for([directory])
    loaded = parameters.load(directory)
    source, wanted = loaded.story.get("dataset"), Path(preset.dataset)
    if default and source not in (None, wanted.name, wanted.stem):
        raise UsageError(
            f"{directory} was made from {source}, not from {preset.dataset}: "
            "name another directory with --parameters"
        )
    if loaded.notice and distributed.rank() == 0:
        print(loaded.notice)
    return loaded


def make_parameters(preset: Preset) -> None:
    """Write the Gaussian parameter directory of the preset's dataset."""
    print(f"{preset.parameters} does not exist: making it from {preset.dataset}")
    model, story = get_parameters.fit_gaussian(datasets.load(preset.dataset))
    parameters.save(preset.parameters, model, story)


def load_reference(preset: Preset, extractor: Features) -> fid.Statistics:
    """Published statistics where the preset has them, else those of all images of the dataset."""
    if preset.reference is not None:
        return fid.read(locate(preset.reference))
    return fid.measure(_features_of(preset.dataset, extractor), extractor.digest)


def _features_of(dataset: str, extractor: Features) -> Iterator[Tensor]:
    images = datasets.load(dataset)
    with tqdm(total=images.count, desc="reference", unit=" images", disable=None) as bar:
        for block, _ in images.blocks(REFERENCE_BATCH):
            yield extractor(block)
            bar.update(len(block))

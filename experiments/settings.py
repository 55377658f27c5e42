"""From the words of a command line to a preset, a device and everything a sweep needs, loaded."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.checkpoints import checkpoint
from edm.evaluation import features, fid
from edm.evaluation.features import Features
from edm.precondition import Preconditioned
from experiments import presets, results
from experiments.presets import Preset, SeedRange
from experiments.sampling import SAMPLERS, image_shape
from experiments.sweep import Sweep
from experiments.teleports import check_classes, check_shape
from linear_structure import get_parameters, parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.parameters import Model, Parameters
from linear_structure.points import PointCloud
from linear_structure.system import download, machine
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_tensor
from linear_structure.system.precision import set_tf32

REFERENCE_BATCH = 500


def add_preset(parser: argparse.ArgumentParser, default: str = "cifar10") -> None:
    """The preset, and an option for each of its values."""
    parser.add_argument("preset", nargs="?", default=default, help=", ".join(presets.presets()))
    change = parser.add_argument_group("values of the preset that may be changed")
    change.add_argument("--dataset", help="known name, folder, zip or array of images")
    add_parameters(change.add_argument)
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
    change.add_argument("--sampler", choices=SAMPLERS)
    change.add_argument(
        "--by-class",
        action="store_true",
        default=None,
        help="teleport each sample of a conditional network by the parameters of its class",
    )
    change.add_argument("--skips", type=parse_skips, help="numbers of skipped steps, such as 0,2,4")
    change.add_argument("--seeds", type=parse_range, help="range FIRST-LAST, such as 0-999")
    change.add_argument("--block", type=int, help="seeds that are sampled together")


def add_parameters(add: Callable[..., Any]) -> None:
    """The parameter directory, and how to read one that was made elsewhere."""
    add("--parameters", type=Path, metavar="DIR", help="parameter directory to teleport with")
    add(
        "--eigenvalue-scale",
        type=float,
        metavar="FACTOR",
        help="on the eigenvalues of --parameters: 4 where they describe pixels in [0, 1]",
    )


def add_tf32(parser: argparse.ArgumentParser) -> None:
    """Whether a network may trade precision for speed."""
    parser.add_argument(
        "--tf32", action="store_true", help="faster networks on NVIDIA GPUs, 10 bits of mantissa"
    )


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
    check_scale(options)
    plain = ("dataset", "parameters", "eigenvalue_scale", "by_class", "skips", "seeds", "block")
    sampling = ("sampler", "steps", "sigma_min", "sigma_max", "rho")
    given: dict[str, Any] = {name: getattr(options, name) for name in (*plain, *sampling)}
    if options.steps is not None and options.skips is None:
        given["skips"] = tuple(skip for skip in preset.skips if skip < options.steps)
    given["knowledge"] = {} if options.network else None  # it is of the preset's own network
    for name in ("network", "features", "reference"):
        text, sha256 = getattr(options, name), getattr(options, f"{name}_sha256")
        if sha256 and not text:
            raise UsageError(f"--{name}-sha256 goes with --{name}")
        given[name] = download.given(text, sha256) if text else None
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def check_images_count(preset: Preset) -> None:
    """Refuse images that a sweep would not look at.

    Raises:
        UsageError: the user named images, and neither parameters nor reference come from them.
    """
    if preset.names_images and not preset.makes_parameters and preset.reference is not None:
        raise UsageError(
            f"--dataset {preset.dataset} would change nothing: this sweep has its parameters from "
            f"{preset.parameters} and a reference of its own"
        )


def check_unused(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse options of a preset that a command has no use for.

    Raises:
        UsageError: one of the names was given; the message ends with the reason.
    """
    for name in names:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} would change nothing: {reason}")


def check_scale(options: argparse.Namespace) -> None:
    """Refuse to rescale the eigenvalues of a directory that nobody named.

    Raises:
        UsageError: there is a scale alone.
    """
    if options.eigenvalue_scale is not None and options.parameters is None:
        raise UsageError("--eigenvalue-scale goes with --parameters")


def chosen_device(
    options: argparse.Namespace, preset: Preset | None = None
) -> tuple[torch.device, int]:
    """Device and CPU threads; the threads are set here, once, whatever the environment says.

    Raises:
        UsageError: the device is unknown or not there, or there is less than one thread.
    """
    wanted = (options.threads, preset.threads if preset else None, machine.usable_cores())
    threads = next(count for count in wanted if count is not None)
    machine.set_threads(threads)
    return machine.chosen_device(options.device), threads


def load_sweep(
    preset: Preset,
    device: torch.device,
    threads: int,
    save_images: bool = False,
    tf32: bool = False,
) -> Sweep:
    """Load everything a sweep needs; a missing default parameter directory is made."""
    network = load_network(preset, device, tf32)
    extractor = features.load(download.located(preset.features), device=device)
    check_features(extractor, network)
    return Sweep(
        preset=preset,
        network=network,
        network_digest=checkpoint.network_digest(network),
        parameters=load_parameters(preset, network),
        features=extractor,
        reference=load_reference(preset, network, extractor),
        device=device,
        threads=threads,
        root=results.ROOT,
        save_images=save_images,
        tf32=tf32,
        by_class=load_classes(preset, network),
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


def load_network(preset: Preset, device: torch.device, tf32: bool = False) -> Preconditioned:
    """The preset's network, in evaluation mode on the device; errors also as in `prepared`."""
    return prepared(checkpoint.load(download.located(preset.network)), device, tf32=tf32)


def prepared(
    network: Preconditioned,
    device: torch.device,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
    tf32: bool = False,
) -> Preconditioned:
    """The network on the device, in the layout that is fastest there.

    Args:
        dtype: what it computes in; None: as it was published.
        compiled: whether to compile it at the first call.
        tf32: let NVIDIA GPUs round the factors of float32 products to 10 bits; set for the process,
            whatever was set before.

    Raises:
        UsageError: half precision or TF32 on a CPU.
    """
    if dtype in (torch.float16, torch.bfloat16) and device.type == "cpu":
        raise UsageError(f"{dtype} is for GPUs: expected float32 on a CPU")
    allow_tf32(tf32, device)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.compute_dtype = dtype
    if compiled:
        network.compile()
    return network


def allow_tf32(allowed: bool, device: torch.device) -> None:
    """Let the device round the factors of float32 products to 10 bits, or not, in this process.

    Raises:
        UsageError: TF32 on a CPU.
    """
    if allowed and device.type == "cpu":
        raise UsageError("--tf32 is for GPUs: a CPU computes in float32")
    set_tf32(allowed)


def analytic_models(preset: Preset, network: Preconditioned) -> dict[str, Model]:
    """The models that a network's score is compared with, by name.

    Raises:
        UsageError: the parameters hold no Gaussian, or they or the images are of another size.
    """
    loaded = load_parameters(preset, network)
    model = loaded.model
    if not isinstance(model, Gaussian):
        raise UsageError(f"{preset.parameters} holds no Gaussian: scores are compared with one")
    check_shape(model, network)
    models: dict[str, Model] = {"isotropic": Isotropic(model.mean), "Gaussian": model}
    images = images_at_hand(preset, network, loaded)
    return models if images is None else {**models, "point cloud": PointCloud(images.flatten(1))}


def images_at_hand(preset: Preset, network: Preconditioned, loaded: Parameters) -> Tensor | None:
    """All images as uint8 (n, C, H, W), or None where the preset has none.

    A sentence says so, or that the loaded parameters are of other images.
    """
    if preset.dataset is None:
        if machine.rank() == 0:
            print(
                f"{preset.name} comes without images: point clouds and mixtures need them, "
                "give --dataset"
            )
        return None
    images = load_dataset(preset, network).images()
    known = loaded.story.get("digest")
    if known not in (None, digest_of_tensor(images)) and machine.rank() == 0:
        print(f"{preset.parameters} was made from other images than those of {preset.dataset}")
    return images


def load_dataset(preset: Preset, network: Preconditioned) -> Dataset:
    """The preset's images.

    Raises:
        UsageError: the network makes images of another size, or the preset has no images.
    """
    if preset.dataset is None:
        raise UsageError(f"{preset.name} comes without images: give --dataset")
    dataset, expected = datasets.load(preset.dataset), image_shape(network)
    if dataset.shape != expected:
        found, made = (" x ".join(map(str, shape)) for shape in (dataset.shape, expected))
        raise UsageError(f"{dataset.name} holds images of {found}, the network makes {made}")
    return dataset


def load_parameters(preset: Preset, network: Preconditioned) -> Parameters:
    """The preset's parameter directory; the default one is made from the dataset if it is absent.

    Raises:
        UsageError: a directory that the user named does not exist, or the default one is of, or
            would be made from, images that are not the network's.
    """
    directory = preset.parameters
    default = preset.makes_parameters
    if default and not directory.exists():
        if machine.rank() == 0:
            make_parameters(preset, network)
        machine.wait_for([directory])
    loaded = parameters.load(directory, preset.eigenvalue_scale)
    if default and loaded.story:
        check_source(preset, network, loaded)
    if loaded.notice and machine.rank() == 0:
        print(loaded.notice)
    return loaded


def check_source(preset: Preset, network: Preconditioned, loaded: Parameters) -> None:
    """Refuse parameters of other images than the preset's.

    Images that the user named, or that are read anyway, are compared pixel by pixel; others, which
    may not be here, by their name.

    Raises:
        UsageError: they are of others, or the images cannot be read.
    """
    source = loaded.story.get("dataset")
    if preset.reference is None or preset.names_images:
        same = loaded.story.get("digest") == load_dataset(preset, network).digest()
    else:
        same = source in (preset.dataset, Path(str(preset.dataset)).stem)  # name or path of a zip
    if not same:
        raise UsageError(
            f"{preset.parameters} was made from other images ({source}) than {preset.dataset}: "
            "name another directory with --parameters"
        )


def load_classes(preset: Preset, network: Preconditioned) -> dict[int, Parameters]:
    """The parameters of each class, if the preset teleports by class; else none.

    Raises:
        UsageError: the network has no classes, or one of them has no parameters.
    """
    if not preset.by_class:
        return {}
    found = parameters.load_by_class(preset.parameters, preset.eigenvalue_scale)
    check_classes(found, network.label_dim)
    for each in found.values():
        check_shape(each.model, network)
    return found


def make_parameters(preset: Preset, network: Preconditioned) -> None:
    """Write the Gaussian parameter directory of the preset's dataset."""
    dataset = load_dataset(preset, network)
    print(f"{preset.parameters} does not exist: making it from {preset.dataset}")
    model, story = get_parameters.fit_gaussian(dataset)
    parameters.save(preset.parameters, model, story)


def load_reference(preset: Preset, network: Preconditioned, extractor: Features) -> fid.Statistics:
    """Published statistics where the preset has them, else those of all images of the dataset.

    Raises:
        UsageError: the statistics cannot be read, or the images are not of the network's size.
    """
    if preset.reference is not None:
        return fid.read(download.located(preset.reference))
    dataset = load_dataset(preset, network)
    return fid.measure(_features_of(dataset, extractor), extractor.digest)


def _features_of(dataset: Dataset, extractor: Features) -> Iterator[Tensor]:
    with tqdm(total=dataset.count, desc="reference", unit=" images", disable=None) as bar:
        for block, _ in dataset.blocks(REFERENCE_BATCH):
            yield extractor(block)
            bar.update(len(block))

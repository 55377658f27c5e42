"""Everything that an experiment needs, loaded: networks, parameters, images, statistics."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from edm.evaluation import features, fid
from edm.evaluation.features import Features, Resized
from edm.network import Network
from edm.precondition import Preconditioned
from experiments import networks
from experiments.comparison import Makers, models
from experiments.networks import Code, Shape
from experiments.own import side_for
from experiments.presets import Preset
from experiments.sweep import Sweep, sampled_rows
from linear_structure import fit, parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.denoise import Model
from linear_structure.gaussian import EigenGaussian, Gaussian
from linear_structure.parameters import Parameters
from linear_structure.system import download
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_tensor
from linear_structure.system.machine import Machine, rank, wait_for
from linear_structure.teleport import Teleport, check_classes

REFERENCE_BATCH = 500


def check_reference(preset: Preset) -> None:
    """Refuse a network of the user's whose samples would be compared with the preset's images.

    What images it is of, only the parameters that were named with it can tell.

    Raises:
        UsageError: they are of others, and neither images nor their statistics were named.
    """
    named = set(preset.replaced)
    if not {"network", "parameters"} <= named or {"dataset", "reference"} & named:
        return
    story, own = parameters.read_story(preset.parameters), preset.defined.parameters
    known = parameters.read_story(own) if own.exists() else {}
    if known:
        same = story.get("digest") == known["digest"]
    else:
        same = story.get("dataset") in (preset.dataset, Path(str(preset.dataset)).stem)
    if story and not same:
        raise UsageError(
            f"{preset.parameters} is of {story['dataset']}, and samples of the network would be "
            f"compared with {preset.reference or preset.dataset}, which is not: name those images "
            "with --dataset, or their statistics, which scripts/fid.py ref makes, with --reference"
        )


def load_sweep(
    preset: Preset,
    machine: Machine,
    save_images: bool = False,
    alone: bool = False,
    dtype: torch.dtype | None = None,
) -> Sweep:
    """Load everything a sweep needs; a missing default parameter directory is made.

    Args:
        dtype: as that of `load_network`.
    """
    check_reference(preset)
    network = load_network(preset, machine, dtype)
    if preset.makes_parameters and preset.reference is None:
        load_dataset(preset, network)  # first: features that suit it would be blamed
    extractor = load_features(preset, machine.device, network.shape)
    check_features(extractor, network)
    return Sweep(
        preset=at_home(preset, network),
        network=network,
        teleport=load_teleport(preset, network),
        features=extractor,
        reference=load_reference(preset, network, extractor),
        rows=rows_needed(preset, network, extractor),
        machine=machine,
        save_images=save_images,
        alone=alone,
    )


def at_home(preset: Preset, network: Network) -> Preset:
    """A preset without images that was given those it was made from: to its title no others.

    Raises:
        UsageError: as `load_dataset`.
    """
    plain = preset.defined
    if plain.dataset is not None or preset.dataset is None:
        return preset
    known = parameters.read_story(plain.parameters).get("digest")
    same = known == load_dataset(preset, network).digest()
    return replace(preset, defined=replace(plain, dataset=preset.dataset)) if same else preset


def load_features(preset: Preset, device: torch.device, shape: Shape) -> Features:
    """The preset's feature network for images of a shape, on a device."""
    path = download.located(preset.features)
    return resize_if_shipped(features.load(path, device=device), path, shape)


def resize_if_shipped(found: Features, path: Path, shape: Shape) -> Features:
    """The features of a file; if it is a shipped one, of images brought to those it learned on."""
    side = side_for(path, [shape])
    return Resized(found, side) if side else found


def check_features(extractor: Features, network: Network) -> None:
    """Refuse, before anything is sampled, a feature network for other channels (UsageError)."""
    try:
        extractor(torch.zeros(1, *network.shape, dtype=torch.uint8))
    except ValueError as error:
        raise UsageError(f"the features do not suit the network's images: {error}") from error


def load_network(preset: Preset, machine: Machine, dtype: torch.dtype | None = None) -> Network:
    """The preset's network, in evaluation mode on the machine's device; raises as `networks.load`.

    Args:
        dtype: what it computes in, where that is another type than its own.
    """
    network = networks.load(preset.network, machine, shape_of(preset), dtype)
    if isinstance(network, Preconditioned) and dtype == network.published_dtype(machine.device):
        network.compute_dtype = None
    return network


def shape_of(preset: Preset) -> Shape | None:
    """The shape of the dataset's images, if a function of the user's is to be told of it."""
    told = isinstance(preset.network, Code) and preset.dataset is not None
    return datasets.load(str(preset.dataset)).shape if told else None


def gaussian_of(preset: Preset, model: Model) -> EigenGaussian:
    """The Gaussian that a network is compared with; UsageError where the model is another."""
    if not isinstance(model, EigenGaussian):
        raise UsageError(f"{preset.parameters} holds no Gaussian: scores are compared with one")
    return model


def components_of(preset: Preset, model: Model) -> Gaussian:
    """The Gaussian by its principal components; UsageError where the model has none."""
    if not isinstance(model, Gaussian):
        raise UsageError(
            f"{preset.parameters} is of kind {model.kind}: principal components are followed, "
            "which parameters of kind gaussian hold"
        )
    return model


def load_models(preset: Preset, network: Network) -> tuple[Makers, Tensor | None]:
    """The models, mixtures apart, that the network's score is compared with, and their images.

    Raises:
        UsageError: the parameters hold no Gaussian, or they or the images are of another size.
    """
    gaussian = gaussian_of(preset, load_teleport(preset, network).model)
    images = images_at_hand(preset, network)
    return models(gaussian, images, components=()), images


def images_at_hand(preset: Preset, network: Network) -> Tensor | None:
    """As `load_images`, or None where the preset has none; a sentence says so."""
    if preset.dataset is None:
        if rank() == 0:
            needed = "point clouds and mixtures need them, give --dataset"
            print(f"{preset.name} comes without images: {needed}")
        return None
    return load_images(preset, network)


def labels_at_hand(preset: Preset, network: Network) -> Tensor | None:
    """Classes (n,) of the preset's images, int64; None where it has no images, or they have none.

    Raises:
        UsageError: as `load_dataset`.
    """
    return None if preset.dataset is None else load_dataset(preset, network).labels()


def load_images(preset: Preset, network: Network) -> Tensor:
    """All images as uint8 (n, C, H, W); a sentence says if the parameters are of others.

    Raises:
        UsageError: as `load_dataset`.
    """
    images = load_dataset(preset, network).images()
    known = parameters.read_story(preset.parameters).get("digest")
    if known not in (None, digest_of_tensor(images)) and rank() == 0:
        print(f"{preset.parameters} was made from other images than those of {preset.dataset}")
    return images


def load_dataset(preset: Preset, network: Network) -> Dataset:
    """The preset's images.

    Raises:
        UsageError: the network makes images of another size, or the preset has no images.
    """
    if preset.dataset is None:
        raise UsageError(f"{preset.name} comes without images: give --dataset")
    dataset, expected = datasets.load(preset.dataset), network.shape
    if dataset.shape != expected:
        found, made = (" x ".join(map(str, shape)) for shape in (dataset.shape, expected))
        raise UsageError(
            f"{dataset.name} holds images of {found}, the network makes {made}: make images like "
            f"that with scripts/prepare_images.py, or give a network of {found}"
        )
    return dataset


def labels_for(dataset: Dataset, network: Network) -> Tensor | None:
    """The classes of the images, where the network has any; UsageError where they are unknown."""
    if not network.label_dim:
        return None
    if (labels := dataset.labels()) is None:
        raise UsageError(
            f"the network has classes, and the images of {dataset.name} no labels: give them, as "
            "a folder for each class or in dataset.json, or give a network without classes"
        )
    return labels


def load_teleport(preset: Preset, network: Network) -> Teleport:
    """The model of the preset's parameters, or one a class, that suits the network.

    Raises:
        UsageError: it does not, or as in `load_parameters`.
    """
    own, by_class = load_parameters(preset, network).model, {}
    if preset.by_class:
        found = parameters.load_by_class(preset.parameters, preset.eigenvalue_scale)
        check_classes(found, network.label_dim)
        by_class = {label: each.model for label, each in found.items()}
    teleport = Teleport(own, by_class)
    teleport.check(network)
    return teleport


def load_parameters(preset: Preset, network: Network) -> Parameters:
    """The preset's parameter directory; the default one is made from the dataset if it is absent.

    Raises:
        UsageError: a directory that the user named does not exist, or the default one is of, or
            would be made from, images that are not the network's.
    """
    directory = preset.parameters
    default = preset.makes_parameters
    if default and not directory.exists():
        if rank() == 0:
            print(f"{directory} does not exist: making it from {preset.dataset}")
            dataset = load_dataset(preset, network)
            known = preset.by_class and labels_for(dataset, network) is not None
            classes = dataset.classes() if known else None
            by_class = () if classes is None else fit.fit_classes(dataset, classes)
            parameters.save(directory, *fit.fit_gaussian(dataset), by_class)
        wait_for([directory])
    loaded = parameters.load(directory, preset.eigenvalue_scale)
    if default and loaded.story:
        check_source(preset, network, loaded)
    if loaded.notice and rank() == 0:
        print(loaded.notice)
    return loaded


def check_source(preset: Preset, network: Network, loaded: Parameters) -> None:
    """Refuse parameters of other images than the preset's.

    Images that the user named, or that are read anyway, are compared pixel by pixel; others, which
    may not be here, by their name.

    Raises:
        UsageError: they are of others, or the images cannot be read.
    """
    source = loaded.story.get("dataset")
    if preset.reference is None or "dataset" in preset.replaced:
        same = loaded.story.get("digest") == load_dataset(preset, network).digest()
    else:
        same = source in (preset.dataset, Path(str(preset.dataset)).stem)  # name or path of a zip
    if not same:
        raise UsageError(
            f"{preset.parameters} was made from other images ({source}) than {preset.dataset}: "
            "name another directory with --parameters"
        )


def load_reference(preset: Preset, network: Network, extractor: Features) -> fid.Statistics:
    """Published statistics where the preset has them, else those of all images of the dataset.

    Raises:
        UsageError: the statistics cannot be read, or the images are not of the network's size.
    """
    if preset.reference is not None:
        return fid.read(download.located(preset.reference))
    dataset = load_dataset(preset, network)
    count = -(-dataset.count // REFERENCE_BATCH)
    blocks = tqdm(dataset.blocks(REFERENCE_BATCH), "reference", count, unit=" blocks", disable=None)
    return fid.measure((extractor(images) for images in blocks), extractor.digest)


def rows_needed(preset: Preset, network: Network, extractor: Features) -> Tensor | None:
    """Features (m, D) float32 of some of the reference's images, where KID is to be shown.

    That is for no more samples than features, if the images are at hand.
    """
    if preset.reference is not None or preset.seeds.count > extractor.dim:
        return None
    dataset = load_dataset(preset, network)
    some = dataset.only(torch.tensor(sampled_rows(dataset.count)))
    blocks = some.blocks(REFERENCE_BATCH)
    return torch.cat([extractor(images).cpu().float() for images in blocks])

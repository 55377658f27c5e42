"""Presets: each value fits the others, and what is shipped is enough where no image is needed."""

import argparse
import dataclasses
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edm.checkpoints import checkpoint, shipped
from edm.evaluation import features, fid
from experiments import loading, options, sweep
from experiments.presets import Preset, find
from linear_structure import parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.fit import fit_gaussian
from linear_structure.images import save_png
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system import machine
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_file
from linear_structure.system.machine import Machine

CPU = Machine(torch.device("cpu"), 1)
FASHION, SMALL = find("fashion"), find("cifar10-small")
OFFLINE = pytest.mark.parametrize("preset", [FASHION, SMALL], ids=lambda preset: preset.name)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match="digits, fashion, cifar10-small, cifar10, ffhq64, afhqv2"):
        find("cifar")


def test_a_preset_of_the_users_own_needs_no_name_that_is_known():
    mine = dataclasses.replace(find("digits"), name="mine")
    assert mine.makes_parameters and mine.replaced == ("name",)
    other = dataclasses.replace(mine, steps=5, skips=(0,), parameters=SMALL.parameters)
    assert other.replaced == ("name", "parameters", "steps", "skips")
    assert not other.makes_parameters


def test_a_preset_that_is_made_by_hand_knows_what_was_replaced():
    """Parameters that were named and are not there are an error, and never fitted."""
    digits = find("digits")
    values = {each.name: getattr(digits, each.name) for each in dataclasses.fields(Preset)}
    mine = Preset(**{**values, "name": "mine", "defined": None})
    assert mine.makes_parameters and mine.replaced == ()
    named = dataclasses.replace(mine, parameters=SMALL.parameters)
    assert named.replaced == ("parameters",) and not named.makes_parameters
    assert dataclasses.replace(named, steps=19).replaced == ("parameters", "steps")


def test_help_says_how_many_threads_there_are():
    parser = argparse.ArgumentParser()
    machine.add_options(parser)
    texts = [" ".join(each.format_help().split()) for each in (parser, options.command(None, "s"))]
    assert "(default: all usable cores)" in texts[0]
    assert "(default: the preset's if it says, else all usable cores)" in texts[1]


def test_help_says_what_what_each_value_means_and_what_the_presets_have():
    text = " ".join(options.command(None, "sweep").format_help().split())
    meant = [each.metadata["meaning"] for each in dataclasses.fields(Preset) if each.metadata]
    assert len(meant) == 15 and all(meaning in text for meaning in meant)
    assert "| steps | 18 | 18 | 18 | 18 | 40 | 40 |" in text
    assert "| seeds | 0-999 | 0-499 | 0-499 | 0-49999 |" in text


def size_of(*names: str) -> int:
    paths = [path for name in names for path in (shipped(name), *shipped(name).glob("*"))]
    return sum(path.stat().st_size for path in paths if path.is_file())


def test_shipped_files_are_small():
    assert size_of("cifar10-denoiser.safetensors") <= 16e6
    assert size_of("cifar10-features.safetensors") <= 4e6
    assert size_of("cifar10-parameters") <= 4e6
    digits = ("denoiser", "conditional", "features")
    assert size_of(*(f"digits-{name}.safetensors" for name in digits)) <= 4e6
    assert size_of("fashion-denoiser.safetensors") <= 2.5e6
    assert size_of("fashion-parameters") <= 1e6
    assert size_of(*(path.name for path in shipped("").iterdir())) <= 32e6


def test_every_shipped_file_is_on_a_card_with_its_size_and_digest():
    """Of a folder of parameters, the digests are in its own story, which loading compares."""
    row = re.compile(r"^\| `([^`]+)` \| ([\d,]+) bytes \| (.*) \|$", re.M)
    cards = [card.read_text(encoding="utf-8") for card in shipped("").glob("*.md")]
    told = {name.rstrip("/"): rest for card in cards for name, *rest in row.findall(card)}
    files = {path.name: path for path in shipped("").iterdir() if path.suffix != ".md"}
    assert told.keys() == files.keys()
    for name, (size, digest) in told.items():
        assert size_of(name) == int(size.replace(",", "")), name
        path = files[name]
        known = "in its `parameters.json`" if path.is_dir() else f"`{digest_of_file(path)}`"
        assert digest == known, name


@OFFLINE
def test_it_runs_from_shipped_files_alone(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = dataclasses.replace(preset, seeds=SeedRange(0, 3), block=4, skips=(8, 12), steps=14)
    loaded = loading.load_sweep(few, CPU)
    results = list(sweep.run(loaded))
    assert [result.outputs["count"] for result in results] == [4, 4]
    assert all(result.distance > 0 for result in results)
    names = {"fashion": "FD-fashion", "cifar10-small": "FD-cifar"}
    assert results[0].inputs["distance_name"] == names[preset.name]


def titles(preset, network):
    models, _ = loading.load_models(preset, network)
    return [key.title for key in models]


def test_without_images_the_models_that_need_them_are_left_out(capsys):
    network = loading.load_network(SMALL, CPU)
    assert titles(SMALL, network) == ["isotropic", "isotropic with variance", "Gaussian"]
    assert "give --dataset" in capsys.readouterr().out
    with pytest.raises(UsageError, match="comes without images: give --dataset"):
        loading.load_dataset(SMALL, network)


def test_images_that_the_parameters_are_not_of_are_named(tmp_path, capsys):
    network = loading.load_network(SMALL, CPU)
    np.save(tmp_path / "others.npy", np.zeros((2, 3, 32, 32), np.uint8))
    others = dataclasses.replace(SMALL, dataset=str(tmp_path / "others.npy"))
    assert titles(others, network)[3:] == ["point cloud"]
    assert "was made from other images than those of" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "title"), [("same", ""), ("other", " with another dataset")])
def test_the_images_a_preset_was_made_from_are_no_others(kind, title, tmp_path):
    """To its title, where it comes without images and they are given."""
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    parameters.save(tmp_path / "made", *fit_gaussian(Dataset.of("made", images)))
    np.save(tmp_path / "given.npy", (images if kind == "same" else 255 - images).numpy())
    plain = dataclasses.replace(SMALL, parameters=tmp_path / "made", defined=None)
    given = dataclasses.replace(plain, dataset=str(tmp_path / "given.npy"))
    network = loading.load_network(SMALL, CPU)
    assert loading.at_home(plain, network) is plain
    assert given.title == "cifar10-small with another dataset"
    assert loading.at_home(given, network).title == f"cifar10-small{title}"


def test_a_default_directory_of_other_images_is_refused_whatever_their_name(tmp_path, monkeypatch):
    """Two arrays of one name: the second is not teleported by the first one's Gaussian."""
    monkeypatch.chdir(tmp_path)
    digits = find("digits")
    network = loading.load_network(digits, CPU)
    images = datasets.load("digits").images().squeeze(1).numpy()
    for folder, pixels in (("a", images), ("b", 255 - images)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "digits.npy", pixels)
    a, b = (dataclasses.replace(digits, dataset=f"{name}/digits.npy") for name in "ab")
    loading.load_parameters(a, network)
    loading.load_parameters(digits, network)
    with pytest.raises(UsageError, match="was made from other images"):
        loading.load_parameters(b, network)
    unknown = dataclasses.replace(digits, dataset="nosuch")
    with pytest.raises(UsageError, match="neither a known dataset"):
        loading.load_parameters(unknown, network)


def test_a_default_directory_made_from_a_zip_is_taken_again(tmp_path, monkeypatch):
    """A preset whose images are an archive with a reference of its own, as ffhq64."""
    monkeypatch.chdir(tmp_path)
    preset, network = find("ffhq64"), loading.load_network(find("digits"), CPU)
    (tmp_path / "datasets").mkdir()
    with zipfile.ZipFile(preset.dataset, "w") as archive:
        for i, image in enumerate(datasets.load("digits").images()[:5]):
            save_png(tmp_path / f"{i}.png", image)
            archive.write(tmp_path / f"{i}.png", f"{i}.png")
    made, again = (loading.load_parameters(preset, network) for _ in range(2))
    assert made.story["count"] == 5
    assert made.digest == again.digest


def test_images_that_change_nothing_are_refused():
    for preset in (SMALL, find("cifar10"), find("digits")):
        options.check_images_count(preset)
    with pytest.raises(UsageError, match="would change nothing"):
        options.check_images_count(dataclasses.replace(SMALL, dataset="CIFAR10"))
    options.check_images_count(dataclasses.replace(find("cifar10"), dataset="CIFAR100"))


@OFFLINE
def test_the_shipped_parts_belong_together(preset):
    """The reference is of the shipped features, and of as many images as the parameters."""
    reference = fid.read(preset.reference)
    network = features.load(preset.features, device=CPU.device)
    assert reference.features == network.digest
    story = parameters.load(preset.parameters).story
    counts = {"fashion": 60_000, "cifar10-small": 50_000}
    assert reference.count == story["count"] == counts[preset.name]


@pytest.mark.parametrize(("preset", "error"), [(FASHION, 0.002), (SMALL, 0.0052)])
def test_the_truncated_covariance_teleports_as_the_whole_one_to_a_stated_error(preset, error):
    """A dropped direction's eigenvalue is at most the last kept: its gain errs by lam / 2 s^2."""
    eigenvalues = parameters.load(preset.parameters).model.eigenvalues
    assert len(eigenvalues) == 300
    assert float(eigenvalues[-1]) / (2 * 3.26**2) < error


def test_what_the_shipped_clothes_were_made_with_is_on_their_card():
    """As the files say themselves: accuracy of the classifier, images that the network has seen."""
    card = shipped("fashion.md").read_text(encoding="utf-8")
    classifier, denoiser = map(checkpoint.provenance, (FASHION.features, FASHION.network))
    assert classifier["accuracy"] >= 0.9 and f"{classifier['accuracy']:.2%}" in card
    assert f"{denoiser['images_seen']:,} of the" in card and denoiser["source"] in card
    assert denoiser["images"] == parameters.load(FASHION.parameters).story["digest"]


def test_a_title_names_what_was_replaced():
    assert SMALL.title == "cifar10-small"
    other = dataclasses.replace(SMALL, network=Path("mine"), steps=20, reference=Path("mine.npz"))
    assert other.title == "cifar10-small with another network, reference"


def test_a_network_of_other_images_is_not_compared_with_the_presets(tmp_path):
    """Unless the images are named: what it is of, the parameters beside it tell."""
    others, same = Path(tmp_path / "others"), Path(tmp_path / "same")
    dataset = Dataset.of("mine", torch.arange(200, dtype=torch.uint8).view(50, 1, 2, 2))
    parameters.save(others, *fit_gaussian(dataset))
    model, story = fit_gaussian(dataset)
    digest = parameters.read_story(SMALL.parameters)["digest"]
    parameters.save(same, model, dataclasses.replace(story, digest=digest))
    mine = dataclasses.replace(SMALL, network=Path("mine.safetensors"))
    loading.check_reference(mine)
    loading.check_reference(dataclasses.replace(mine, parameters=same))
    loading.check_reference(dataclasses.replace(SMALL, parameters=others))
    odd = dataclasses.replace(mine, parameters=others)
    with pytest.raises(UsageError, match="is of mine, and samples of the network would be"):
        loading.check_reference(odd)
    loading.check_reference(dataclasses.replace(odd, reference=Path("mine.npz")))
    digits = dataclasses.replace(find("digits"), network=Path("mine"), parameters=others)
    with pytest.raises(UsageError, match="compared with digits, which is not"):
        loading.check_reference(digits)

"""The preset `own`: the user's images and network, under a name of the user's.

What was typed lies in `images_with_skips/<name>/own.json`; from then on the name says all of it.
Distances are of shipped features, which are chosen by the images (`JUDGES`).
"""

import filecmp
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edm.checkpoints import shipped
from experiments import consent, networks, presets
from experiments.networks import Code, File
from experiments.presets import Preset
from experiments.results import ROOT
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system.errors import UsageError
from linear_structure.system.files import (
    alone_in,
    check_folder,
    check_writable,
    read_sealed,
    write_sealed,
)

RECORD = "own.json"
PER_RANGE = ("seeds", "skips")  # what two commands of one name need not share
COMMAND = "bash run_experiments_with_skips.sh own --dataset IMAGES --network NET"

Typed = dict[str, str | bool]
"""Options by the names of their values, as they were typed."""


@dataclass(frozen=True)
class Judge:
    """Shipped features of images of so many channels, after these are brought to one size.

    Attributes:
        side: pixels that the features' network learned on.
        note: what to know of their word.
    """

    channels: int
    side: int
    features: str
    note: str = ""


JUDGES = (  # of those for some channels, the first that is shipped
    Judge(3, 32, "cifar10-features.safetensors"),
    Judge(1, 28, "fashion-features.safetensors"),
    Judge(
        1,
        8,
        "digits-features.safetensors",
        "grey images are judged by features of 8 x 8 digits, whose word is weak: they see strokes "
        "and little else; --features inception gives FID",
    ),
)


def judge_of(images: Dataset) -> Judge:
    """The shipped features for some images, of 1 or 3 channels."""
    suited = (judge for judge in JUDGES if judge.channels == images.shape[0])
    return next(judge for judge in suited if shipped(judge.features).exists())


def judge_in(features: Path) -> Judge | None:
    """What is shipped and has the weights in a file, wherever that is; None of another's."""
    for judge in JUDGES:
        known = shipped(judge.features)
        if known.exists() and filecmp.cmp(features, known, shallow=False):  # of one size alone
            return judge
    return None


def side_for(features: Path, shapes: Iterable[Sequence[int]]) -> int | None:
    """What images of these shapes (C, H, W) are brought to for a file's features; None: nothing.

    That is what the network learned on, where it is shipped and some images have another size.
    """
    judge = judge_in(features)
    if judge and any(tuple(shape[1:]) != (judge.side, judge.side) for shape in shapes):
        return judge.side
    return None


def note_on(preset: Preset) -> str:
    """What to know of the word of a preset's features, or nothing."""
    judge = judge_in(preset.features) if isinstance(preset.features, Path) else None
    return judge.note if judge else ""


def images_of(dataset: str | None) -> Dataset:
    """The user's images; UsageError where they were not named, or are too few."""
    if dataset is None:
        raise UsageError(f"nothing says which images are yours: {COMMAND}")
    images = datasets.load(dataset)
    if images.count < 2:
        raise UsageError(f"{dataset} holds one image: two are needed, and hundreds are sensible")
    return images


def preset_of(
    name: str,
    dataset: str | None,
    network: File | Code | None,
    features: File | None = None,
    reference: File | None = None,
) -> Preset:
    """The preset of a name; without features, by those that `JUDGES` say.

    Raises:
        UsageError: the images or the network were not named, or the images cannot be used.
    """
    images = images_of(dataset)
    if network is None:
        raise UsageError(f"nothing says which network is yours: {COMMAND}")
    return Preset(
        name=name,
        dataset=dataset,
        parameters=ROOT / name / "parameters",
        network=network,
        features=features or shipped(judge_of(images).features),
        reference=reference,
        seeds=SeedRange(0, 499),
        block=50,
    )


def path_of(name: str) -> Path:
    """Where it lies what was typed for a name.

    Raises:
        UsageError: it is none, or that of a preset.
    """
    if name in presets.presets():
        raise UsageError(f"{name} is a preset: choose another --name")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r}: expected letters, digits, and _ . - among them")
    return ROOT / name / RECORD


def read(name: str) -> Typed:
    """What was typed for a name; nothing of one that was not given yet.

    Raises:
        UsageError: it cannot be read, or as `path_of`.
    """
    path = path_of(name)
    try:
        found = read_sealed(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        sentence = f"{path} is not JSON as it was written ({error}): remove it, and type all again"
        raise UsageError(sentence) from error
    if not isinstance(found, dict) or not all(isinstance(v, str | bool) for v in found.values()):
        raise UsageError(f"{path} holds no options by their names: remove it, and type all again")
    return found


def joined(name: str, typed: Typed) -> Typed:
    """What was typed for a name before, and now; of what they need not share, only now.

    Raises:
        UsageError: they are of two experiments, or as `read`.
    """
    before = read(name)
    other = [each for each in typed if each not in PER_RANGE and typed[each] != before.get(each)]
    if before and other:
        said = ", ".join(f"{each} {before.get(each, 'of its own')}" for each in other)
        raise UsageError(
            f"the name {name} is taken, with {said.replace('_', '-')}: leave out what it has, or "
            f"choose another --name"
        )
    return {each: words for each, words in before.items() if each not in PER_RANGE} | typed


def check_place(name: str) -> None:
    """Refuse (UsageError) a folder that cannot be written, before anything is made for it."""
    check_folder(folder := ROOT / name)
    try:
        check_writable(folder)
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be written ({error.strerror}): run this in a folder of yours"
        ) from error


def claim(name: str, typed: Typed) -> None:
    """Keep what was typed for a name beside what it has; raises as `joined`."""
    with alone_in(path_of(name).parent, f"takes the name {name}"):
        write(name, joined(name, typed))  # not before: another command may be taking it


def write(name: str, typed: Mapping[str, str | bool]) -> None:
    """Keep what was typed for a name; code among it may be run by the name from now on."""
    write_sealed(path := path_of(name), typed)
    network = networks.given(str(typed["network"]))
    if isinstance(network, Code):
        consent.give(path.parent, str(network))

"""Codes that tell a denoiser what an image is, at every noise level, and what can be read of them.

    python scripts/represent.py train coloured-digits --dim 8 --seed 0 --out representations/d8-s0
    python scripts/represent.py encode representations/d8-s0
    python scripts/represent.py encode representations/d8-s0 --images my-images.npz
    python scripts/represent.py probe representations/d8-s*
    python scripts/represent.py analyse representations/d8-s*

Each continues what was stopped when it is given again.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm.representation.analysis import Mine
from edm.representation.probing import Recipe
from edm.representation.training import RECIPES, PairRecipe, recipe_for
from experiments import curve_figures, curves, representation
from experiments import probe as probing
from experiments.options import check_unused
from experiments.probe import Subject
from experiments.representation import CODES, COLOURED, LEVELS, Encoding
from linear_structure.data import datasets
from linear_structure.data.factors import PARTS
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import check_apart, check_writable, write_json
from linear_structure.system.machine import Machine, add_options, world_size
from linear_structure.system.options import (
    add_arguments,
    folder,
    given,
    named_path,
    parse,
    plain,
    positive,
    table,
    word,
)

FIXED = ("levels", "sigma_mean", "sigma_std", "log_uniform", "duration")
STEPS = 500  # of MINE
MEANT = [each.name for each in fields(PairRecipe) if each.metadata.get("meaning")]
VALUES = [name for name in MEANT if name not in FIXED]


class Command(NamedTuple):
    """One of the words after `represent.py`."""

    meaning: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    epilog: str = ""


def add_train(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add = parser.add_argument
    known = ", ".join((*COLOURED, *datasets.NAMES))
    kinds = f"{known}; or a folder of images, a zip, .npy, .npz or IDX file"
    add("data", type=word, help=kinds)
    add("--out", type=folder, required=True, metavar="DIR", help="folder of the pair")
    add("--grey", type=word, metavar="DATA", help="name or path of the images to be coloured")
    add("--data-dir", type=named_path, metavar="DIR", help="where downloaded datasets are kept")
    add("--steps", type=positive, metavar="N", help="steps of training")
    add_options(parser)
    add_arguments(parser.add_argument_group("values of the recipe"), PairRecipe, VALUES)


def train(typed: argparse.Namespace) -> None:
    """Train a pair, or continue; print its loss with the code, and at z = 0."""
    if world_size() > 1:
        raise UsageError("a pair is trained by one process: expected no torchrun")
    named = (each for each in (typed.data, typed.grey) if each not in COLOURED)
    check_apart(typed.out, *map(datasets.path_of, named))
    machine = Machine.chosen(typed.device, typed.threads)
    material = representation.load_material(typed.data, machine.device, typed.grey, typed.data_dir)
    recipe = recipe_of(typed, material)
    story = {"data": typed.data, "grey": typed.grey}
    state = representation.job_of(recipe, material, typed.out, machine, story).run()
    loss = recipe.criterion(state.average.network)
    losses = representation.measure_losses(state.average, loss, material.factors)
    print(f"{state.images_seen} images in {state.seconds:.0f} s; everything is in {typed.out}")
    print(f"loss per pixel of the validation images: {losses}")


def recipe_of(typed: argparse.Namespace, material: representation.Material) -> PairRecipe:
    """The recipe that suits the data, with what was typed.

    Raises:
        UsageError: a value is out of range.
    """
    start = plain(recipe_for(material.training.shape, {"sigma_data": material.sigma_data}))
    recipe = parse(PairRecipe, {**start, **given(typed, VALUES)}, "the recipe")
    steps = {"duration": typed.steps * recipe.batch} if typed.steps else {}
    return parse(PairRecipe, {**plain(recipe), **steps}, "the recipe")


def add_encode(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add = parser.add_argument
    add("folder", type=named_path, metavar="DIR", help="of a pair")
    add(
        "--images",
        type=word,
        metavar="DATA",
        help="images of your own: a folder, a zip, .npy, .npz or IDX file",
    )
    levels = parser.add_mutually_exclusive_group()
    meaning = f"number of noise levels, in geometric steps (default: {LEVELS})"
    levels.add_argument("--levels", type=int, default=LEVELS, metavar="K", help=meaning)
    levels.add_argument("--sigmas", type=float, nargs="+", metavar="S", help="noise levels")
    add("--untrained", action="store_true", help="with the weights from before training")
    add("--grey", type=word, metavar="DATA", help="where the images to be coloured are now")
    add("--data-dir", type=named_path, metavar="DIR", help="where downloaded datasets are kept")
    add(
        "--out",
        type=named_path,
        metavar="FILE",
        help=f"(default: {CODES}, or as the images, in DIR)",
    )
    add_options(parser)


def encode(typed: argparse.Namespace) -> None:
    """Write the codes of the data that a pair was trained on, or of other images."""
    machine = Machine.chosen(typed.device, typed.threads)
    pair = representation.load_pair(typed.folder).to(machine.device)
    story = representation.finished_story(typed.folder)
    chosen = torch.tensor(typed.sigmas, dtype=torch.float64) if typed.sigmas else None
    sigmas = representation.levels_between(pair, typed.levels) if chosen is None else chosen
    weights = "initial" if typed.untrained else "averaged"
    if typed.untrained:
        pair = representation.initial_pair(pair, story["seed"])
    factors = factors_of(typed, pair, story)
    out = typed.out or typed.folder / file_of(typed)
    codes = Encoding(pair, factors, sigmas, weights, machine, out).run()
    count, levels, dim = codes.z.shape
    sizes = torch.bincount(codes.part, minlength=len(PARTS)).tolist()
    parts = ", ".join(f"{size:,} {part}" for size, part in zip(sizes, PARTS, strict=True))
    print(f"{count:,} images ({parts}) at {levels} noise levels, {dim} numbers each: {out}")


def factors_of(
    typed: argparse.Namespace, pair: Any, story: Mapping[str, Any]
) -> representation.Factors:
    """The images to encode: the user's, or those that the pair was trained beside.

    Raises:
        UsageError: they are of another size, or not those of the training; or others were named
            beside one's own.
    """
    if typed.images:
        check_unused(typed, ("grey",), "the images of --images are encoded as they are")
        return representation.own_images(typed.images, pair, typed.data_dir)
    grey = typed.grey or story["grey"]
    material = representation.load_material(
        story["data"], pair.network.device, grey, typed.data_dir
    )
    representation.check_same(material, story)
    return material.factors


def file_of(typed: argparse.Namespace) -> str:
    """Name of the file of codes."""
    parts = ["codes"]
    if typed.untrained:
        parts.append("untrained")
    if typed.images:
        parts.append(Path(typed.images).stem)
    return "-".join(parts) + ".npz"


def add_read(parser: argparse.ArgumentParser) -> None:
    """Options of what reads the codes of several pairs."""
    add = parser.add_argument
    add(
        "folders",
        type=named_path,
        nargs="+",
        metavar="DIR",
        help="of pairs that differ in their seed",
    )
    add("--tasks", type=word, nargs="+", metavar="FACTOR", help="(default: all)")
    add("--epochs", type=positive, default=Recipe.epochs, help="of heads (default: %(default)s)")
    add("--grey", type=word, metavar="DATA", help="where the images that were coloured are now")
    add("--data-dir", type=named_path, metavar="DIR", help="where downloaded datasets are kept")
    add("--out", type=folder, metavar="FOLDER", help="(default: d and length, beside the pairs)")
    add_options(parser)


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_read(parser)
    add = parser.add_argument
    wide = "pairs whose codes have as many numbers as those of all levels together"
    add("--wide", type=named_path, nargs="+", default=[], metavar="DIR", help=wide)
    rows = f"(default: all) {'; '.join(probing.PROBES)}"
    add("--heads", type=word, nargs="+", metavar="ROW", help=rows)


def study_of(typed: argparse.Namespace) -> probing.Study:
    """The pairs that were named, and what they are asked.

    Raises:
        UsageError: one is missing, or they do not compare.
    """
    machine = Machine.chosen(typed.device, typed.threads)
    load = partial(Subject.load, machine=machine, grey=typed.grey, data_dir=typed.data_dir)
    named = typed.folders, getattr(typed, "wide", [])
    subjects, wide = (sorted(map(load, each), key=lambda s: s.seed) for each in named)
    heads = getattr(typed, "heads", None) or list(probing.PROBES)
    tasks = typed.tasks or list(subjects[0].codes.labels)
    return probing.Study(subjects, wide, tasks, heads, Recipe(epochs=typed.epochs))


def out_of(typed: argparse.Namespace, study: probing.Study) -> Path:
    """The folder of tables and pictures; OSError where it cannot be written."""
    folder = typed.out or study.first.folder.parent / f"d{study.first.dim}"
    check_writable(folder)
    return folder


def probe(typed: argparse.Namespace) -> None:
    """Write and print what the heads tell."""
    study = study_of(typed)
    folder = out_of(typed, study)
    print(probing.written(folder, study, study.entries()), end="")
    print(f"\nwrote table.csv, differences.csv and table.txt in {folder}")


def add_analyse(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_read(parser)
    steps = "steps of MINE, on which its normalised map depends (default: %(default)s)"
    parser.add_argument("--steps", type=positive, default=STEPS, metavar="N", help=steps)


def analyse(typed: argparse.Namespace) -> None:
    """Write numbers and pictures of what the codes hold."""
    study = study_of(typed)
    folder = out_of(typed, study)
    numbers = curves.numbers(study, Mine(steps=typed.steps))
    write_json(folder / "analysis.json", numbers)
    pictures = ", ".join(
        path.name for path in curve_figures.write_all(folder, numbers, study.first)
    )
    print(f"wrote {pictures} and analysis.json in {folder}")


COMMANDS = {
    "train": Command(
        "train an encoder and a denoiser together",
        add_train,
        train,
        "The recipes, the first for images of 16 pixels or fewer:\n\n"
        + table(PairRecipe, RECIPES, VALUES),
    ),
    "encode": Command("codes of images at several noise levels", add_encode, encode),
    "probe": Command("what heads of several kinds read in codes", add_probe, probe),
    "analyse": Command(
        "where heads look, and what levels know of each other", add_analyse, analyse
    ),
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    words = parser.add_subparsers(required=True, metavar="COMMAND")
    for title, command in COMMANDS.items():
        own = words.add_parser(
            title,
            help=command.meaning,
            description=command.meaning,
            epilog=command.epilog,
            formatter_class=formatter,
        )
        command.add(own)
        own.set_defaults(run=command.run)
    return parser.parse_args()


def main() -> None:
    """Do what the first word says."""
    typed = parse_arguments()
    typed.run(typed)


if __name__ == "__main__":
    sys.exit(run_command(main))

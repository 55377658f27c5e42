"""What can be read from the codes of pairs: heads that mix levels, single levels, and their rivals.

    table.csv         task, head, seed, level, validation, test: accuracies in percent
    differences.csv   task, a, b, n, mean, low, high, t: paired by seed, percentage points
    table.txt         both, to be read, and a verdict of each task

A task is a factor of the images, a seed that of a pair and of the heads that read its codes. Every
number is kept in the folder of its pair. A head that reads K levels does not learn as fast as one
that reads a single level, so beside each stands the same head on the best level alone: repeated K
times, or with all others hidden. Rivals of equal size: principal components, a pair whose codes
have K d numbers, and what the denoiser itself makes of the noised image.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from edm.precondition import Preconditioned
from edm.representation.analysis import profile
from edm.representation.encoder import BLOCK
from edm.representation.heads import Attentive, Concatenated, Linear, PerLevel, Recurrent
from edm.representation.objective import Pair
from edm.representation.probing import Difference, Fitted, Recipe, Split, fit, paired
from edm.representation.probing import nearest_neighbours as neighbours
from experiments.representation import (
    CODES,
    Codes,
    Encoding,
    check_same,
    finished_story,
    initial_pair,
    load_codes,
    load_material,
    load_pair,
)
from experiments.tables import write_table
from linear_structure.data.factors import Factors
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, digest_of_tensor, write_text
from linear_structure.system.machine import Machine
from linear_structure.system.options import plain
from linear_structure.system.store import kept

KEPT, UNTRAINED = "probe", "codes-untrained.npz"
ONE, MIXED, REPEATED = "one level", "concatenated", "concatenated, one level repeated"
GRU, ATTENTION, VISIBLE = "recurrent", "attention", "attention, one level visible"
LINEAR, LINEARS = "linear, one level", "linear, all levels"
NEAREST, NEARESTS = "neighbours, one level", "neighbours, all levels"
DRAWN, DRAWNS = "untrained encoder, one level", "untrained encoder, concatenated"
WIDE, FEATURES = "one level of K d numbers", "denoiser's features, one level"
FEW, MANY, PIXELS = "principal components, d", "principal components, K d", "pixels"
COMPARED = (
    (MIXED, ONE),
    (MIXED, REPEATED),
    (GRU, ONE),
    (ATTENTION, ONE),
    (ATTENTION, VISIBLE),
    (VISIBLE, ONE),
    (LINEARS, LINEAR),
    (NEARESTS, NEAREST),
    (DRAWNS, DRAWN),
    (MIXED, DRAWNS),
    (MIXED, FEATURES),
    (MIXED, WIDE),
    (MIXED, MANY),
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A pair, and the codes of the images that it was trained beside.

    Attributes:
        factors: these images.
        seed: of the pair, and of the heads that read its codes.
    """

    folder: Path
    pair: Pair
    codes: Codes
    factors: Factors
    seed: int
    machine: Machine

    @classmethod
    def load(
        cls, folder: Path, machine: Machine, grey: str | None = None, data_dir: Path | None = None
    ) -> "Subject":
        """The pair in a folder with its codes.

        Raises:
            UsageError: either is missing, the codes are of another encoder or of other images, or
                the images have no labels.
        """
        codes, story, path = load_codes(folder), finished_story(folder), folder / CODES
        if not codes.labels:
            raise UsageError(f"the images of {path} have no labels: expected classes to tell apart")
        material = load_material(story["data"], machine.device, grey or story["grey"], data_dir)
        check_same(material, story)
        if codes.inputs["images"] != digest_of_tensor(material.factors.images):
            raise UsageError(
                f"{path} holds codes of other images than those that go with {story['data']}: "
                f"run represent.py encode {folder}"
            )
        pair = load_pair(folder).to(machine.device)
        return cls(folder, pair, codes, material.factors, int(story["seed"]), machine)

    @property
    def levels(self) -> int:
        return self.codes.z.shape[1]

    @property
    def dim(self) -> int:
        """Numbers of a code."""
        return self.codes.z.shape[2]

    @property
    def title(self) -> str:
        return sized(self.dim, self.levels)


def sized(dim: int, levels: int) -> str:
    """ "8 numbers at 11 levels"."""
    return f"{dim} number{'s' * (dim > 1)} at {levels} level{'s' * (levels > 1)}"


class Material(NamedTuple):
    """Numbers (n, K, d) that are read, once they are asked for, and what they depend on."""

    inputs: Any
    make: Callable[[], Tensor]


def codes_of(subject: Subject) -> Material:
    """The codes."""
    return Material(subject.codes.digest, lambda: subject.codes.z)


def untrained(subject: Subject) -> Material:
    """The codes of the encoder as it was before training; its weights are ordinary ones."""
    initial = initial_pair(subject.pair, subject.seed)
    path, sigmas = subject.folder / UNTRAINED, subject.codes.sigmas
    encoding = Encoding(initial, subject.factors, sigmas, "initial", subject.machine, path)
    return Material(encoding.inputs, lambda: encoding.run().z)


def components(subject: Subject, levels: int) -> Material:
    """As many principal components of the pixels as so many levels have numbers, if there are."""
    count = levels * subject.dim
    return Material([subject.codes.inputs["images"], count], partial(_projected, subject, count))


def _projected(subject: Subject, count: int) -> Tensor:
    x = from_uint8(subject.factors.images, torch.float64).flatten(1)
    gaussian = Gaussian.from_samples(x[subject.factors.part == 0])
    return ((x - gaussian.mean) @ gaussian.basis[:, :count].double())[:, None].float()


def pixels(subject: Subject) -> Material:
    """All of them."""
    images = subject.factors.images
    return Material(subject.codes.inputs["images"], lambda: from_uint8(images).flatten(1)[:, None])


def features(subject: Subject) -> Material:
    """What the denoiser, told no code, makes of the noised image at each level: (n, K, E).

    Its last hidden layer, if it is an MLP; of a U-Net the mean over the pixels of its innermost
    feature map.
    """
    network, sigmas = subject.pair.network, subject.codes.sigmas
    inputs = [network.digest, subject.codes.digest]
    return Material(inputs, lambda: noised_features(network, subject.factors.images, sigmas))


@torch.no_grad()
def noised_features(network: Preconditioned, images: Tensor, sigmas: Tensor) -> Tensor:
    """Hidden features (n, K, E) of images uint8 (n, C, H, W), each with one noise at each level."""
    generator, found = Generator().manual_seed(0), []
    body: Any = network.model
    if hasattr(body, "enc"):
        deepest = list(body.enc.values())[-1]
        handle = deepest.register_forward_hook(lambda _, __, out: found.append(out.mean((2, 3))))
    else:
        handle = body.out.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with handle:
        for part in images.split(BLOCK):
            clean = from_uint8(part)
            for sigma in sigmas.float():
                noised = clean + sigma * torch.randn(clean.shape, generator=generator)
                network(noised.to(network.device), sigma.to(network.device))
    stacked = [
        torch.stack(found[i : i + len(sigmas)], 1) for i in range(0, len(found), len(sigmas))
    ]
    return torch.cat(stacked).cpu()


class Question(NamedTuple):
    """What a head is asked: of numbers in parts, with the level that is best alone."""

    split: Split
    recipe: Recipe
    seed: int
    level: int


Answer = Callable[[Question], Fitted[Any]]


def trained(head: Any) -> Answer:
    """A head that sees every level."""
    return lambda q: fit(head, q.split, q.recipe, q.seed)


def repeated(q: Question) -> Fitted[Any]:
    """The best level in place of every level."""
    return fit(Concatenated, q.split.repeated(q.level), q.recipe, q.seed)


def visible(q: Question) -> Fitted[Any]:
    """Attention to the best level, all others hidden."""
    return fit(Attentive, q.split, q.recipe, q.seed, torch.arange(q.split.levels) == q.level)


class Probe(NamedTuple):
    """A row of the table.

    Attributes:
        material: what is read.
        answer: by which head.
        chosen: whether it must know which level is best alone.
    """

    material: Callable[[Subject], Material]
    answer: Answer
    chosen: bool = False


PROBES = {
    ONE: Probe(codes_of, trained(PerLevel)),
    MIXED: Probe(codes_of, trained(Concatenated)),
    REPEATED: Probe(codes_of, repeated, chosen=True),
    GRU: Probe(codes_of, trained(Recurrent)),
    ATTENTION: Probe(codes_of, trained(Attentive)),
    VISIBLE: Probe(codes_of, visible, chosen=True),
    LINEAR: Probe(codes_of, trained(Linear)),
    LINEARS: Probe(codes_of, lambda q: fit(Linear, q.split.joined(), q.recipe, q.seed)),
    NEAREST: Probe(codes_of, lambda q: neighbours(q.split)),
    NEARESTS: Probe(codes_of, lambda q: neighbours(q.split.joined())),
    DRAWN: Probe(untrained, trained(PerLevel)),
    DRAWNS: Probe(untrained, trained(Concatenated)),
    FEATURES: Probe(features, trained(PerLevel)),
    FEW: Probe(lambda subject: components(subject, 1), trained(PerLevel)),
    MANY: Probe(lambda subject: components(subject, subject.levels), trained(PerLevel)),
    PIXELS: Probe(pixels, trained(PerLevel)),
}


class Entry(NamedTuple):
    """A line of table.csv: accuracies in percent; the level, from 0, where one was chosen."""

    task: str
    head: str
    seed: int
    level: int | None
    validation: float
    test: float


@dataclass(frozen=True, eq=False)
class Study:
    """Pairs of equal codes that are asked the same.

    Attributes:
        subjects: by seed.
        wide: pairs whose codes have as many numbers as those of all levels together, by seed.
        tasks: factors.
        heads: keys of `PROBES`.

    Raises:
        UsageError: the pairs do not compare, or a task or head is unknown.
    """

    subjects: Sequence[Subject]
    wide: Sequence[Subject]
    tasks: Sequence[str]
    heads: Sequence[str]
    recipe: Recipe

    def __post_init__(self) -> None:
        _check_alike(self.subjects)
        if self.wide:
            _check_alike(self.wide)
            _check_wide(self.subjects[0], self.wide[0])
        for names, known in ((self.tasks, self.factors), (self.heads, PROBES)):
            if unknown := [name for name in names if name not in known]:
                raise UsageError(f"unknown {unknown[0]!r}: expected some of {', '.join(known)}")

    @property
    def first(self) -> Subject:
        return self.subjects[0]

    @property
    def factors(self) -> list[str]:
        """All that could be told of the images."""
        return list(self.first.codes.labels)

    def entries(self) -> list[Entry]:
        """Ask everything, or read what is kept: tasks, heads and seeds in order, with a bar."""
        asked = [
            *(
                (task, head, each)
                for task in self.tasks
                for head in self.heads
                for each in self.subjects
            ),
            *((task, WIDE, each) for task in self.tasks for each in self.wide),
        ]
        bar, found = tqdm(asked, unit="head", disable=None), []
        for task, head, subject in bar:
            bar.set_description(f"{task}, {head}, seed {subject.seed}")
            outputs = measured(subject, task, ONE if head == WIDE else head, self.recipe)
            found.append(_entry(task, head, subject.seed, outputs))
        return sorted(found, key=lambda entry: self.tasks.index(entry.task))


def _check_alike(subjects: Sequence[Subject]) -> None:
    """UsageError unless pairs differ in nothing but their seeds."""
    first, seen = subjects[0], set()
    for each in subjects:
        same = (each.dim, each.pair.kind, *_seen(each)) == (
            first.dim,
            first.pair.kind,
            *_seen(first),
        )
        if not same or each.seed in seen:
            raise UsageError(
                f"{first.folder} and {each.folder} do not stand side by side: expected pairs of "
                "different seeds with codes of one length and kind, of the same images and levels"
            )
        seen.add(each.seed)


def _seen(subject: Subject) -> tuple[Any, ...]:
    inputs = subject.codes.inputs
    return inputs["images"], inputs["labels"], inputs["sigmas"]


def _check_wide(narrow: Subject, wide: Subject) -> None:
    wanted = narrow.levels * narrow.dim
    if wide.dim != wanted or _seen(wide) != _seen(narrow):
        raise UsageError(
            f"{wide.folder} has {wide.title}: expected {wanted} numbers, as many as all levels of "
            f"{narrow.folder} together, of the same images at the same levels"
        )


def measured(subject: Subject, task: str, head: str, recipe: Recipe) -> dict[str, Any]:
    """What a head tells of a factor, measured once: lists, of each level where it tells at each.

    `validation` and `test` are shares of images, `chosen` learning rates or numbers of neighbours.
    Of attention also `profile`, its mean weight of each level, and `hidden`, the share of test
    images with that level hidden.

    Raises:
        UsageError: a class is missing in the training part.
    """
    probe = PROBES[head]
    level = best_level(subject, task, recipe) if probe.chosen else None
    material = probe.material(subject)
    inputs = {
        "task": task,
        "head": head,
        "numbers": digest_of(material.inputs),
        "labels": subject.codes.inputs["labels"],
        "level": level,
        "recipe": plain(recipe),
        "seed": subject.seed,
        **subject.machine.inputs,
    }

    def ask() -> dict[str, Any]:
        split = split_of(subject, task, material.make())
        question = Question(split, recipe, subject.seed, -1 if level is None else level)
        return _told(probe.answer(question), split)

    name = head.replace(",", "").replace("'", "").replace(" ", "-")
    return kept(subject.folder / KEPT / task / f"{name}.json", inputs, ask)


def best_level(subject: Subject, task: str, recipe: Recipe) -> int:
    """The level whose own head tells most images of the validation part."""
    return best_of(measured(subject, task, ONE, recipe)["validation"])


def best_of(shares: Sequence[float]) -> int:
    """Where the largest is, the first of equals."""
    return max(range(len(shares)), key=shares.__getitem__)


def split_of(subject: Subject, task: str, z: Tensor) -> Split:
    """Numbers of the images in their parts, with the classes of a factor."""
    codes = subject.codes
    return Split.of(z, codes.labels[task], codes.part, codes.source).standardised()


def _told(fitted: Fitted[Any], split: Split) -> dict[str, Any]:
    shares = {name: getattr(fitted, name) for name in ("chosen", "validation", "test")}
    found = {name: each.reshape(-1).tolist() for name, each in shares.items()}
    if isinstance(fitted.head, Attentive) and len(split.test.z[0]) > 1:
        found["profile"] = profile(fitted.head, split.test.z).tolist()
        found["hidden"] = _without_each(fitted.head, split)
    return found


@torch.no_grad()
def _without_each(head: Attentive, split: Split) -> list[float]:
    """The share of test images told with one level hidden, for each level."""
    (z, labels), every = split.test, range(split.levels)
    shown = [torch.arange(split.levels) != level for level in every]
    return [float((head(z, each).argmax(-1) == labels).double().mean()) for each in shown]


def _entry(task: str, head: str, seed: int, outputs: Mapping[str, Any]) -> Entry:
    validation, test = outputs["validation"], outputs["test"]
    best = best_of(validation)
    level = best if len(validation) > 1 else None
    return Entry(task, head, seed, level, 100 * validation[best], 100 * test[best])


class Comparison(NamedTuple):
    """How far row a lies above row b, in percentage points."""

    task: str
    a: str
    b: str
    difference: Difference


def of_row(entries: Iterable[Entry], task: str, head: str) -> dict[int, float]:
    """Test accuracies of a row by seed."""
    return {each.seed: each.test for each in entries if (each.task, each.head) == (task, head)}


def compare(entries: Sequence[Entry], task: str, a: str, b: str) -> Comparison | None:
    """Two rows, on the seeds that both have; of one seed there is no interval; None: of none."""
    above, below = of_row(entries, task, a), of_row(entries, task, b)
    seeds = sorted(above.keys() & below.keys())
    if not seeds:
        return None
    values = [torch.tensor([row[seed] for seed in seeds]).double() for row in (above, below)]
    if len(seeds) > 1:
        return Comparison(task, a, b, paired(*values))
    nothing = float("nan")
    gap = float(values[0] - values[1])
    return Comparison(task, a, b, Difference(gap, nothing, nothing, nothing, 1))


def comparisons(entries: Sequence[Entry]) -> list[Comparison]:
    """All of `COMPARED` that were measured, of each task."""
    tasks = dict.fromkeys(entry.task for entry in entries)
    found = (compare(entries, task, *rows) for task in tasks for rows in COMPARED)
    return [each for each in found if each is not None]


def interval(difference: Difference) -> str:
    """ "+1.5 [0.9, 2.1]", or "+1.5" of one seed."""
    if difference.n < 2:
        return f"{difference.mean:+.1f}"
    return f"{difference.mean:+.1f} [{difference.low:.1f}, {difference.high:.1f}]"


def verdict(entries: Sequence[Entry], task: str, dim: int, levels: int) -> str:
    """One sentence of what all levels together tell, beside single ones and rivals of equal size.

    It needs the rows of `ONE` and `MIXED`; others are named where they are there.
    """
    means = {head: _mean(of_row(entries, task, head)) for head in (MIXED, ONE, REPEATED)}
    single, same = (compare(entries, task, MIXED, head) for head in (ONE, REPEATED))
    if single is None:
        return f"{task}: the rows '{MIXED}' and '{ONE}' are needed for a verdict."
    seeds = single.difference.n
    counted = f"{seeds} seeds" if seeds > 1 else "one seed, so without an interval"
    said = [
        f"{sized(dim, levels)}: {task} {means[MIXED]:.1f}",
        f"best single level {means[ONE]:.1f}, difference {interval(single.difference)}, {counted}",
    ]
    if same is not None:
        beside = f"same head on that level alone {means[REPEATED]:.1f}"
        said.append(f"{beside}, {interval(same.difference)}")
    rivals = {
        NEAREST: "nearest neighbours of one level",
        NEARESTS: "of all",
        WIDE: f"one level of {dim * levels} numbers",
        MANY: f"{dim * levels} principal components",
    }
    for head, name in rivals.items():
        if row := of_row(entries, task, head):
            fewer = "" if len(row) == seeds else f" (seeds: {len(row)})"
            said.append(f"{name} {_mean(row):.1f}{fewer}")
    return "; ".join(said) + f". {_conclusion(same)}"


def _conclusion(same: Comparison | None) -> str:
    if same is None or same.difference.n < 2:
        return "Whether levels together tell more than one of them takes two seeds or more."
    if same.difference.low > 0:
        return "To this head the levels together tell more than the best of them."
    if same.difference.high < 0:
        return "To this head the levels together tell less than the best of them."
    return "That the levels together tell this head more than the best of them is not shown."


def _mean(row: Mapping[int, float]) -> float:
    return sum(row.values()) / max(1, len(row))


def written(folder: Path, study: Study, entries: Sequence[Entry]) -> str:
    """Write the three files; return the text of the last."""
    compared = comparisons(entries)
    write_table(folder / "table.csv", Entry._fields, entries)
    lines = [
        [each.task, each.a, each.b, d.n, *(_number(v) for v in (d.mean, d.low, d.high, d.t))]
        for each in compared
        for d in [each.difference]
    ]
    head = ("task", "a", "b", "n", "mean", "low", "high", "t")
    write_table(folder / "differences.csv", head, lines)
    text = report(study, entries, compared)
    write_text(folder / "table.txt", text)
    return text


def _number(value: float) -> float | None:
    return None if value != value else value


def report(study: Study, entries: Sequence[Entry], compared: Sequence[Comparison]) -> str:
    """Rows task x head with a column a seed; differences; what was not measured; verdicts."""
    first = study.first
    verdicts = [verdict(entries, task, first.dim, first.levels) for task in study.tasks]
    parts = [_rows(entries), _gaps(compared), *_missing(study), *verdicts]
    return "\n\n".join([f"{first.title}; test accuracy in percent", *parts]) + "\n"


def _rows(entries: Sequence[Entry]) -> str:
    seeds = sorted({entry.seed for entry in entries})
    lines = [f"{'task':<12}{'head':<34}" + "".join(f"{f'seed {s}':>8}" for s in seeds) + "    mean"]
    for task, head in dict.fromkeys((entry.task, entry.head) for entry in entries):
        row = of_row(entries, task, head)
        cells = "".join(f"{row[s]:8.1f}" if s in row else f"{'':>8}" for s in seeds)
        lines.append(f"{task:<12}{head:<34}{cells}{_mean(row):8.1f}")
    return "\n".join(lines)


def _gaps(compared: Sequence[Comparison]) -> str:
    lines = ["difference, with 95 % interval over seeds:"]
    for task, a, b, difference in compared:
        lines.append(f"{task:<12}{f'{a} - {b}':<68}{interval(difference):>20}  n = {difference.n}")
    return "\n".join(lines)


def _missing(study: Study) -> list[str]:
    found, first = [], study.first
    if not study.wide:
        count = first.levels * first.dim
        found.append(
            f"No pair with codes of {count} numbers was given (--wide): one level of so many, the "
            "fair rival, was not measured."
        )
    if len(study.subjects) == 1:
        found.append("One seed: no difference has an interval.")
    return found

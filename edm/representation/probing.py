"""How much of a factor can be read from codes: heads trained on one part, chosen on another.

    split = Split.of(z, labels, part, source).standardised()
    single, mixed = fit(PerLevel, split, Recipe(), seed), fit(Concatenated, split, Recipe(), seed)
    level = best_single(single)
    same = fit(Concatenated, split.repeated(level), Recipe(), seed)

A head learns by Adam in one cycle (Smith 2018). Its learning rate is chosen on the validation part,
for each level where it answers for each; nothing is chosen on the test part, and what is reported
is where training ended. A head that sees one level K times does not learn as fast as one that sees
it once: a comparison needs a budget with which both have stopped to improve, and `repeated` beside
it.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from edm.representation.heads import cross_entropy
from edm.training.data import batches
from edm.training.state import mixed
from linear_structure.data.factors import PARTS
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, digest_of_state, digest_of_tensor
from linear_structure.system.options import plain

ROWS = 1024  # images that a head reads at once when it does not learn
DROPOUT = 1  # a stream of random numbers
NEIGHBOURS = (1, 5, 20)
CONFIDENCE = 0.95

Scores = Callable[[Tensor], Tensor]
AnyHead = TypeVar("AnyHead", bound=Callable[..., Tensor])
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Part(NamedTuple):
    """Codes z (n, K, d) and labels (n,) int64."""

    z: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Codes with one factor's labels to learn from, to choose on and to measure on.

    Raises:
        UsageError: codes and labels do not fit or hold what cannot be, there is one class alone,
            a part is empty, or a class is missing in the training part.
    """

    train: Part
    validation: Part
    test: Part

    def __post_init__(self) -> None:
        for name, part in zip(PARTS, self._parts, strict=True):
            _check_part(name, part, self.train.z.shape[1:])
        labels = torch.cat([part.labels for part in self._parts])
        if missing := set(labels.tolist()) - set(self.train.labels.tolist()):
            named = ", ".join(map(str, sorted(missing)))
            raise UsageError(f"no image of class {named} is in the training part: one is needed")
        if self.classes < 2:
            raise UsageError("all labels are 0: expected two classes or more to tell apart")

    @classmethod
    def of(cls, z: Tensor, labels: Tensor, part: Tensor, source: Tensor) -> "Split":
        """Cut codes into parts.

        Args:
            z: codes (n, K, d), whose i-th image has
            labels: (n,) a class,
            part: (n,) its place in `PARTS`, 0 to 2,
            source: (n,) what it was made from, such as a digit that was coloured.

        Raises:
            UsageError: images of one source are in two parts, which makes what was learnt of one
                part help in another; and as `Split`.
        """
        lengths = [len(each) for each in (z, labels, part, source)]
        if len(set(lengths)) > 1 or not bool(((part >= 0) & (part < len(PARTS))).all()):
            raise UsageError(
                f"codes, labels, parts, sources are {lengths} long: "
                "expected as many of each, with parts from 0 to 2"
            )
        pairs = torch.stack([source, part], dim=1).unique(dim=0)[:, 0]
        found, times = pairs.unique_consecutive(return_counts=True)
        if bool((times > 1).any()):
            raise UsageError(
                f"images of source {int(found[times > 1][0])} are in more than one part: "
                "expected all in one"
            )
        return cls(*(Part(z[part == i], labels[part == i]) for i in range(len(PARTS))))

    @property
    def levels(self) -> int:
        return self.train.z.shape[1]

    @property
    def dim(self) -> int:
        """Numbers of each level."""
        return self.train.z.shape[2]

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all codes and labels."""
        tensors = [tensor for part in self._parts for tensor in part]
        return digest_of([[list(each.shape), digest_of_tensor(each)] for each in tensors])

    def standardised(self) -> "Split":
        """Mean 0 and variance 1 of each level and number in the training part.

        A number that is constant there is left with mean 0.
        """
        variance, mean = torch.var_mean(self.train.z.double(), dim=0, correction=0)
        scale = torch.where(variance > 0, variance.rsqrt(), 1)
        return self._with(lambda z: ((z.double() - mean) * scale).to(z.dtype))

    def only(self, level: int) -> "Split":
        """One level alone: K = 1."""
        return self._with(lambda z: z[:, level : level + 1])

    def repeated(self, level: int) -> "Split":
        """One level in place of every level."""
        return self._with(lambda z: z[:, [level] * self.levels])

    def joined(self) -> "Split":
        """All levels as one of K d numbers."""
        return self._with(lambda z: z.flatten(1)[:, None])

    @property
    def _parts(self) -> tuple[Part, Part, Part]:
        return self.train, self.validation, self.test

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Split":
        return Split(*(Part(change(part.z), part.labels) for part in self._parts))


def _check_part(name: str, part: Part, shape: torch.Size) -> None:
    z, labels = part
    if z.ndim != 3 or min(z.shape[1:]) < 1 or z.shape[1:] != shape:
        raise UsageError(
            f"codes of the {name} part are {tuple(z.shape)}: expected (n, K, d), equal in all "
            "parts, with K levels and d numbers each, 1 or more"
        )
    if not len(z) or labels.shape != z.shape[:1]:
        raise UsageError(
            f"the {name} part has {len(z)} codes and labels {tuple(labels.shape)}: "
            "expected one or more, with a label each"
        )
    if labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise UsageError(f"labels of the {name} part: expected int64, 0 or more")
    if not bool(torch.isfinite(z).all()):
        raise UsageError(f"codes of the {name} part hold NaN or infinity: expected numbers")


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        batch: images of a step; all, where the training part has fewer.
        learning_rates: highest ones of a cycle, of which one is chosen.

    Raises:
        UsageError: a value is out of its range.
    """

    epochs: int = 40
    batch: int = 128
    learning_rates: tuple[float, ...] = (8e-3, 2e-2)
    weight_decay: float = 1e-5
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or not 0 <= self.dropout < 1 or self.weight_decay < 0:
            raise UsageError(
                f"{self.epochs} epochs, batch {self.batch}, dropout {self.dropout:g}, weight decay "
                f"{self.weight_decay:g}: expected 1 or more, 1 or more, [0, 1), 0 or more"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise UsageError(f"learning rates {self.learning_rates}: expected one or more, above 0")


@dataclass(frozen=True, eq=False)
class Fitted(Generic[AnyHead]):
    """What was learnt and how well; of a head that answers for each level, all of each level.

    Attributes:
        head: scores (n, classes) or (n, K, classes) of codes (n, K, d).
        chosen: () or (K,), the learning rate, or number of neighbours, best on validation.
        validation, test: share of images whose class is told, () or (K,) float64.
        predictions: classes of the test part, (n,) or (n, K) int64.
        seconds: that it took.
        digest: SHA-256 of all that the others follow from.
    """

    head: AnyHead
    chosen: Tensor
    validation: Tensor
    test: Tensor
    predictions: Tensor
    seconds: float
    digest: str


def fit(
    head: Callable[[int, int, int, float], AnyModule],
    split: Split,
    recipe: Recipe,
    seed: int,
    visible: Tensor | None = None,
) -> Fitted[AnyModule]:
    """Train a head with each learning rate and keep the best one on the validation part.

    Equal arguments, on one machine and with as many threads, give equal bits. The global generator
    is left as it was.

    Args:
        head: a class of `edm.representation.heads`, or what makes a head from levels, numbers of
            each, classes and dropout. Where it answers for each level, each of its parameters has
            K rows, one for each level.
        split: standardised.
        seed: of initial weights, order and dropout.
        visible: (K,) bool, the levels that the head is shown; None: all.
    """
    started, device = time.perf_counter(), split.train.z.device
    shown = None if visible is None else visible.tolist()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(mixed(seed))
        start = head(split.levels, split.dim, split.classes, recipe.dropout).to(split.train.z)
        known = [repr(start), plain(recipe), seed, shown, split.digest]
        digest = digest_of_state(known, start.state_dict())
        course, heads = _Course(split.train, recipe, seed, visible), []
        for rate in recipe.learning_rates:
            heads.append(course.run(copy.deepcopy(start), rate))
            if bool((_told(partial(heads[-1], visible=visible), split.validation) == 1).all()):
                break  # the first of equals is chosen, and none is above all
    best = _best([partial(each, visible=visible) for each in heads], split.validation)
    chosen = torch.tensor(recipe.learning_rates, dtype=torch.float64)[best]
    kept = _of_each_level(heads, best) if best.ndim else heads[int(best)]
    return _fitted(kept, partial(kept, visible=visible), split, (chosen, started, digest))


@dataclass(frozen=True)
class _Course:
    """What a head learns from, and how."""

    part: Part
    recipe: Recipe
    seed: int
    visible: Tensor | None

    def run(self, head: AnyModule, rate: float) -> AnyModule:
        """Train a head to the end of the recipe, in place; return it, ready to be asked."""
        (z, labels), recipe = self.part, self.recipe
        batch = min(recipe.batch, len(z))
        steps = recipe.epochs * len(z) // batch
        decay = recipe.weight_decay
        optimizer = torch.optim.Adam(head.parameters(), rate, weight_decay=decay, fused=True)
        cycle = OneCycleLR(optimizer, rate, steps)
        order = batches(len(z), batch, self.seed)
        torch.manual_seed(mixed(self.seed, DROPOUT))
        for index in tqdm(islice(order, steps), total=steps, unit="step", leave=False):
            chosen = index.to(z.device)
            loss = cross_entropy(head(z[chosen], self.visible), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
        return head.eval().requires_grad_(False)


def _of_each_level(heads: Sequence[AnyModule], best: Tensor) -> AnyModule:
    """A head whose k-th level is that of the head number `best[k]`."""
    merged, levels = copy.deepcopy(heads[0]), torch.arange(len(best))
    states = [head.state_dict() for head in heads]
    merged.load_state_dict(
        {name: torch.stack([s[name] for s in states])[best, levels] for name in states[0]}
    )
    return merged


def _predictions(scores: Scores, z: Tensor) -> Tensor:
    """Classes (n,) or (n, K) of codes, on the CPU."""
    return torch.cat([scores(rows).argmax(-1).cpu() for rows in z.split(ROWS)])


def _accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Share of images whose class is told: () or (K,) float64."""
    return (labels.cpu() == predictions.movedim(0, -1)).double().mean(-1)


def _told(scores: Scores, part: Part) -> Tensor:
    """Share of a part's images whose class is told: () or (K,) float64."""
    return _accuracy(_predictions(scores, part.z), part.labels)


def _best(candidates: Sequence[Scores], part: Part) -> Tensor:
    """Which candidate tells most classes, the first of equals: () or, for each level, (K,)."""
    return torch.stack([_told(scores, part) for scores in candidates]).argmax(0).cpu()


def _fitted(
    head: AnyHead, scores: Scores, split: Split, made: tuple[Tensor, float, str]
) -> Fitted[AnyHead]:
    """What a chosen head does on the validation and the test part."""
    chosen, started, digest = made
    validation = _told(scores, split.validation)
    predictions = _predictions(scores, split.test.z)
    test = _accuracy(predictions, split.test.labels)
    seconds = time.perf_counter() - started
    return Fitted(head, chosen, validation, test, predictions, seconds, digest)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The classes of the nearest codes, in the Euclidean distance of each level.

    Attributes:
        known: codes and labels that are remembered.
        classes: number of them.
        counts: (K,) int64, how many neighbours vote at each level.
    """

    known: Part
    classes: int
    counts: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Votes (n, K, classes) for codes (n, K, d)."""
        levels = zip(z.unbind(1), self.known.z.unbind(1), self.counts.tolist(), strict=True)
        return torch.stack([self._votes(*level) for level in levels], dim=1)

    def _votes(self, z: Tensor, known: Tensor, count: int) -> Tensor:
        nearest = torch.cdist(z.double(), known.double()).topk(count, largest=False).indices
        return F.one_hot(self.known.labels[nearest], self.classes).sum(1)


def nearest_neighbours(split: Split, counts: Sequence[int] = NEIGHBOURS) -> Fitted[Neighbours]:
    """The k nearest neighbours of each level, with k of each chosen on the validation part.

    All levels together are one of more numbers: `split.joined()`.

    Args:
        split: standardised.
        counts: of neighbours, to choose from.

    Raises:
        UsageError: there is no count, or one is below 1 or above the training part's images.
    """
    started, images = time.perf_counter(), len(split.train.z)
    if not counts or not 1 <= min(counts) <= max(counts) <= images:
        raise UsageError(f"{tuple(counts)} neighbours: expected numbers from 1 to {images}")
    choices = torch.tensor(counts)
    candidates = [
        Neighbours(split.train, split.classes, count.expand(split.levels)) for count in choices
    ]
    chosen = choices[_best(candidates, split.validation)]
    head = Neighbours(split.train, split.classes, chosen)
    digest = digest_of(["nearest neighbours", list(counts), split.digest])
    return _fitted(head, head, split, (chosen, started, digest))


def best_single(fitted: Fitted[Any]) -> int:
    """The level that tells most classes of the validation part, the first of equals.

    Raises:
        UsageError: the head does not answer for each level.
    """
    if not fitted.validation.ndim:
        raise UsageError("a level is chosen among those of a head that answers for each of them")
    return int(fitted.validation.argmax())


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its 95 % t interval and t statistic, and how many there were."""

    mean: float
    low: float
    high: float
    t: float
    n: int


def paired(a: Tensor, b: Tensor) -> Difference:
    """How much a lies above b, number by number: (n,) each, such as accuracies of equal seeds.

    Of equal differences the interval is a point, and t infinite, or NaN where they are 0.

    Raises:
        UsageError: they are not two or more, as many of each.
    """
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise UsageError(
            f"numbers to compare are {tuple(a.shape)} and {tuple(b.shape)}: "
            "expected one of each seed, of two seeds or more"
        )
    gaps, n = a.double() - b.double(), len(a)
    mean, error = gaps.mean(), gaps.std() / math.sqrt(n)
    reach = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * float(error)
    return Difference(float(mean), float(mean) - reach, float(mean) + reach, float(mean / error), n)

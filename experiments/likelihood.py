"""What an image costs in bits: a network's density, and those of analytic models, image by image.

An image is made continuous by noise within its grey levels, `images.dequantize`, whose draw belongs
to the number of the image. In bits for each of its d values its likelihood is

    -log p(x; sigma_min) / (d ln 2) + log2((L - 1) / 2),    L grey levels on [-1, 1]

where p(x; sigma) is the density of noised data, which a network has from its probability-flow ODE
and a model in closed form. It depends on sigma_min, which stands beside every number. The ODE ends
at sigma_max in the model's density there: for a Gaussian in N(mu, Sigma + sigma_max^2 I).

The bound is that of a DDPM chain of T steps with the variances "beta", on the images themselves:
its last term is the probability of a bin, and sigma_min does not enter. Two ends of the chain are
cut, and what is left is a true bound, for the chain that is left:

- Above sigma_max, or what the network knows, it has no levels. It begins at the highest one left,
  s, not in N(0, I) but in the model's density there. Its first term then is
  `KL(N(x_0, s^2 I) || p_model(.; s))`, from one draw of the noise, as the other terms.
- Below the standard deviation within a grey level, 2 / (L - 1) / sqrt(12), it has none either: they
  would tell where in its bin a pixel lies, which costs and is not asked. With 256 levels that is
  0.0023, below all levels of the published chain; with 17 it is 0.036.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from edm.network import Network
from experiments.comparison import GAUSSIAN, ISOTROPIC, Key
from experiments.presets import Preset
from experiments.results import surroundings
from experiments.style import COLORS, drawn, style_of
from experiments.tables import write_table
from linear_structure import parameters
from linear_structure.data.datasets import Dataset
from linear_structure.denoise import Denoiser, Model
from linear_structure.gaussian import EigenGaussian, Isotropic
from linear_structure.images import ALL_LEVELS, dequantize, grey_levels
from linear_structure.mixture import GaussianMixture
from linear_structure.moments import HALF_WIDTH
from linear_structure.points import PointCloud
from linear_structure.sampling.bound import terms
from linear_structure.sampling.grids import Rounding, ve_grid
from linear_structure.sampling.likelihood import (
    Trace,
    bits_per_dimension,
    exact_trace,
    hutchinson,
    log_prob,
)
from linear_structure.sampling.processes import ddpm_grid, ended
from linear_structure.sampling.samplers import Noise
from linear_structure.sampling.seeds import Seeds
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import digest_of_file, digest_of_tensor, write_json
from linear_structure.system.machine import Machine
from linear_structure.system.store import Block, folder_of

STEPS, SIGMA_MIN, BATCH = 120, 0.02, 16
PARTS = (1, 2, 4)  # of the steps, which are taken too: they show what the steps change
FEWEST_STEPS = 21  # of a DDPM chain: the largest beta is 20 / T
HEAD = ("image", "model", "nats", "bits", "steps", "probes", "sigma_min", "sigma_max")


@dataclass(frozen=True)
class Images:
    """The first images of a dataset.

    Attributes:
        pixels: uint8 (n, C, H, W).
        levels: number of grey levels of the dataset.
        labels: classes (n,), None for a network without.
    """

    pixels: Tensor
    levels: int
    labels: Tensor | None = None

    @classmethod
    def of(cls, dataset: Dataset, count: int, network: Network) -> "Images":
        """The first `count` of them, with their classes if the network needs these.

        Raises:
            UsageError: there are not so many, or they have no classes, or others.
        """
        if not 1 <= count <= dataset.count:
            raise UsageError(
                f"--count {count}: expected 1 to {dataset.count}, the images of {dataset.name}"
            )
        labels = dataset.labels() if network.label_dim else None
        if network.label_dim and labels is None:
            raise UsageError(
                f"the network is conditional and {dataset.name} has no labels: expected images "
                "with their classes, or an unconditional network"
            )
        if labels is not None:
            network.bind(labels[:count])
        levels = grey_levels(dataset.blocks(1000))
        return cls(dataset.read(0, count), levels, None if labels is None else labels[:count])

    def batches(self, size: int) -> Iterator["Batch"]:
        """All of them in order, at most `size` at a time."""
        for first in range(0, len(self.pixels), size):
            own = slice(first, first + size)
            labels = None if self.labels is None else self.labels[own]
            yield Batch(first, replace(self, pixels=self.pixels[own], labels=labels))

    @property
    def bins(self) -> float:
        """Grey levels in a unit of x."""
        return (self.levels - 1) / 2


@dataclass(frozen=True)
class Batch:
    """Images from number `first` on, and the noise that belongs to their numbers."""

    first: int
    images: Images

    def seeds(self, device: torch.device) -> Seeds:
        """Generators that have drawn nothing."""
        return Seeds.of(range(self.first, self.first + len(self.images.pixels)), device)

    def continuous(self, seeds: Seeds, device: torch.device) -> Tensor:
        """The images with noise within their grey levels: (n, C, H, W) float64, the first draw."""
        uniform = seeds.uniform(self.images.pixels.to(device, torch.float64))
        return dequantize(self.images.pixels.to(device), self.images.levels, uniform)

    def middles(self, device: torch.device) -> Tensor:
        """The middles of their grey levels: (n, C, H, W) float64."""
        return dequantize(self.images.pixels.to(device), self.images.levels, 0.5)

    @property
    def inputs(self) -> dict[str, Any]:
        """What results depend on, as JSON values."""
        said = {
            "first": self.first,
            "images": digest_of_tensor(self.images.pixels),
            "levels": self.images.levels,
        }
        labels = self.images.labels
        return said if labels is None else {**said, "labels": digest_of_tensor(labels)}


@dataclass(frozen=True)
class Range:
    """Noise levels that a network is asked at, and those that it may be: `low` to `high`.

    Raises:
        UsageError: it is asked outside.
    """

    sigma_min: float
    sigma_max: float
    low: float
    high: float

    @classmethod
    def of(
        cls,
        preset: Preset,
        network: Network,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> "Range":
        """What was asked for, by default 0.02 and the highest; where the network itself names no
        lowest or highest level, the preset's stands for it."""
        low = network.sigma_min or preset.sigma_min
        high = network.sigma_max if network.sigma_max < math.inf else preset.sigma_max
        lowest = max(low, SIGMA_MIN) if sigma_min is None else sigma_min
        return cls(lowest, high if sigma_max is None else sigma_max, low, high)

    def __post_init__(self) -> None:
        if not self.low <= self.sigma_min < self.sigma_max <= self.high:
            raise UsageError(
                f"--sigma-min {self.sigma_min:g} and --sigma-max {self.sigma_max:g}: expected an "
                f"ascending pair within the network's range, {self.low:g} to {self.high:g}"
            )


@dataclass(frozen=True)
class Flow:
    """The density that the probability-flow ODE gives; the model's at the highest level.

    Attributes:
        sigmas: (steps + 1,) ascending.
        probes: random signs for each image; 0: the exact trace.
    """

    title: ClassVar[str] = "network"  # what tables call it
    continuous: ClassVar[bool] = True  # a density, not a probability
    sigmas: Tensor
    probes: int = 1

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def calls(self) -> int:
        """Network calls for a batch."""
        return 2 * self.steps

    def nats(self, denoise: Denoiser, model: Model, batch: Batch, device: torch.device) -> Tensor:
        """Log density of each image with noise within its grey levels: (n,) float64."""
        seeds = batch.seeds(device)
        x, high = batch.continuous(seeds, device), float(self.sigmas[-1])
        trace = self._trace(x, seeds)
        return log_prob(denoise, x, self.sigmas, lambda end: model.log_prob(end, high), trace)

    def _trace(self, x: Tensor, seeds: Seeds) -> Trace:
        if not self.probes:
            return exact_trace
        return hutchinson(torch.stack([seeds.noise(x).sign() for _ in range(self.probes)]))


@dataclass(frozen=True)
class Bound:
    """The bound of a DDPM chain that begins in the model's density at its highest level.

    Attributes:
        sigmas: (steps + 1,) descending, ending in 0.
    """

    title: ClassVar[str] = "network, bound"
    continuous: ClassVar[bool] = False
    sigmas: Tensor
    probes: int = 0

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def calls(self) -> int:
        """Network calls for a batch."""
        return self.steps

    def nats(self, denoise: Denoiser, model: Model, batch: Batch, device: torch.device) -> Tensor:
        """What the log probability of each image is not below: (n,) float64."""
        noise, x = batch.seeds(device).noise, batch.middles(device)
        prior = started(model, x, self.sigmas[0], noise)
        found = terms(denoise, x, self.sigmas, "beta", noise, batch.images.bins)
        return -replace(found, prior=prior).total


Measure = Flow | Bound
"""One way to measure a network's likelihood of a batch."""


def started(model: Model, x: Tensor, sigma: Tensor, noise: Noise) -> Tensor:
    """KL(N(x, sigma^2 I) || p_model(.; sigma)) in nats from one draw: (n,) for x (n, *S)."""
    drawn = noise(x)
    square = drawn.flatten(1).square().sum(1)
    entropy_part = -(square + x[0].numel() * (2 * math.pi * sigma**2).log()) / 2
    return entropy_part - model.log_prob(x + sigma * drawn, sigma)


def flow_levels(steps: int, within: Range, round_sigma: Rounding) -> Tensor:
    """Levels of the ODE, evenly spaced in ln sigma: (steps + 1,) ascending, float64.

    Raises:
        UsageError: the network knows too few.
    """
    levels = ve_grid(steps + 1, within.sigma_min, within.sigma_max)[:-1]
    return _distinct(round_sigma(levels), f"--steps {steps}").flip(0)


def chain_levels(
    steps: int, within: Range, round_sigma: Rounding, levels: int = ALL_LEVELS
) -> Tensor:
    """Those of a DDPM chain of T steps that the bound uses, then 0; see the module.

    Args:
        levels: number of grey levels.

    Raises:
        UsageError: T is below 21, or fewer than two are left, or the network knows too few.
    """
    if steps < FEWEST_STEPS:
        raise UsageError(f"--bound {steps}: a DDPM chain has {FEWEST_STEPS} steps or more")
    chain, low = ddpm_grid(steps)[:-1], max(within.low, within_level(levels))
    inside = chain[(low <= chain) & (chain <= within.sigma_max)]
    if len(inside) < 2:
        raise UsageError(
            f"--bound {steps}: {len(inside)} levels of the chain lie from {low:.3g} to "
            f"{within.sigma_max:g}, expected 2 or more"
        )
    return ended(_distinct(round_sigma(inside), f"--bound {steps}"))


def within_level(levels: int) -> float:
    """Standard deviation of what is uniform within a grey level, in units of x."""
    return 2 / (levels - 1) / math.sqrt(12)


def _distinct(levels: Tensor, asked: str) -> Tensor:
    if not bool((levels.diff() < 0).all()):
        raise UsageError(f"{asked}: the network knows fewer noise levels there, expected fewer")
    return levels


def measures(
    network: Network,
    within: Range,
    steps: int = STEPS,
    probes: int = 1,
    bound: int = 0,
    levels: int = ALL_LEVELS,
) -> list[Measure]:
    """The ODE in a quarter, a half and all of the steps, and the bound of `bound` steps, if any.

    Args:
        probes: 0: the exact trace.
        levels: number of grey levels of the images.

    Raises:
        UsageError: as `flow_levels` and `chain_levels`.
    """
    flows = [
        Flow(flow_levels(count, within, network.round_sigma), probes)
        for count in dict.fromkeys(max(1, steps // part) for part in PARTS)
    ]
    found: list[Measure] = list(reversed(flows))
    if bound:
        found.append(Bound(chain_levels(bound, within, network.round_sigma, levels)))
    return found


def closed_models(model: Model) -> dict[Key, Model]:
    """The model by its key; beside a Gaussian, the isotropic one of equal mean and total variance.

    The isotropic model without a width of its own would say only how far the mean is.
    """
    if not isinstance(model, EigenGaussian):
        components = len(model.components) if isinstance(model, GaussianMixture) else 0
        return {Key(model.kind, components): model}
    width = (model.eigenvalues.double().sum() / model.dim).sqrt()
    return {GAUSSIAN: model, ISOTROPIC: Isotropic(model.mean, float(width))}


def note_of(model: Model) -> str:
    """That a Gaussian has directions without variance of their own: sigma_min decides there."""
    if not isinstance(model, EigenGaussian) or model.rank == model.dim:
        return ""
    return f"rank {model.rank} of {model.dim}"


def check_resolution(model: Model, sigma_min: float, levels: int) -> None:
    """Refuse a density that is of the points of a cloud, not of the images that they stand for.

    Raises:
        UsageError: sigma_min is below the standard deviation within a grey level.
    """
    finest = within_level(levels)
    if isinstance(model, PointCloud) and sigma_min < finest:
        raise UsageError(
            f"--sigma-min {sigma_min:g} is below the resolution of a point cloud of {levels} grey "
            f"levels: expected {finest:.3g} or more, the deviation within a level"
        )


@dataclass(frozen=True)
class Column:
    """The likelihoods of all images by one measure of one model.

    Attributes:
        title: of the model; network, or network, bound.
        steps: of the ODE or the chain; 0: a closed form.
        probes: of the trace; 0: it is exact, or there is none.
        nats: log density or log probability, (n,) float64.
        bits: for each value, (n,).
        note: what the title does not say of the model.
    """

    title: str
    steps: int
    probes: int
    sigma_min: float
    sigma_max: float
    nats: Tensor
    bits: Tensor
    note: str = ""

    @property
    def mean(self) -> float:
        return float(self.bits.mean())

    @property
    def standard_error(self) -> float | None:
        return standard_error(self.bits)

    @property
    def summary(self) -> dict[str, Any]:
        """What it is and its mean, as JSON values."""
        own = ("title", "note", "steps", "probes", "sigma_min", "sigma_max")
        return {name: getattr(self, name) for name in (*own, "mean", "standard_error")}


def standard_error(values: Tensor) -> float | None:
    """Of the mean of values (n,); None for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


@dataclass(frozen=True)
class Study:
    """A network's likelihood of images, beside a model's; the network's stay on disk.

    Attributes:
        network: the denoiser.
        model: its density is the ODE's end, and is compared.
        images: n of them.
        machine: of the network.
        root: folder of the numbers.
        size: images at a time.
    """

    network: Network
    model: Model
    images: Images
    machine: Machine
    root: Path
    size: int = BATCH

    def columns(self, wanted: Sequence[Measure]) -> list[Column]:
        """The network's, with a bar; then those of the models.

        Raises:
            WorkError: the network gave NaN or infinity.
        """
        batches = list(self.images.batches(self.size))
        total = len(batches) * sum(measure.calls for measure in wanted)
        with tqdm(total=total, desc="likelihood", unit=" calls", disable=None) as bar:
            found = [self._network(measure, batches, bar) for measure in wanted]
        sigma = min(float(column.sigma_min) for column in found if column.title == Flow.title)
        return found + [self._closed(*each, sigma) for each in closed_models(self.model).items()]

    def _network(self, measure: Measure, batches: Sequence[Batch], bar: "tqdm[Any]") -> Column:
        parts, before = [], bar.n
        for done, batch in enumerate(batches, 1):
            parts.append(self._obtained(measure, batch, bar))
            bar.update(before + done * measure.calls - bar.n)
        nats, levels = torch.cat(parts), measure.sigmas[measure.sigmas > 0]
        bits = bits_per_dimension(nats, self.network.shape, self._bins(measure))
        ends = float(levels.min()), float(levels.max())
        return Column(measure.title, measure.steps, measure.probes, *ends, nats, bits)

    def _bins(self, measure: Measure) -> float:
        return self.images.bins if measure.continuous else 1.0

    def _obtained(self, measure: Measure, batch: Batch, bar: "tqdm[Any]") -> Tensor:
        own = {"measure": measure.title, "sigmas": measure.sigmas.tolist()}
        inputs = {**self._shared, **own, "probes": measure.probes, **batch.inputs}
        path = folder_of(self.root, inputs) / "nats.npy"
        block = Block(path, (len(batch.images.pixels),), torch.float64)
        return block.obtain(lambda: self._measured(measure, batch, bar))

    def _measured(self, measure: Measure, batch: Batch, bar: "tqdm[Any]") -> Tensor:
        labels, device = batch.images.labels, self.network.device
        own = self.network if labels is None else self.network.bind(labels.to(device))
        nats = measure.nats(counted(own, bar.update), self.model, batch, device).cpu()
        if not bool(torch.isfinite(nats).all()):
            raise WorkError("the network gave NaN or infinity: its weights are unusable")
        return nats

    def _closed(self, key: Key, model: Model, sigma: float) -> Column:
        device = self.network.device
        parts = [
            model.log_prob(batch.continuous(batch.seeds(device), device), sigma).cpu()
            for batch in self.images.batches(self.size)
        ]
        nats = torch.cat(parts)
        bits = bits_per_dimension(nats, self.network.shape, self.images.bins)
        return Column(key.title, 0, 0, sigma, sigma, nats, bits, note_of(model))

    @property
    def inputs(self) -> dict[str, Any]:
        """What all numbers depend on, as JSON values."""
        return {**self._shared, **Batch(0, self.images).inputs}

    @cached_property
    def _shared(self) -> dict[str, Any]:
        digests = {"network": self.network.digest, "model": parameters.digest(self.model)}
        return {**digests, **self.machine.inputs}


def counted(denoise: Denoiser, tell: Callable[[], object]) -> Denoiser:
    """The denoiser, which tells of each call."""

    def call(x: Tensor, sigma: Tensor) -> Tensor:
        tell()
        return denoise(x, sigma)

    return call


def write(out: Path, columns: Sequence[Column], inputs: Mapping[str, Any], title: str) -> None:
    """`likelihood.csv`, its settings beside it, and the picture of it."""
    table = out / "likelihood.csv"
    rows = (
        (image, each.title, nats, bits, each.steps, each.probes, each.sigma_min, each.sigma_max)
        for each in columns
        for image, (nats, bits) in enumerate(
            zip(each.nats.tolist(), each.bits.tolist(), strict=True)
        )
    )
    write_table(table, HEAD, rows)
    outputs = {table.name: digest_of_file(table), "means": [each.summary for each in columns]}
    record = {"inputs": dict(inputs), "outputs": outputs, "made": surroundings()}
    write_json(out / "likelihood.json", record)
    picture(out / "likelihood.png", columns, title)


def lines(columns: Sequence[Column]) -> Iterator[str]:
    """Mean and standard error of each column, and by how much the network beats the models."""
    yield "model           steps  probes  sigma_min  bits/dim  standard error"
    for each in columns:
        error = "" if each.standard_error is None else f"{each.standard_error:.3f}"
        steps = str(each.steps or "closed")
        probes = "exact" if each.title == Flow.title and not each.probes else each.probes or "-"
        yield (
            f"{each.title:15} {steps:>6}  {probes:>6}  {each.sigma_min:9.3g}  {each.mean:8.3f}  "
            f"{error:>14}  {each.note}".rstrip()
        )
    finest = finest_flow(columns)
    for each in (column for column in columns if not column.steps):
        gain = each.bits - finest.bits
        reach = HALF_WIDTH * (standard_error(gain) or 0)
        spread = f" +- {reach:.3f} (95 %, paired)" if reach else ""
        yield f"{each.title} less network: {float(gain.mean()):.3f}{spread} bits/dim"
        if each.note:
            yield f"{each.title} of {each.note}: elsewhere its variance is sigma_min^2 alone"


def finest_flow(columns: Sequence[Column]) -> Column:
    """The network's by the most steps."""
    return max((each for each in columns if each.title == Flow.title), key=lambda c: c.steps)


def picture(path: Path, columns: Sequence[Column], title: str) -> None:
    """Bits of each model with 95 % intervals over the images; the network's against the steps."""
    with drawn(path, title, 9.6, 3.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        flows = [each for each in columns if each.title == Flow.title]
        coarser = flows[:-1]
        _models(left, [each for each in columns if each not in coarser])
        _convergence(right, flows)


def _models(axes: Axes, columns: Sequence[Column]) -> None:
    for row, each in enumerate(columns):
        reach = HALF_WIDTH * (each.standard_error or 0)
        axes.errorbar(each.mean, row, xerr=reach, fmt="o", capsize=4, color=_color(each))
        said = f"{each.mean:.3f}" + (f" ± {reach:.3f}" if reach else "")
        axes.annotate(said, (each.mean, row), (0, 9), textcoords="offset points", ha="center")
    below = {Bound.title: "of grey levels alone"}
    labels = [f"{each.title}\n{below.get(each.title, each.note)}".strip() for each in columns]
    axes.set_yticks(range(len(columns)), labels)
    axes.set_ylim(len(columns) - 0.5, -0.7)
    axes.margins(x=0.2)
    axes.set_xlabel("bits/dim, mean and 95 % interval over the images")


def _color(column: Column) -> str:
    if column.steps:
        return COLORS[1]
    keys = (GAUSSIAN, ISOTROPIC)
    return style_of(next((k for k in keys if k.title == column.title), Key("other")))["color"]


def _convergence(axes: Axes, flows: Sequence[Column]) -> None:
    steps, means = [each.steps for each in flows], [each.mean for each in flows]
    axes.plot(steps, means, "o-", color=COLORS[1])
    for place in zip(steps, means, strict=True):
        axes.annotate(f"{place[1]:.3f}", place, (0, 8), textcoords="offset points", ha="right")
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.margins(x=0.25, y=0.25)
    axes.set(xlabel="steps of the network's ODE", ylabel="the network's bits/dim, mean")

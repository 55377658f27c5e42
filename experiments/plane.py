"""Data in the plane: samplers along exact and learned scores, beside exact samples.

The score of the tutorial's mixture is a formula, and so is its density. Of other data it is that of
a point cloud: exact for the drawn points, which samplers along it return. So they have no density,
and no Langevin dynamics at one level, where the score has to be that of the data themselves.

A sampler may start below its first levels: the flow of the Gaussian of the data carries its noise
past all that are above `TELEPORT` (`Run.teleported`), by no call.

Samples are compared with exact ones by mean, covariance, and the total variation of 50 x 50 bins
of [-5, 5]^2, whose floor is what a second exact sample has. Particles walk in blocks that stay on
disk; all runs share their noise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from edm.network import Network
from experiments import networks
from linear_structure import parameters
from linear_structure.data import plane as data
from linear_structure.denoise import Denoiser, Model
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid, ve_grid
from linear_structure.sampling.langevin import cosine_steps, langevin
from linear_structure.sampling.samplers import Noise, Step, final
from linear_structure.sampling.scales import Scales
from linear_structure.sampling.seeds import SEED_LIMIT
from linear_structure.sampling.table import Settings, find
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of
from linear_structure.system.machine import Machine
from linear_structure.system.store import Block, folder_of

SHIPPED = "plane-mixture.safetensors"
SHAPE = (2, 1, 1)  # of a network of points in the plane
POINTS = 1000  # of a point cloud
BINS, HALF = 50, 5.0
MOST = 10**6  # particles
BLOCK = 2500  # of them, that walk together
REPEATS = 16  # exact samples, whose spread is the standard error of each number
LOWEST = 1e-4  # the level whose score stands for that of the data
TELEPORT = 5.0  # the level that the flow of the Gaussian leads to, or the next lower one
SIGMA_MIN = 0.02  # of chains
GAMMA = 1.25  # of neighbouring levels: technique 2 gives none in the plane
PLAIN = Settings()


@dataclass(frozen=True)
class Plane:
    """Data in the plane and what is known of them.

    Attributes:
        name: on command lines.
        draw: makes exact samples.
        points: (POINTS, 2) of them.
        model: of the exact score.
        gaussian: of the data.
    """

    name: str
    draw: data.Draw
    points: Tensor
    model: Model
    gaussian: Gaussian

    @property
    def has_density(self) -> bool:
        """Whether the data, not only noised ones, have a density and a score."""
        return isinstance(self.model, GaussianMixture)

    @property
    def count(self) -> int:
        """Particles that take a minute or so."""
        return 20_000 if self.has_density else 5000

    @property
    def source(self) -> str:
        """Whose score is the exact one."""
        return "closed form" if self.has_density else f"{POINTS:,} points"


def load(name: str) -> Plane:
    """The data of this name; a UsageError lists the names where there are none."""
    draw = data.find(name)
    points = draw(POINTS, _generator(0, "points"))
    if name != "mixture":
        return Plane(name, draw, points, PointCloud(points), Gaussian.from_samples(points))
    model = data.mixture()
    return Plane(name, draw, points, model, model.gaussian())


def load_learned(source: str | Path) -> Network:
    """A network of points in the plane.

    Raises:
        UsageError: it is one of something else, or as `networks.load`.
    """
    network = networks.load(networks.given(str(source)), Machine(torch.device("cpu"), 1), SHAPE)
    if network.shape != SHAPE or network.label_dim:
        made = " x ".join(map(str, network.shape))
        of = f"of {network.label_dim} classes" if network.label_dim else "without classes"
        raise UsageError(
            f"{source} is a network of images {made} {of}: expected one of points in the plane, "
            "2 x 1 x 1 without classes"
        )
    return network


@dataclass(frozen=True, eq=False)
class Walk:
    """A sampler with its settings.

    Attributes:
        name: in tables.
        title: in pictures.
        start: standard deviation of the noise that it starts from.
        sigmas: its full grid.
        steps: denoiser, x at sigmas[skip], skip, noise -> the Steps that are left.
        calls: skip -> network calls of a sample.
        settings: what samples depend on beside the grid, as JSON values.
    """

    name: str
    title: str
    start: float
    sigmas: Tensor
    steps: Callable[[Denoiser, Tensor, int, Noise], Iterator[Step]]
    calls: Callable[[int], int]
    settings: Mapping[str, Any]

    @property
    def is_one_level(self) -> bool:
        """Whether it stays at the level whose score stands for that of the data."""
        return len(self.sigmas) == 1


def one_level(count: int) -> Walk:
    """Langevin dynamics at the lowest level, from N(0, I), with the tutorial's steps."""
    sigma, sizes = torch.tensor(LOWEST, dtype=torch.float64), cosine_steps(count)
    return Walk(
        f"langevin-{count}",
        "Langevin, one scale",
        1.0,
        sigma.reshape(1),
        lambda denoise, x, skip, noise: langevin(denoise, x, sigma, sizes, noise),
        lambda skip: count,
        {"steps": "cosine", "count": count},
    )


def walk_of(name: str, sigmas: Tensor, settings: Settings = PLAIN) -> Walk:
    """A row of the table of samplers on a full grid, (N + 1,)."""
    row, count = find(name), len(sigmas) - 1
    return Walk(
        f"{name}-{count}",
        row.title,
        float(sigmas[0]),
        sigmas,
        lambda denoise, x, skip, noise: row.run(
            denoise, x, sigmas, skip, noise if row.stochastic else None, settings
        ),
        lambda skip: row.calls(count, skip, settings),
        row.inputs(sigmas, settings),
    )


@dataclass(frozen=True)
class Run:
    """A walk along a score.

    Attributes:
        teleported: whether the Gaussian of the data carries it past the levels above `TELEPORT`.
        learned: whether along the network's score, not the exact one.
    """

    walk: Walk
    teleported: bool = False
    learned: bool = False

    @property
    def name(self) -> str:
        words = ("teleported", self.teleported), ("learned", self.learned)
        return "-".join([self.walk.name, *(word for word, said in words if said)])

    @property
    def skip(self) -> int:
        """Levels at which the score is not asked for."""
        return int((self.walk.sigmas > TELEPORT).sum()) if self.teleported else 0

    @property
    def calls(self) -> int:
        """Network calls of a sample."""
        return self.walk.calls(self.skip)

    def particles(
        self, denoise: Denoiser, gaussian: Gaussian, count: int, generator: Generator
    ) -> Tensor:
        """Where (count, 2) particles end; as `final`, a WorkError for NaN."""
        walk, skip, noise = self.walk, self.skip, noise_of(generator)
        x = walk.start * noise(torch.empty(count, 2, dtype=torch.float64))
        if skip:
            x = gaussian.flow(x, walk.sigmas[0], walk.sigmas[skip])
        with torch.inference_mode():
            return final(walk.steps(denoise, x, skip, noise))


def runs(plane: Plane, learned: bool) -> list[Run]:
    """Every run that there is for the data, in the order of the table.

    Langevin dynamics at one level has nothing to skip, and no network was trained at its level.
    """
    levels = Scales.of(plane.points, SIGMA_MIN, gamma=GAMMA).grid()
    annealed = walk_of("annealed", levels, Settings(level_steps=5))
    few, heun, many = (walk_of("heun", sigma_grid(steps)) for steps in (10, 18, 40))
    corrected = walk_of("pc", ve_grid(50, SIGMA_MIN, 80.0))
    ancestral = walk_of("ancestral", sigma_grid(40, SIGMA_MIN))
    whole = [annealed, few, heun, many, corrected, ancestral]
    if plane.has_density:
        whole = [one_level(100), one_level(1000), *whole]
    ways = [(True, False), *([(False, True), (True, True)] if learned else [])]
    varied = (annealed, heun, corrected, ancestral)
    return [*map(Run, whole), *(Run(walk, *way) for way in ways for walk in varied)]


def histogram(x: Tensor, half: float = HALF) -> Tensor:
    """Shares of points (n, 2) in the squares of [-half, half]^2: (BINS, BINS), as they are drawn.

    Rows are x_1 from low to high, columns x_0: an image whose origin is below and left.
    """
    edges = torch.linspace(-half, half, BINS + 1, dtype=torch.float64)
    return torch.histogramdd(x.double().contiguous(), [edges, edges]).hist.T / len(x)


def centres(half: float = HALF, count: int = BINS) -> Tensor:
    """The centres of as many squares a side: (count, count, 2), in the order of `histogram`."""
    at = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * half / count) - half
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), 2)


def density(model: Model, sigma: float, half: float = HALF) -> Tensor:
    """The density of noised data at the centres of the squares of `histogram`: (BINS, BINS)."""
    return model.log_prob(centres(half).flatten(0, 1), sigma).exp().reshape(BINS, BINS)


def total_variation(x: Tensor, y: Tensor) -> float:
    """Half the difference of two samples' shares, what lies outside being one more of them."""
    shares = [histogram(z) for z in (x, y)]
    inside, outside = shares[0] - shares[1], shares[0].sum() - shares[1].sum()
    return float(inside.abs().sum() + outside.abs()) / 2


class Numbers(NamedTuple):
    """What is said of a sample."""

    mean_0: float
    mean_1: float
    cov_00: float
    cov_01: float
    cov_11: float
    total_variation: float  # to the reference sample


def numbers_of(x: Tensor, reference: Tensor) -> Numbers:
    """Of a sample (n, 2), n >= 2."""
    mean_0, mean_1 = x.mean(0).tolist()
    (cov_00, cov_01), (_, cov_11) = x.T.cov().tolist()
    return Numbers(mean_0, mean_1, cov_00, cov_01, cov_11, total_variation(x, reference))


@dataclass(frozen=True)
class Study:
    """Runs on the same data with the same noise.

    Attributes:
        network: of the learned score, or None: then its runs are left out.
        count: particles of each run, and of exact samples.
        seed: of all that is drawn but the points of a cloud.
        root: folder of the particles.
    """

    plane: Plane
    network: Network | None
    count: int
    seed: int
    root: Path

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MOST:
            raise UsageError(f"--count {self.count}: expected 2 to {MOST:,} particles")
        if not 0 <= self.seed < SEED_LIMIT:
            raise UsageError(f"--seed {self.seed}: expected 0 to {SEED_LIMIT - 1}")

    @cached_property
    def scores(self) -> dict[bool, tuple[Denoiser, str]]:
        """Learned or not -> whose score, and its digest."""
        model, network = self.plane.model, self.network
        found: dict[bool, tuple[Denoiser, str]] = {False: (model.denoise, parameters.digest(model))}
        return found if network is None else {**found, True: (network, network.digest)}

    @cached_property
    def runs(self) -> list[Run]:
        return runs(self.plane, self.network is not None)

    def generator(self, *stream: str | int) -> Generator:
        """One of independent streams of the seed."""
        return _generator(self.seed, *stream)

    def exact(self, *stream: str | int) -> Tensor:
        """An exact sample: (count, 2)."""
        return self.plane.draw(self.count, self.generator(*stream))

    @cached_property
    def reference(self) -> Tensor:
        """The exact sample that all others are compared with."""
        return self.exact("reference")

    @cached_property
    def gaussian(self) -> Tensor:
        """A sample of the Gaussian of the data, (count, 2): teleported all the way."""
        return self.plane.gaussian.sample(self.count, generator=self.generator("gaussian"))

    @cached_property
    def variations(self) -> Tensor:
        """The total variation of as many other exact samples: (REPEATS,)."""
        found = (total_variation(self.exact(k), self.reference) for k in range(REPEATS))
        return torch.tensor(list(found), dtype=torch.float64)

    @cached_property
    def samples(self) -> dict[Run, Tensor]:
        """Where each run ends, (count, 2); with a bar, and what is on disk is not made again."""
        pieces = torch.arange(self.count).split(BLOCK)
        found: dict[Run, list[Tensor]] = {run: [] for run in self.runs}
        with tqdm(total=self.count * len(found), desc="sampling", unit=" particles") as bar:
            for run, blocks in found.items():
                bar.set_postfix_str(run.name)
                for number, piece in enumerate(pieces):
                    blocks.append(self._block(run, number, len(piece)))
                    bar.update(len(piece))
        return {run: torch.cat(blocks) for run, blocks in found.items()}

    @property
    def inputs(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON values."""
        return {
            "data": self.plane.name,
            "count": self.count,
            "seed": self.seed,
            "repeats": REPEATS,
            "runs": {run.name: self.inputs_of(run) for run in self.runs},
        }

    def inputs_of(self, run: Run) -> dict[str, Any]:
        """What the particles of a run depend on, as JSON values."""
        _, score = self.scores[run.learned]
        return {
            "sampler": run.name,
            "sigmas": run.walk.sigmas.tolist(),
            **run.walk.settings,
            "start": run.walk.start,
            "skip": run.skip,
            "score": score,
            "gaussian": parameters.digest(self.plane.gaussian),
            "seed": self.seed,
        }

    def _block(self, run: Run, number: int, count: int) -> Tensor:
        denoise, _ = self.scores[run.learned]
        path = folder_of(self.root, self.inputs_of(run)) / f"{number:03d}.npy"
        generator, gaussian = self.generator("walk", number), self.plane.gaussian
        return Block(path, (count, 2), torch.float64).obtain(
            lambda: run.particles(denoise, gaussian, count, generator)
        )

    @cached_property
    def errors(self) -> Numbers:
        """The standard error of each number, of independent particles that are spread as exact."""
        a, b = (self.reference - self.reference.mean(0)).T
        terms = torch.stack([a, b, a * a, a * b, b * b])
        moments = terms.std(1) / self.count**0.5
        return Numbers._make([*moments.tolist(), float(self.variations.std())])

    @cached_property
    def rows(self) -> list[list[Any]]:
        """Sampler, calls, its six numbers and the floor.

        An exact sample comes first, then one of the Gaussian, then each run.
        """
        exact = numbers_of(self.exact(0), self.reference)
        found = [
            ("gaussian", 0, numbers_of(self.gaussian, self.reference)),
            *(
                (run.name, run.calls, numbers_of(self.samples[run], self.reference))
                for run in self.runs
            ),
        ]
        floor = exact.total_variation
        return [["exact", 0, *exact, floor], *([*head, *own, floor] for *head, own in found)]


HEAD = ("sampler", "calls", *Numbers._fields, "floor")


def table(study: Study) -> str:
    """The rows as Markdown; below, what each number is off by chance."""
    head = ("sampler", "network calls", "mean", "covariance", "total variation", "floor")
    lines = [f"| {' | '.join(head)} |", "|---|---:|---|---|---:|---:|"]
    for name, calls, *numbers, floor in study.rows:
        lines.append(_line(name, f"{calls}", numbers, f"{floor:.3f}"))
    lines.append(_line("standard error", "", study.errors, ""))
    return "\n".join([*lines, "", _caption(study)])


def _line(name: str, calls: str, numbers: Iterable[float], floor: str) -> str:
    m0, m1, c00, c01, c11, variation = (f"{value:.3f}" for value in numbers)
    cells = (name, calls, f"{m0}, {m1}", f"{c00}, {c01}, {c11}", variation, floor)
    return f"| {' | '.join(cells)} |"


def _caption(study: Study) -> str:
    gaussian = study.plane.gaussian
    covariance = (gaussian.basis * gaussian.eigenvalues) @ gaussian.basis.T
    mean = ", ".join(f"{value:.3f}" for value in gaussian.mean.tolist())
    entries = ", ".join(f"{value:.3f}" for value in covariance[[0, 0, 1], [0, 1, 1]].tolist())
    return (
        f"{study.count:,} particles each; covariance 00, 01, 11. The Gaussian that teleports, of "
        f"the data ({study.plane.source}), has mean {mean} and covariance {entries}. "
        f"The standard error of the total variation is the spread of {REPEATS} exact samples."
    )


def _generator(seed: int, *stream: str | int) -> Generator:
    """One of independent streams of a seed."""
    return Generator().manual_seed(int(digest_of([seed, *stream])[:15], 16))


def noise_of(generator: Generator) -> Noise:
    """Standard normal noise like x, drawn for all of a batch together."""
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)

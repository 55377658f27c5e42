"""Images from seeds in a folder: any sampler, any skip, resumable and in any number of processes.

The list of seeds is cut into batches by position. A batch is computed whole, by one process, and
is done when all its images are there. So a run that was killed and resumed, and one of several
processes, end with the bytes of one that was not. `generation.json` beside the images holds all
that they depend on: a folder with other settings is refused, so nothing stale is ever reused.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from edm.network import Network
from experiments.sampling import computed_in, drawn
from linear_structure.images import is_whole_png, save_png, to_uint8
from linear_structure.sampling.ablation import Ablation, Schedule
from linear_structure.sampling.grids import Churn
from linear_structure.sampling.samplers import (
    Step,
    ablation,
    check_skip,
    discard,
    ended,
    final,
    heun,
)
from linear_structure.sampling.seeds import check_class, format_seeds
from linear_structure.sampling.table import SAMPLERS, Settings, find
from linear_structure.system import machine
from linear_structure.system.errors import UsageError
from linear_structure.system.files import alone_in, read_json, write_json
from linear_structure.system.machine import Machine
from linear_structure.teleport import Teleport, carry

SETTINGS = "generation.json"
ABLATION = "ablation"  # the sampler of all settings of `Ablation`; the others are rows
PER_FOLDER = 1000  # seeds of one folder of --subdirs


@dataclass(frozen=True)
class Generation:
    """Images of some seeds, and everything they depend on.

    Attributes:
        network: the denoiser, on the machine's device.
        seeds: in the order in which batches are cut.
        outdir: folder of the images.
        settings: grid and churn; what else they hold is for the sampler "ablation".
        sampler: a row of `SAMPLERS`, of which "heun" is the published EDM sampler, or "ablation".
        chain: settings of the row.
        skip: steps to skip by `teleport`.
        label: class of all images; None: each seed draws one, if the network has classes.
        batch: seeds that are sampled together.
        subdirs: a folder for every thousand seeds.
        compiled: whether the network is, recorded.

    Raises:
        UsageError: two of these do not fit together, or one is out of range.
    """

    network: Network
    seeds: tuple[int, ...]
    outdir: Path
    machine: Machine
    settings: Ablation = field(default_factory=Ablation)
    sampler: str = "heun"
    chain: Settings = field(default_factory=Settings)
    skip: int = 0
    teleport: Teleport | None = None
    label: int | None = None
    batch: int = 64
    subdirs: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch} seeds: expected 1 or more")
        check_skip(self.skip, len(self.schedule.stages))
        if self.skip and self.teleport is None:
            raise UsageError(f"skip {self.skip} needs the parameters of a model to teleport with")
        if self.teleport is not None:
            self.teleport.check(self.network)
        if (channels := self.network.shape[0]) not in (1, 3):
            raise UsageError(f"the network makes {channels} channels: PNG has 1 or 3")
        if self.label is not None:
            check_class(self.label, self.network.label_dim)
        _check_sampler(self.sampler, self.settings)

    @cached_property
    def schedule(self) -> Schedule:
        """The full grid within the network's range, with the lift and the weights of each step."""
        network = self.network
        return self.settings.plan(network.sigma_min, network.sigma_max, network.round_sigma)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the images depend on, as JSON values: of churn, what is not the default.

        That is infinite, which is no JSON.
        """
        churn, teleport = self.settings.churn, self.teleport.inputs if self.teleport else {}
        row = SAMPLERS.get(self.sampler)
        return {
            "network": self.network.digest,
            "dtype": "as published",
            **computed_in(self.network),
            "compiled": self.compiled,
            **self.machine.inputs,
            "sampler": self.sampler,
            **asdict(self.settings),
            "churn": {k: v for k, v in asdict(churn).items() if v != getattr(Churn(), k)},
            "sigmas": self.schedule.sigmas.tolist(),
            **(row.inputs(self.schedule.sigmas, self.chain) if row else {}),
            "skip": self.skip,
            "parameters": None,
            **{k: v for k, v in teleport.items() if k != "solver_steps"},  # always the same
            "class": self.label,
            "seeds": format_seeds(self.seeds),
            "batch": self.batch,
            "subdirs": self.subdirs,
        }

    @property
    def evaluations(self) -> int:
        """Steps of a sample's walk, the last one, which has no evaluation, among them."""
        row, left = SAMPLERS.get(self.sampler), self.schedule[self.skip :].sigmas
        if row and row.stochastic:
            return row.calls(len(self.schedule.stages), self.skip, self.chain) + 1
        return len(left)

    def path(self, seed: int) -> Path:
        """Where the image of a seed lies, named as published."""
        folder = f"{seed - seed % PER_FOLDER:06d}" if self.subdirs else ""
        return self.outdir / folder / f"{seed:06d}.png"


def generate(generation: Generation) -> int:
    """Make the images that are missing in this process's share: how many it wrote.

    Raises:
        UsageError: the folder holds images made with other settings.
        WorkError: the network gave NaN or infinity.
    """
    _claim(generation)
    seeds, size = generation.seeds, generation.batch
    every = [seeds[i : i + size] for i in range(0, len(seeds), size)]  # however many are done
    batches = [batch for batch in machine.share(every) if _missing(generation, batch)]
    total = len(batches) * generation.evaluations
    quiet = machine.rank() != 0 or not batches
    with tqdm(total=total, desc="sampling", unit=" steps", disable=quiet) as bar:
        return sum(_write(generation, batch, bar.update) for batch in batches)


def trajectory(generation: Generation, seeds: Sequence[int]) -> Iterator[Step]:
    """Draws in the published order: latents, classes, then the noise of every step, skipped too."""
    sigmas, skip = generation.schedule.sigmas, generation.skip
    denoise, start, labels, noise = drawn(generation.network, sigmas[0], seeds, generation.label)
    x = carry(start, sigmas, skip, generation.teleport, labels)
    left, churned = generation.schedule[skip:], generation.settings.churn.s_churn > 0
    if churned:
        discard(noise, x, skip)
    if generation.sampler == ABLATION:
        return ablation(denoise, x, left, noise if churned else None)
    if churned:
        return heun(denoise, x, left.sigmas, left.lifts, noise)
    row = find(generation.sampler)
    return ended(row.run(denoise, x, sigmas, skip, noise, generation.chain))


def _missing(generation: Generation, seeds: Iterable[int]) -> list[int]:
    return [seed for seed in seeds if not is_whole_png(generation.path(seed))]


def _write(generation: Generation, batch: Sequence[int], tick: Callable[[], object]) -> int:
    """Sample a batch and write the images that are not there."""
    missing = set(_missing(generation, batch))
    with torch.inference_mode():
        images = to_uint8(final(_counted(trajectory(generation, batch), tick))).cpu()
    for seed, image in zip(batch, images, strict=True):
        if seed in missing:
            save_png(generation.path(seed), image)
    return len(missing)


def _counted(steps: Iterable[Step], tick: Callable[[], object]) -> Iterator[Step]:
    for step in steps:
        yield step
        tick()


def _claim(generation: Generation) -> None:
    """Write the settings into the folder, or compare those that are there."""
    inputs, folder = generation.inputs, generation.outdir
    path = folder / SETTINGS
    if machine.rank() == 0 and not path.exists():
        others = sorted(each.name for each in folder.glob("[!.]*"))
        if others and not path.exists():  # else another command's, which come after its record
            raise UsageError(
                f"{folder} holds {others[0]} and no {SETTINGS} that says how its images "
                "were made: expected an empty folder, or a new one"
            )
        with alone_in(folder, f"begins in {folder}"):
            if not path.exists():
                write_json(path, inputs)
    machine.wait_for([path])
    try:
        found = dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged: expected another folder") from error
    other = [name for name in inputs | found if found.get(name) != inputs.get(name)]
    if other:
        raise UsageError(
            f"{path} says that another {', '.join(sorted(other))} was used: "
            "expected the same settings or another folder"
        )


def _check_sampler(sampler: str, settings: Ablation) -> None:
    if sampler == ABLATION:
        return
    find(sampler)
    plain = Ablation()
    names = ("solver", "schedule", "scaling", "alpha")
    if any(getattr(settings, name) != getattr(plain, name) for name in names):
        raise UsageError(
            f"sampler {sampler} takes no schedule, scaling or alpha: they belong to the ablation "
            "sampler, with the solvers heun and euler"
        )
    if sampler != "heun" and settings.churn.s_churn:
        kind = "has noise of its own" if SAMPLERS[sampler].stochastic else "is deterministic"
        raise UsageError(f"{sampler} {kind}: churn goes with the solvers heun and euler")

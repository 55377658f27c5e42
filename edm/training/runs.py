"""A training run as a folder: it continues from its last snapshot, and can be looked at meanwhile.

    training-state.pt              all that the next step needs; replaced whole at each snapshot
    network-<images>.safetensors   the averaged network
    samples-<images>.png           what it makes of fixed noise in 18 Heun steps
    loss.csv, loss.png             mean loss per pixel since the row before

A run is known by its recipe and its data. Only how long it lasts, how often it reports and
whether it is compiled may differ between two commands that continue it.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from edm.checkpoints import checkpoint
from edm.precondition import Preconditioned
from edm.training.data import Data, Drawn, Source, resident
from edm.training.recipes import Recipe
from edm.training.state import State
from edm.training.steps import Trainer
from edm.training.transfer import Transfer
from linear_structure.data.datasets import Dataset
from linear_structure.images import grid, save_png, to_uint8
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.sampling.seeds import Seeds
from linear_structure.system.errors import WorkError, stoppable
from linear_structure.system.files import alone_in, check_writable, replacing, write_text
from linear_structure.system.machine import gathered, rank, world_size
from linear_structure.system.options import plain

STATE = "training-state.pt"
FREE = ("duration", "tick", "snapshot", "compile")  # may change when a run goes on
SAMPLES, COLUMNS, STEPS = 64, 8, 18
THUMBNAIL = 32  # pixels that a sample is wide, at least
GAP, GREY = 1, 96  # around each sample


@torch.no_grad()
def write_samples(path: Path, network: Preconditioned) -> None:
    """A grid of what the network makes of the latents of seeds 0 to 63, as PNG."""
    device = network.device
    seeds = Seeds.of(range(SAMPLES), device)
    latents = seeds.latents(network.shape)
    denoise = network.bind(seeds.labels(network.label_dim)) if network.label_dim else network
    sigmas = sigma_grid(STEPS, max(0.002, network.sigma_min), min(80, network.sigma_max))
    *_, last = heun(denoise, latents.double() * sigmas[0].to(device), sigmas.to(device))
    zoom = -(-THUMBNAIL // network.img_resolution)
    pixels = to_uint8(last.x).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    pixels = grid(F.pad(pixels, [GAP] * 4, value=GREY).cpu(), COLUMNS)
    save_png(path, pixels)


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        recipe: with its piece settled (`Recipe.shared_by`).
        folder: where everything is written.
        samples: draws what the averaged network makes; None where it makes no images.
        weights: file of the averaged network; with {images}, each snapshot has its own.
        story: what else the weights' file says of where they come from, as JSON values.
        transfer: what to start from, and what the recipe was made for; None: from random weights.
    """

    recipe: Recipe
    dataset: Dataset | Drawn
    folder: Path
    device: torch.device
    samples: Callable[[Path, Any], None] | None = write_samples
    weights: str = "network-{images}.safetensors"
    story: Mapping[str, Any] = field(default_factory=dict)
    transfer: Transfer | None = None

    def run(self) -> State:
        """Train from where it stopped, or from the start, to the end of the recipe.

        SIGINT and SIGTERM take effect after the step that they come in, when its state is kept; a
        second one, at once. Of several commands in a folder, each waits for the one before.

        Raises:
            UsageError: the recipe does not fit the data, or the folder holds another run.
            WorkError: the loss is no longer finite, or a snapshot cannot be written.
            OSError: nothing can be written in the folder.
        """
        check_writable(self.folder)
        identity = self.identity  # loads the data, which may be stopped at any moment
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        torch.manual_seed(self.recipe.seed)
        network = self._network()  # a recipe that gives none leaves no folder behind
        turn = nullcontext() if rank() else alone_in(self.folder, f"trains in {self.folder}")
        with turn, gathered(backend, patience=None) as meet:
            state: State[Any] = State.start(network.to(self.device))
            state.read(self.folder / STATE, identity)
            if self.recipe.compile:
                state.network.compile()
            several = world_size() > 1
            forward = DistributedDataParallel(state.network) if several else state.network
            objective = self.recipe.objective(state.network)
            with stoppable() as stopped:
                self._train(Trainer(self.recipe, self.source, objective, forward), state, stopped)
                # DDP keeps gloo's threads alive. One that still has to free a tensor of the last
                # reduction needs Python for it, and aborts a process that is ending.
                meet()
        return state

    def _network(self) -> nn.Module:
        if self.transfer is None:
            return self.recipe.build(self.dataset)
        return self.transfer.start(self.recipe, self.dataset)

    @cached_property
    def source(self) -> Source:
        """The data in memory, as the recipe wants them."""
        if not isinstance(self.dataset, Dataset):
            return self.dataset
        images = resident(self.dataset.images(), self.device)
        if not self.recipe.conditional:
            return Data(images, None, 0, self.device)
        return Data(images, self.dataset.labels(), self.dataset.label_dim, self.device)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that two commands must agree on to be one run, as JSON values."""
        told = self.recipe.identity().items()
        begun = self.transfer.identity if self.transfer else {}
        recipe = {name: value for name, value in told if name not in FREE}
        return {**recipe, **self.source.identity, **begun}

    def _train(self, trainer: Trainer, state: State, stopped: Callable[[], bool]) -> None:
        recipe, batch = self.recipe, self.recipe.batch
        began = time.perf_counter() - state.seconds
        total, whole = self._pending(state), -(-recipe.duration // batch) * batch
        with tqdm(total=whole, initial=state.images_seen, unit="img", disable=rank() > 0) as bar:
            for error in trainer.steps(state):
                total += error
                bar.update(batch)
                state.seconds = time.perf_counter() - began
                ends = state.images_seen >= recipe.duration
                writes = ends or _passed(recipe.snapshot, state.images_seen, batch)
                if writes or _passed(recipe.tick, state.images_seen, batch):
                    mean = self._check(self._mean(total, state))
                    bar.set_postfix(loss=f"{mean:.4f}")
                    state.curve.append((state.images_seen, mean))
                    total = torch.zeros_like(total)
                if writes and rank() == 0:
                    self._write(state)
                if _any_process(stopped()):
                    self._stop(state, total)
                    return

    def _pending(self, state: State) -> Tensor:
        """Error that this process summed before the training stopped, (); its share if others."""
        kept, state.pending = state.pending, None
        zero = torch.zeros((), device=self.device)
        return zero if kept is None else zero + kept.to(self.device)[rank() :: world_size()].sum()

    def _stop(self, state: State, total: Tensor) -> None:
        """Keep what was done since the last snapshot, unless its loss is not finite."""
        if not state.curve or state.curve[-1][0] < state.images_seen:
            state.pending = _of_each_process(total)
            self._check(self._mean(total, state))
        if rank() == 0:
            state.write(self.folder / STATE, self.identity)

    def _mean(self, total: Tensor, state: State) -> float:
        """Mean loss per pixel since the last row of the curve; this process has summed its part."""
        if world_size() > 1:
            distributed.all_reduce(total)
        images = state.images_seen - (state.curve[-1][0] if state.curve else 0)
        return float(total) / (images * math.prod(self.dataset.shape))

    def _check(self, mean: float) -> float:
        """The mean loss; WorkError where it is not finite."""
        if not math.isfinite(mean):
            networks = sorted(self.folder.glob(self.weights.format(images="*")))
            raise WorkError(
                f"the loss is {mean}: training stops; the last good snapshot is "
                f"{networks[-1] if networks else 'not there yet'}; try a lower learning rate in "
                "another folder"
            )
        return mean

    def _write(self, state: State) -> None:
        """Everything for people first, the state last: it is what makes a snapshot count."""
        name = f"{state.images_seen:09d}"
        provenance = {
            **plain(self.recipe),
            **self.identity,
            **self.story,
            **({"transfer_name": self.transfer.name} if self.transfer else {}),
            "dataset": self.dataset.name,
            "images_seen": state.images_seen,
            "seconds": round(state.seconds),
            "loss_per_pixel": state.curve[-1][1],
            "torch": torch.__version__,
        }
        checkpoint.save(state.average, self.folder / self.weights.format(images=name), provenance)
        if self.samples:
            self.samples(self.folder / f"samples-{name}.png", state.average)
        write_curve(self.folder / "loss", state.curve)
        state.write(self.folder / STATE, self.identity)


def _any_process(stopped: bool) -> bool:
    """Whether one of the processes is to stop: all of them leave after the same step."""
    if world_size() == 1:
        return stopped
    asked = torch.tensor(int(stopped))  # on the CPU: no GPU is waited for
    distributed.all_reduce(asked, distributed.ReduceOp.MAX)
    return bool(asked)


def _of_each_process(value: Tensor) -> Tensor:
    """A number of each process, () -> (processes,)."""
    values = [value.clone() for _ in range(world_size())]
    if world_size() > 1:
        distributed.all_gather(values, value)
    return torch.stack(values)


def _passed(interval: int, images_seen: int, batch: int) -> bool:
    """Whether the last batch reached a multiple of the interval."""
    return images_seen // interval > (images_seen - batch) // interval


def write_curve(stem: Path, curve: list[tuple[int, float]]) -> None:
    """The loss curve as `<stem>.csv` and `<stem>.png`."""
    from matplotlib.figure import Figure  # takes a quarter of a second

    rows = "".join(f"{images},{loss!r}\n" for images, loss in curve)
    write_text(stem.with_suffix(".csv"), "images,loss\n" + rows)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), marker=".")  # a line alone would not show one row
    axes.set(xlabel="images seen", ylabel="loss per pixel", yscale="log")
    with replacing(stem.with_suffix(".png")) as beside:
        figure.savefig(beside, dpi=100)

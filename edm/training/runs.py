"""A training run as a folder: it continues from its last snapshot, and can be looked at meanwhile.

    training-state.pt              all that the next step needs; replaced whole at each snapshot
    network-<images>.safetensors   the averaged network
    samples-<images>.png           what it makes of fixed noise in 18 Heun steps
    loss.csv, loss.png             mean loss per pixel since the row before

A run is known by its recipe and its data. Only how long it lasts and how often it reports may
differ between two commands that continue it.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from edm.checkpoints import checkpoint
from edm.precondition import Preconditioned, build
from edm.training.augment import Augment
from edm.training.loss import denoising_loss
from edm.training.recipes import Recipe
from edm.training.state import read_state, write_state
from edm.training.steps import Data, State, Trainer
from linear_structure.data.datasets import Dataset
from linear_structure.images import grid, save_png, to_uint8
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.sampling.seeds import Seeds
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import digest_of_tensor, replacing, write_text
from linear_structure.system.machine import rank, world_size
from linear_structure.system.options import plain

STATE = "training-state.pt"
PACE = ("duration", "tick", "snapshot")
SAMPLES, COLUMNS, STEPS = 64, 8, 18
THUMBNAIL = 32  # pixels that a sample is wide, at least
GAP, GREY = 1, 96  # around each sample


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        recipe: with its piece settled (`Recipe.shared_by`).
        folder: where everything is written.
        compile: run the network through `torch.compile`.
    """

    recipe: Recipe
    dataset: Dataset
    folder: Path
    device: torch.device
    compile: bool = False

    def run(self) -> State:
        """Train from the last snapshot, or from the start, to the end of the recipe.

        Raises:
            UsageError: the recipe does not fit the data, or the folder holds another run.
            WorkError: the loss is no longer finite, or a snapshot cannot be written.
        """
        with _processes(self.device):
            state = State.start(self._network())
            self._read(state)
            data = Data(self._images, self.dataset.labels(), state.network.label_dim, self.device)
            forward = self._forward(state.network)
            augment = Augment(self.recipe.augment) if self.recipe.augment else None
            objective = partial(denoising_loss, self.recipe.loss(), augment=augment)
            self._train(Trainer(self.recipe, data, objective, forward), state)
        return state

    @cached_property
    def _images(self) -> Tensor:
        return self.dataset.images()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that two commands must agree on to be one run, as JSON values."""
        recipe = {name: value for name, value in plain(self.recipe).items() if name not in PACE}
        labels = self.dataset.labels() if self.recipe.conditional else None
        told = {} if labels is None else {"labels": digest_of_tensor(labels)}
        return {**recipe, **told, "images": digest_of_tensor(self._images)}

    def _network(self) -> Preconditioned:
        torch.manual_seed(self.recipe.seed)
        network = build(self.recipe.network(self.dataset)).to(self.device)
        if self.recipe.precision != "float32":
            network.compute_dtype = getattr(torch, self.recipe.precision)
        return network

    def _forward(self, network: Preconditioned) -> nn.Module:
        if self.compile:
            network.compile()
        return DistributedDataParallel(network) if world_size() > 1 else network

    def _train(self, trainer: Trainer, state: State) -> None:
        recipe, batch = self.recipe, self.recipe.batch
        began = time.perf_counter() - state.seconds
        total, since = torch.zeros((), device=self.device), state.images_seen
        with _bar(recipe, state.images_seen) as bar:
            for error in trainer.steps(state):
                total += error
                bar.update(batch)
                ends = state.images_seen >= recipe.duration
                writes = ends or _passed(recipe.snapshot, state.images_seen, batch)
                if not writes and not _passed(recipe.tick, state.images_seen, batch):
                    continue
                mean = self._mean(total, state.images_seen - since)
                bar.set_postfix(loss=f"{mean:.4f}")
                state.curve.append((state.images_seen, mean))
                state.seconds = time.perf_counter() - began
                total, since = torch.zeros_like(total), state.images_seen
                if writes and rank() == 0:
                    self._write(state)

    def _mean(self, total: Tensor, images: int) -> float:
        """Mean loss per pixel over all processes, of which this one has summed its part."""
        if world_size() > 1:
            distributed.all_reduce(total)
        mean = float(total) / (images * math.prod(self.dataset.shape))
        if not math.isfinite(mean):
            raise WorkError(f"the loss is {mean}: training stops; {self._last()}")
        return mean

    def _last(self) -> str:
        networks = sorted(self.folder.glob("network-*.safetensors"))
        good = networks[-1] if networks else "not there yet"
        return f"the last good snapshot is {good}; try a lower learning rate in another folder"

    def _write(self, state: State) -> None:
        """Everything for people first, the state last: it is what makes a snapshot count."""
        name = f"{state.images_seen:09d}"
        provenance = {
            **plain(self.recipe),
            **self.identity,
            "dataset": self.dataset.name,
            "images_seen": state.images_seen,
            "seconds": round(state.seconds),
            "loss": state.curve[-1][1],
            "torch": torch.__version__,
        }
        checkpoint.save(state.average, self.folder / f"network-{name}.safetensors", provenance)
        write_samples(self.folder / f"samples-{name}.png", state.average)
        write_curve(self.folder / "loss", state.curve)
        write_state(
            self.folder / STATE,
            {
                "identity": json.dumps(self.identity),
                "network": state.network.state_dict(),
                "average": state.average.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "images_seen": state.images_seen,
                "seconds": state.seconds,
                "curve": state.curve,
            },
        )

    def _read(self, state: State) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        saved = read_state(path, self.device)
        before, now = json.loads(saved.get("identity", "{}")), self.identity
        if changed := [name for name in now if before.get(name) != now[name]]:
            shared = "piece" in changed and "piece" in before
            piece = f"--piece {before['piece']} among it, " if shared else ""
            raise UsageError(
                f"{path} belongs to a run with other {', '.join(changed)}: "
                f"give what that run was given, {piece}or another folder"
            )
        state.network.load_state_dict(saved["network"])
        state.average.load_state_dict(saved["average"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.images_seen, state.seconds = saved["images_seen"], saved["seconds"]
        state.curve = saved["curve"]


@contextmanager
def _processes(device: torch.device) -> Iterator[None]:
    """The process group of `torchrun`, where there is more than one process; all end together.

    DDP keeps gloo's threads alive. One that still has to free a tensor of the last reduction needs
    Python for it, and aborts a process that is ending: waiting for the others leaves it the time.
    """
    if world_size() == 1:
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def _bar(recipe: Recipe, seen: int) -> "tqdm[Any]":
    steps = -(-recipe.duration // recipe.batch)
    silent = rank() > 0
    return tqdm(total=steps * recipe.batch, initial=seen, unit="img", disable=silent)


def _passed(interval: int, images_seen: int, batch: int) -> bool:
    """Whether the last batch reached a multiple of the interval."""
    return images_seen // interval > (images_seen - batch) // interval


@torch.no_grad()
def write_samples(path: Path, network: Preconditioned) -> None:
    """A grid of what the network makes of the latents of seeds 0 to 63, as PNG."""
    device = next(network.parameters()).device
    seeds = Seeds.of(range(SAMPLES), device)
    side = network.img_resolution
    latents = seeds.latents((network.img_channels, side, side))
    denoise = network.bind(seeds.labels(network.label_dim)) if network.label_dim else network
    sigmas = sigma_grid(STEPS, max(0.002, network.sigma_min), min(80, network.sigma_max))
    *_, last = heun(denoise, latents.double() * sigmas[0].to(device), sigmas.to(device))
    zoom = -(-THUMBNAIL // side)
    pixels = to_uint8(last.x).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    pixels = grid(F.pad(pixels, [GAP] * 4, value=GREY).cpu(), COLUMNS)
    save_png(path, pixels)


def write_curve(stem: Path, curve: list[tuple[int, float]]) -> None:
    """The loss curve as `<stem>.csv` and `<stem>.png`."""
    rows = "".join(f"{images},{loss!r}\n" for images, loss in curve)
    write_text(stem.with_suffix(".csv"), "images,loss\n" + rows)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True))
    axes.set(xlabel="images seen", ylabel="loss per pixel", yscale="log")
    with replacing(stem.with_suffix(".png")) as beside:
        figure.savefig(beside, dpi=100)

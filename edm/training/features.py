"""Training of the classifier whose features a Frechet distance of our own is taken on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import trange

from edm.evaluation.classifier import Classifier, Options
from edm.training.state import State, mixed
from linear_structure.system.errors import UsageError, stoppable
from linear_structure.system.files import alone_beside, digest_of_tensor
from linear_structure.system.options import option, plain


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is made and trained: SGD with momentum in one cycle (Smith 2018).

    Attributes:
        knows, widths, blocks: of the network (`Options`).
        shift: images move by up to so many pixels either way.
        mirror: half of the images are seen in a mirror.
        held_out: share of the images kept for measuring, where there is no other test set.
    """

    knows: str
    widths: tuple[int, ...]
    blocks: int
    epochs: int = option(low=1)
    batch: int
    shift: int
    mirror: bool
    held_out: float = 0.2
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    seed: int = option(0, high=2**32 - 1)


RECIPES = {
    "digits": Recipe(
        knows="digits", widths=(32, 64), blocks=1, epochs=10, batch=64, shift=1, mirror=False
    ),
    "fashion": Recipe(
        knows="fashion",
        widths=(16, 32, 64, 128),
        blocks=1,
        epochs=5,
        batch=64,
        shift=1,
        mirror=True,
    ),
    "cifar10": Recipe(
        knows="cifar", widths=(16, 32, 64, 128), blocks=1, epochs=10, batch=64, shift=2, mirror=True
    ),
}


@dataclass(frozen=True)
class Training:
    """Images (n, C, H, W) uint8 with classes (n,), and how a classifier learns them.

    Attributes:
        unfinished: where the state is kept after each epoch, and where it is stopped.
    """

    recipe: Recipe
    images: Tensor
    labels: Tensor
    device: torch.device
    unfinished: Path

    def run(self) -> Classifier:
        """Train from where it stopped, or from the start.

        SIGINT and SIGTERM take effect after the step that they come in, when its state is kept. Of
        several commands with one place for it, each waits for the one before.

        Raises:
            UsageError: the unfinished training is another one, or there are too few images.
        """
        digests = {"images": digest_of_tensor(self.images), "labels": digest_of_tensor(self.labels)}
        state, identity = self._start(), {**plain(self.recipe), **digests}
        with alone_beside(self.unfinished, f"keeps its training in {self.unfinished}"):
            state.read(self.unfinished, identity)
            self._train(state, identity)
        return state.network.eval()

    def _train(self, state: State[Classifier], identity: Mapping[str, Any]) -> None:
        count = len(self.images) // self.recipe.batch * self.recipe.batch  # in an epoch
        finished = state.images_seen // count
        bar = trange(self.recipe.epochs, initial=finished, unit="epoch")
        with stoppable() as stopped, bar:
            for epoch in range(finished, self.recipe.epochs):
                for loss in self._epoch(state, epoch):
                    bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
                    if stopped():
                        break
                state.write(self.unfinished, identity)
                if stopped():
                    break
                bar.update()

    def _start(self) -> State[Classifier]:
        recipe = self.recipe
        if len(self.images) < recipe.batch:
            raise UsageError(f"{len(self.images)} images are less than a batch of {recipe.batch}")
        torch.manual_seed(recipe.seed)
        options = Options(
            knows=recipe.knows,
            channels=self.images.shape[1],
            classes=int(self.labels.max()) + 1,
            widths=recipe.widths,
            blocks=recipe.blocks,
        )
        network = Classifier(options).to(self.device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        return State(network.train(), network, optimizer)

    def _epoch(self, state: State[Classifier], epoch: int) -> Iterator[Tensor]:
        """The rest of a pass in whole batches: yield after each step its loss, ().

        All randomness follows from the number of the pass: of the steps before, it is drawn again.
        """
        recipe, steps = self.recipe, len(self.images) // self.recipe.batch
        total, done = recipe.epochs * steps, state.images_seen // recipe.batch
        cycle = OneCycleLR(state.optimizer, recipe.learning_rate, total, last_epoch=done - 1)
        torch.manual_seed(mixed(recipe.seed, epoch))
        batches = torch.randperm(len(self.images)).split(recipe.batch)[:steps]
        for step, index in enumerate(batches, epoch * steps):
            images = _altered(self.images[index], recipe.shift, recipe.mirror)
            if step < done:
                continue
            labels = self.labels[index].to(self.device)
            smoothing = recipe.label_smoothing
            loss = F.cross_entropy(state.network.logits(images), labels, label_smoothing=smoothing)
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            cycle.step()
            state.images_seen += recipe.batch
            yield loss.detach()


def _altered(images: Tensor, shift: int, mirror: bool) -> Tensor:
    """Each image (n, C, H, W) moved at random, zeros coming in, and perhaps mirrored."""
    n, _, height, width = images.shape
    padded = F.pad(images, [shift] * 4)
    rows = torch.randint(2 * shift + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * shift + 1, (n, 1)) + torch.arange(width)
    if mirror:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    which = torch.arange(n)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and indices to measure on, ascending: a random share of all."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = round(count * share)
    return order[kept:].sort().values, order[:kept].sort().values

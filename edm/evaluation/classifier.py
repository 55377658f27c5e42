"""A small classifier whose penultimate layer gives features for a Frechet distance of our own.

A residual network (He et al. 2016): a 3 x 3 stem, then for each width a stage of basic blocks, the
first of which halves the resolution where the width changes, and the mean over pixels: these
are the features. A linear layer on them tells the classes in training. The distance on such
features is named after what the network knows, "FD-digits": it is not comparable with FID.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.models.resnet import BasicBlock
from tqdm import trange

from edm.training.state import mixed, read_state, write_state
from linear_structure.images import from_uint8
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, digest_of_state, digest_of_tensor, replacing
from linear_structure.system.options import option, parse, plain


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a classifier is made of.

    Attributes:
        knows: what it was trained on, the last part of its distance's name.
        widths: channels of each stage; the last is the number of features.
        blocks: in each stage.
    """

    knows: str
    channels: int = option(low=1, high=4096)
    classes: int = option(low=2, high=65536)
    widths: tuple[int, ...] = option((32, 64), low=1, high=4096)
    blocks: int = option(1, low=1, high=64)

    def __post_init__(self) -> None:
        if not self.widths:
            raise UsageError("option 'widths' is empty: expected a width for each stage")


class Classifier(nn.Module):
    """Features (n, dim) float32 of uint8 images (n, C, H, W); `edm.evaluation.features.Features`.

    Attributes:
        batch: images that go through the network at once.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options, self.batch = options, 512
        first = options.widths[0]
        stem = nn.Conv2d(options.channels, first, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(first), nn.ReLU())
        stages = [_stage(first, first, options.blocks)]
        stages += [_stage(*pair, options.blocks) for pair in pairwise(options.widths)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(self.dim, options.classes)

    @property
    def name(self) -> str:
        return f"classifier-{self.options.knows}"

    @property
    def distance_name(self) -> str:
        return f"FD-{self.options.knows}"

    @property
    def dim(self) -> int:
        return self.options.widths[-1]

    @property
    def digest(self) -> str:
        """SHA-256 of options and weights, whatever file held them."""
        return digest_of_state(plain(self.options), self.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Features; an image's do not depend on the others in evaluation mode.

        Raises:
            ValueError: the images are not uint8, or have another number of channels.
        """
        if images.dtype != torch.uint8 or images.shape[1] != self.options.channels:
            raise ValueError(
                f"images are {images.dtype} with {images.shape[1]} channels: "
                f"expected torch.uint8 with {self.options.channels}"
            )
        device = self.head.weight.device
        parts = [self._pooled(part.to(device)) for part in images.split(self.batch)]
        return torch.cat(parts) if parts else torch.zeros(0, self.dim, device=device)

    def logits(self, images: Tensor) -> Tensor:
        """Scores (n, classes) of uint8 images (n, C, H, W)."""
        return self.head(self(images))

    def _pooled(self, images: Tensor) -> Tensor:
        x = from_uint8(images).contiguous(memory_format=torch.channels_last)
        return self.stages(self.stem(x)).mean((2, 3))


def _stage(before: int, width: int, blocks: int) -> nn.Sequential:
    """Blocks of one width; the first halves the resolution where the width changes."""
    stride, shortcut = 1, None
    if before != width:
        stride = 2
        projection = nn.Conv2d(before, width, 1, stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
    first = BasicBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


def save(network: Classifier, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a classifier as safetensors, whole or not at all, with its options in the metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    texts = {"classifier": plain(network.options), "provenance": dict(provenance)}
    metadata = {name: json.dumps(value) for name, value in texts.items()}
    with replacing(path) as beside:
        beside.write_bytes(serialize(tensors, metadata))


def load(path: Path) -> Classifier:
    """A classifier ready to give features: on the CPU, evaluation mode, no gradients.

    Raises:
        UsageError: the file is damaged or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads((file.metadata() or {})["classifier"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        wanted = parse(Options, options, "the classifier")
        with torch.device("meta"):  # nothing is allocated before the file is known to hold it
            shapes = {name: t.shape for name, t in Classifier(wanted).state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("its tensors are not those of its options")
        network = Classifier(wanted)
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        raise UsageError(f"{path} is not a feature network of this project: {error}") from error
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


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
    "cifar10": Recipe(
        knows="cifar", widths=(16, 32, 64, 128), blocks=1, epochs=10, batch=64, shift=2, mirror=True
    ),
}


class _Learner(NamedTuple):
    """What a training keeps between two epochs."""

    network: Classifier
    optimizer: torch.optim.Optimizer
    cycle: OneCycleLR


@dataclass(frozen=True)
class Training:
    """Images (n, C, H, W) uint8 with classes (n,), and how a classifier learns them.

    Attributes:
        unfinished: where the state after each epoch is kept; removed at the end.
    """

    recipe: Recipe
    images: Tensor
    labels: Tensor
    device: torch.device
    unfinished: Path

    def run(self) -> Classifier:
        """Train from the last finished epoch, or from the start.

        Raises:
            UsageError: the unfinished training is another one, or there are too few images.
        """
        learner = self._learner()
        with trange(self.recipe.epochs, initial=self._resume(learner), unit="epoch") as bar:
            for epoch in range(int(bar.n), self.recipe.epochs):
                loss = self._epoch(learner, epoch)
                bar.set_postfix(loss=f"{loss:.4f}")
                self._keep(learner, epoch + 1)
                bar.update()
        return learner.network.eval()

    def _learner(self) -> "_Learner":
        recipe, steps = self.recipe, len(self.images) // self.recipe.batch
        if not steps:
            raise UsageError(f"{len(self.images)} images are less than a batch of {recipe.batch}")
        torch.manual_seed(recipe.seed)
        network = Classifier(self._options()).to(self.device)
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        cycle = OneCycleLR(optimizer, recipe.learning_rate, recipe.epochs * steps)
        return _Learner(network.to(memory_format=torch.channels_last), optimizer, cycle)

    def _epoch(self, learner: "_Learner", epoch: int) -> float:
        """One pass in whole batches, all of whose randomness follows from its number."""
        recipe, network = self.recipe, learner.network.train()
        torch.manual_seed(mixed(recipe.seed, epoch))
        order = torch.randperm(len(self.images)).split(recipe.batch)
        for index in order[: len(self.images) // recipe.batch]:
            images = _altered(self.images[index], recipe.shift, recipe.mirror)
            labels = self.labels[index].to(self.device)
            smoothing = recipe.label_smoothing
            loss = F.cross_entropy(network.logits(images), labels, label_smoothing=smoothing)
            learner.optimizer.zero_grad()
            loss.backward()
            learner.optimizer.step()
            learner.cycle.step()
        return float(loss.detach())

    def _options(self) -> Options:
        return Options(
            knows=self.recipe.knows,
            channels=self.images.shape[1],
            classes=int(self.labels.max()) + 1,
            widths=self.recipe.widths,
            blocks=self.recipe.blocks,
        )

    def _identity(self) -> str:
        data = {"images": self.images, "labels": self.labels}
        digests = {name: digest_of_tensor(values) for name, values in data.items()}
        return digest_of({**asdict(self.recipe), **digests})

    def _keep(self, learner: "_Learner", epochs: int) -> None:
        parts = {name: part.state_dict() for name, part in learner._asdict().items()}
        state = {**parts, "epochs": epochs, "identity": self._identity()}
        write_state(self.unfinished, state)

    def _resume(self, learner: "_Learner") -> int:
        """Put an unfinished training back in place; returns its finished epochs."""
        if not self.unfinished.exists():
            return 0
        saved = read_state(self.unfinished, self.device)
        if saved.get("identity") != self._identity():
            raise UsageError(f"{self.unfinished} is of another training: remove it first")
        for name, part in learner._asdict().items():
            part.load_state_dict(saved[name])
        return int(saved["epochs"])


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


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images (n, C, H, W) uint8 whose class (n,) the network tells."""
    parts = zip(images.split(network.batch), labels.split(network.batch), strict=True)
    right = sum(int((network.logits(x).argmax(1).cpu() == y).sum()) for x, y in parts)
    return right / len(images)


def held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and indices to measure on, ascending: a random share of all."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = round(count * share)
    return order[kept:].sort().values, order[:kept].sort().values

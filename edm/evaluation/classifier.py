"""A small classifier whose penultimate layer gives features for a Frechet distance of our own.

A residual network (He et al. 2016): a 3 x 3 stem, then for each width a stage of basic blocks, the
first of which halves the resolution where the width changes, and the mean over pixels: these
are the features. A linear layer on them tells the classes in training. The distance on such
features is named after what the network knows, "FD-digits": it is not comparable with FID.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edm.checkpoints import checkpoint
from linear_structure.images import from_uint8
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_state
from linear_structure.system.options import option, parse, plain

KEY = "classifier"  # of the options in a file's metadata
Shortcut = nn.Module | None
SURE = 0.8  # the probability of a class above which an image counts as clear


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

    batch = 512

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.name, self.distance_name = f"classifier-{options.knows}", f"FD-{options.knows}"
        first, self.dim = options.widths[0], options.widths[-1]
        stem = nn.Conv2d(options.channels, first, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(first), nn.ReLU())
        stages = [_stage(first, first, options.blocks)]
        stages += [_stage(*pair, options.blocks) for pair in pairwise(options.widths)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(self.dim, options.classes)

    @property
    def config(self) -> dict[str, Any]:
        """All options, as JSON values."""
        return plain(self.options)

    @property
    def digest(self) -> str:
        """SHA-256 of options and weights, whatever file held them."""
        return digest_of_state(self.config, self.state_dict())

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
        parts = []
        for part in images.split(self.batch):
            x = from_uint8(part.to(device)).contiguous(memory_format=torch.channels_last)
            parts.append(self.stages(self.stem(x)).mean((2, 3)))
        return torch.cat(parts)

    def logits(self, images: Tensor) -> Tensor:
        """Scores (n, classes) of uint8 images (n, C, H, W)."""
        return self.head(self(images))


def _stage(before: int, width: int, blocks: int) -> nn.Sequential:
    """Blocks of one width; the first halves the resolution where the width changes."""
    stride, shortcut = 1, None
    if before != width:
        stride = 2
        projection = nn.Conv2d(before, width, 1, stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
    first = BasicBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


class BasicBlock(nn.Module):
    """`relu(s(x) + f(x))`, f of two 3 x 3 convolutions, s a shortcut or x itself (He et al. 2016).

    Its tensors are named, drawn and multiplied as torchvision's, whose import takes over a second.
    """

    def __init__(self, before: int, width: int, stride: int = 1, shortcut: Shortcut = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, H, W) -> (n, width, H / stride, W / stride)."""
        found = self.bn1(self.conv1(x)).relu_()
        found = self.bn2(self.conv2(found))
        found += x if self.downsample is None else self.downsample(x)
        return found.relu_()


def save(network: Classifier, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write a classifier as safetensors, whole or not at all, with its options in the metadata."""
    checkpoint.save(network, path, provenance, KEY)


def load(path: str | Path) -> Classifier:
    """A classifier ready to give features: on the CPU, evaluation mode, no gradients.

    Raises:
        UsageError: the file is damaged or holds something else.
    """
    try:
        network = checkpoint.load_module(
            path, lambda config: Classifier(parse(Options, config, "the classifier")), key=KEY
        )
    except UsageError as error:
        raise UsageError(f"{error}; it is not a feature network of this project") from error
    return network.to(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images (n, C, H, W) uint8 whose class (n,) the network tells."""
    parts = zip(images.split(network.batch), labels.split(network.batch), strict=True)
    right = sum(int((network.logits(x).argmax(1).cpu() == y).sum()) for x, y in parts)
    return right / len(images)


class Verdict(NamedTuple):
    """What a classifier says of images.

    Attributes:
        sure: share of them with a class of probability above `SURE`.
        shares: (classes,) float64, of how many each class is the likeliest; they sum to 1.
    """

    sure: float
    shares: Tensor


@torch.no_grad()
def judge(network: Classifier, images: Tensor) -> Verdict:
    """How clearly, and as what, the network sees images (n, C, H, W) uint8, n of 1 or more."""
    parts = [network.logits(part).softmax(1).cpu() for part in images.split(network.batch)]
    likeliest = torch.cat(parts).max(1)
    counts = likeliest.indices.bincount(minlength=network.options.classes).double()
    return Verdict(float((likeliest.values > SURE).double().mean()), counts / len(images))

"""How a pair is made and trained: recipes, and images whose colours are drawn for each batch.

A pair is trained as a network is (`edm.training`): a recipe says what is made, and which loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from edm.representation.objective import KINDS, WEIGHT, Pair, objective
from edm.training.data import Drawn, Piece, Source, batches, moved
from edm.training.recipes import Objective, Recipe
from edm.training.state import mixed
from linear_structure.data.datasets import Dataset
from linear_structure.data.factors import drawn_colours, in_colours
from linear_structure.images import from_uint8
from linear_structure.system.files import digest_of_tensor
from linear_structure.system.options import choice, option

COLOURS = 3  # a stream of random numbers, beside those of `edm.training.data`
SMALL = 16  # pixels that an image is wide at most, for an MLP


@dataclass(frozen=True, kw_only=True)
class PairRecipe(Recipe):
    """How a pair is made and trained; the loss is taken at log-uniform noise levels.

    Its denoiser is as the recipe says of a network; its encoder is of the same architecture.
    """

    dim: int = option(8, 1, 65536, "numbers in a code")
    kind: str = choice(*KINDS, meaning="of codes: drl, or vdrl, which are noised in training")
    encoder_channels: int = option(128, 4, 4096, "as model_channels, of the encoder")
    encoder_blocks: int = option(2, 1, 64, "as num_blocks, of the encoder")
    penalty: float = option(WEIGHT, meaning="weight of the penalty of codes")
    sigma_min: float = option(0.02, 1e-6, meaning="lowest noise level of training")
    sigma_max: float = option(20.0, 1e-6, meaning="highest noise level of training")
    preconditioning: str = choice("edm")
    loss: str = choice("log-uniform")
    augment: float = option(0.0, 0, 0)
    conditional: bool = option(False, 0, 0)

    def network(self, dataset: Dataset | Drawn) -> dict[str, Any]:
        """The denoiser's configuration; raises as that of `Recipe`."""
        levels = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return {**super().network(dataset), **levels, "label_dim": self.dim}

    def encoder(self, dataset: Dataset | Drawn) -> dict[str, Any]:
        """The encoder's configuration; raises as that of `Recipe`."""
        own = replace(self, model_channels=self.encoder_channels, num_blocks=self.encoder_blocks)
        config = Recipe.network(own, dataset)
        kept = config.keys() - {"precondition", "sigma_data"}
        numbers = self.dim * (2 if self.kind == "vdrl" else 1)
        return {**{name: config[name] for name in kept}, "outputs": numbers}

    def build(self, dataset: Dataset | Drawn) -> Pair:
        """The pair with initial weights from the global generator; raises as `network`."""
        pair = Pair.of(
            {
                "kind": self.kind,
                "encoder": self.encoder(dataset),
                "network": self.network(dataset),
            }
        )
        if self.precision != "float32":
            pair.network.compute_dtype = getattr(torch, self.precision)
        return pair

    def objective(self, network: Any) -> Objective:
        """What training makes small, of a `Pair`."""
        return partial(objective, self.criterion(network.network), weight=self.penalty)


MLP = PairRecipe(
    architecture="mlp",
    model_channels=192,
    channel_mult=(),
    num_blocks=3,
    attn_resolutions=(),
    dropout=0.0,
    batch=128,
    learning_rate=1e-3,
    ramp=10_000,
    ema_halflife=20_000,
    duration=320_000,  # 2,500 steps
    tick=16_000,
    snapshot=32_000,
)
UNET = PairRecipe(
    model_channels=64,
    channel_mult=(1, 2, 2),
    num_blocks=2,
    attn_resolutions=(16,),
    dropout=0.1,
    encoder_channels=64,
    batch=128,
    piece=32,
    ramp=100_000,
    ema_halflife=100_000,
    duration=10_000_000,
    tick=1280,
    snapshot=6400,
)
RECIPES = {"mlp": MLP, "unet": UNET}


@dataclass(frozen=True)
class Coloured(Source):
    """Grey images in colours that are drawn anew whenever an image is seen.

    Attributes:
        name: of the grey images.
        grey: uint8 (n, 1, H, W).
        device: that pieces go to.
    """

    label_dim: ClassVar[int] = 0

    name: str
    grey: Tensor
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, *self.grey.shape[2:])

    @property
    def identity(self) -> dict[str, str]:
        return {"images": digest_of_tensor(self.grey), "colours": "drawn anew"}

    def order(self, batch: int, seed: int, position: int) -> Iterator[Tensor]:
        return batches(len(self.grey), batch, seed, position)

    def piece(self, seed: int, index: Tensor) -> Piece:
        """The images at `index` (b,), in colours that follow from the seed."""
        colours = drawn_colours(len(index), Generator().manual_seed(mixed(seed, COLOURS)))
        images = from_uint8(in_colours(self.grey[index], colours))
        images = images.contiguous(memory_format=torch.channels_last)
        return Piece(seed, moved(images, self.device), None)


def recipe_for(shape: tuple[int, int, int], changes: Mapping[str, Any]) -> PairRecipe:
    """The recipe that suits images (C, H, W), with some of its values changed."""
    return replace(RECIPES["mlp" if max(shape[1:]) <= SMALL else "unet"], **changes)

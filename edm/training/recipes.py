"""Everything that decides the numbers of a training run, as one frozen value; three of them."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edm.training.augment import LABELS
from edm.training.loss import EDM, VE, VP, Loss
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": {"model_type": "SongUNet"},
    "ncsnpp": {
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": (1, 3, 3, 1),
    },
    "adm": {"model_type": "DhariwalUNet"},
}
PRECONDITIONERS = {
    "edm": "EDMPrecond",
    "vp": "VPPrecond",
    "ve": "VEPrecond",
    "iddpm": "iDDPMPrecond",
}


def _number(default: Any, meaning: str, low: float = 0, high: float = math.inf) -> Any:
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


def _word(meaning: str, *words: str) -> Any:
    return field(default=words[0], metadata={"meaning": meaning, "words": words})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made and trained; amounts of training are counted in images.

    The defaults are the published CIFAR-10 recipe (Karras et al. 2022, appendix F.2).
    `linear_structure.system.options.parse` makes one from plain values and checks them.
    """

    architecture: str = _word("kind of network", *ARCHITECTURES)
    preconditioning: str = _word("of the network, and its loss", *PRECONDITIONERS)
    conditional: bool = _number(False, "tell the network the class of each image", high=1)
    model_channels: int = _number(128, "channels that channel_mult multiplies", 4, 4096)
    channel_mult: tuple[int, ...] = _number((2, 2, 2), "width of each resolution", 1, 64)
    num_blocks: int = _number(4, "residual blocks at each resolution", 1, 64)
    attn_resolutions: tuple[int, ...] = _number((16,), "resolutions with attention")
    dropout: float = _number(0.13, "probability of dropping a feature", high=1)
    augment: float = _number(0.12, "probability of each geometric augmentation", high=1)
    sigma_data: float = _number(0.5, "standard deviation of the pixels, in [-1, 1]", 1e-6)
    sigma_mean: float = _number(-1.2, "mean of ln sigma in training", -100, 100)
    sigma_std: float = _number(1.2, "standard deviation of ln sigma in training")
    log_uniform: float = _number(0.0, "share of sigmas log-uniform in [0.002, 80]", high=1)
    batch: int = _number(512, "images in a step", 1)
    piece: int = _number(0, "images in a pass; 0: the batch shared evenly by the processes")
    learning_rate: float = _number(1e-3, "of Adam")
    ramp: int = _number(10_000_000, "images over which the learning rate rises from 0")
    ema_halflife: int = _number(500_000, "images in which a weight's part in the average halves")
    ema_ramp: float = _number(0.05, "the half-life is at most this share of images seen", high=1)
    precision: str = _word("of the layers; weights stay float32", "float32", "bfloat16")
    seed: int = _number(0, "of weights, order, sigmas and noise", high=2**32 - 1)
    duration: int = _number(200_000_000, "images to train on", 1)
    tick: int = _number(50_000, "images between two looks at the loss", 1)
    snapshot: int = _number(2_500_000, "images between two snapshots", 1)

    def loss(self) -> Loss:
        """The loss that belongs to the preconditioning; VP and iDDPM both predict the noise."""
        losses: dict[str, Loss] = {
            "edm": EDM(self.sigma_mean, self.sigma_std, self.sigma_data, self.log_uniform),
            "vp": VP(),
            "ve": VE(),
            "iddpm": VP(),
        }
        return losses[self.preconditioning]

    def network(self, dataset: Dataset) -> dict[str, Any]:
        """The network's configuration, for `edm.precondition.build`.

        Raises:
            UsageError: the dataset lacks the labels, or has not the shape, that this recipe needs.
        """
        channels, height, width = dataset.shape
        if height != width:
            raise UsageError(f"{dataset.name} has images of {height} x {width}: expected squares")
        if self.conditional and not dataset.label_count:
            raise UsageError(f"{dataset.name} has no labels, which a conditional network needs")
        sigma_data = {"sigma_data": self.sigma_data} if self.preconditioning == "edm" else {}
        return {
            "precondition": PRECONDITIONERS[self.preconditioning],
            **ARCHITECTURES[self.architecture],
            "img_resolution": height,
            "img_channels": channels,
            "label_dim": dataset.label_count if self.conditional else 0,
            "augment_dim": LABELS if self.augment else 0,
            "model_channels": self.model_channels,
            "channel_mult": self.channel_mult,
            "num_blocks": self.num_blocks,
            "attn_resolutions": self.attn_resolutions,
            "dropout": self.dropout,
            **sigma_data,
        }

    def shared_by(self, processes: int) -> "Recipe":
        """This recipe with its piece settled for a number of processes.

        Raises:
            UsageError: the batch cannot be cut into equal pieces, as many for each process.
        """
        piece = self.piece or self.batch // processes
        if not piece or self.batch % (piece * processes):
            raise UsageError(
                f"a batch of {self.batch} in pieces of {piece} cannot be shared by {processes} "
                "process(es): batch must be a multiple of piece times processes"
            )
        return replace(self, piece=piece)


LAPTOP = Recipe(
    model_channels=16,
    channel_mult=(1, 2, 3),
    num_blocks=1,
    attn_resolutions=(8,),
    dropout=0.0,
    augment=0.0,
    log_uniform=0.15,
    batch=32,
    piece=16,
    learning_rate=1.5e-3,
    ramp=10_000,
    ema_halflife=50_000,
    ema_ramp=0.1,
    duration=250_000,
    tick=10_000,
    snapshot=10_000,  # two or three minutes: so much a stop loses at most
)
DIGITS = replace(
    LAPTOP,
    model_channels=24,
    channel_mult=(1, 1),
    attn_resolutions=(),
    sigma_data=0.7518,
    batch=64,
    piece=0,
    learning_rate=4e-3,
    ema_ramp=0.05,
    duration=600_000,
    snapshot=100_000,
)
RECIPES = {"published": Recipe(), "laptop": LAPTOP, "digits": DIGITS}


def table() -> str:
    """All recipes side by side, as Markdown."""
    rows = [["value", *RECIPES, "meaning"], ["---"] * (len(RECIPES) + 2)]
    for each in fields(Recipe):
        values = [_cell(getattr(recipe, each.name)) for recipe in RECIPES.values()]
        rows.append([each.name, *values, each.metadata["meaning"]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

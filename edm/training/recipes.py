"""Everything that decides the numbers of a training run, as one frozen value; four of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm import precondition
from edm.network import Network
from edm.training.augment import LABELS, Augment
from edm.training.data import Drawn, Points
from edm.training.loss import (
    EDM,
    SIGMA_MAX,
    SIGMA_MIN,
    VE,
    VP,
    Levels,
    LogUniform,
    Loss,
    denoising_loss,
)
from linear_structure.data.datasets import Dataset
from linear_structure.sampling.processes import ddpm_grid
from linear_structure.sampling.scales import Scales
from linear_structure.system.errors import UsageError
from linear_structure.system.options import choice, option, plain, word
from linear_structure.system.store import read_kept

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
    "mlp": {"model_type": "MLP"},
}
PRECONDITIONERS = {
    name.removesuffix("Precond").lower(): name for name in precondition.PRECONDITIONERS
}
DDPM, DDPM_STEPS = "ddpm", 1000
MOST_LEVELS = 65536
LATER = {"loss": "own", "levels": DDPM}  # values that trainings of before do not state
COPIED = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")

Objective = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Network, images (b, C, H, W) and labels -> squared errors (b, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made and trained; amounts of training are counted in images.

    The defaults are the published CIFAR-10 recipe (Karras et al. 2022, appendix F.2).
    `linear_structure.system.options.parse` makes one from plain values and checks them.
    """

    architecture: str = choice(
        *ARCHITECTURES, meaning="kind; an mlp is model_channels wide and num_blocks deep"
    )
    preconditioning: str = choice(*PRECONDITIONERS, meaning="of the network")
    loss: str = choice(
        "own", "levels", "log-uniform", meaning="the preconditioning's own, or at other sigmas"
    )
    levels: str = field(
        default=DDPM,
        metadata={
            "parse": word,
            "metavar": "FILE",
            "meaning": "of --loss levels: ddpm, or a file that noise_scales.py wrote",
        },
    )
    conditional: bool = option(False, 0, 1, "tell the network the class of each image")
    model_channels: int = option(128, 4, 4096, "channels that channel_mult multiplies")
    channel_mult: tuple[int, ...] = option((2, 2, 2), 1, 64, "width of each resolution")
    num_blocks: int = option(4, 1, 64, "residual blocks at each resolution")
    attn_resolutions: tuple[int, ...] = option((16,), meaning="resolutions with attention")
    dropout: float = option(0.13, 0, 1, "probability of dropping a feature")
    augment: float = option(0.12, 0, 1, "probability of each geometric augmentation")
    sigma_data: float = option(0.5, 1e-6, meaning="standard deviation of the pixels, in [-1, 1]")
    sigma_mean: float = option(-1.2, -100, 100, "mean of ln sigma in training")
    sigma_std: float = option(1.2, meaning="standard deviation of ln sigma in training")
    log_uniform: float = option(0.0, 0, 1, "share of sigmas log-uniform in [0.002, 80]")
    batch: int = option(512, 1, meaning="images in a step")
    piece: int = option(0, meaning="images in a pass; 0: the batch shared evenly by the processes")
    learning_rate: float = option(1e-3, meaning="of Adam")
    ramp: int = option(10_000_000, meaning="images over which the learning rate rises from 0")
    ema_halflife: int = option(
        500_000, meaning="images in which a weight's part in the average halves"
    )
    ema_ramp: float = option(0.05, 0, 1, "the half-life is at most this share of images seen")
    precision: str = choice("float32", "bfloat16", meaning="of the layers; weights stay float32")
    compile: bool = option(False, 0, 1, "run the network through torch.compile")
    seed: int = option(0, 0, 2**32 - 1, "of weights, order, sigmas and noise")
    duration: int = option(200_000_000, 1, meaning="images to train on")
    tick: int = option(50_000, 1, meaning="images between two looks at the loss")
    snapshot: int = option(2_500_000, 1, meaning="images between two snapshots")

    def __post_init__(self) -> None:
        if self.levels != DDPM and self.loss != "levels":
            raise UsageError(
                f"option 'levels' is {self.levels!r}, of which the loss {self.loss!r} knows "
                "nothing: expected --loss levels beside it"
            )

    def criterion(self, network: Network) -> Loss:
        """Where the loss of a network is taken, within the noise levels that it was made for.

        Raises:
            UsageError: `levels` names no levels, or none in that range.
        """
        if self.loss == "own":
            return self._own()
        if self.loss == "levels":
            return Levels(self._levels()).within(network.sigma_min, network.sigma_max)
        high = network.sigma_max if math.isfinite(network.sigma_max) else SIGMA_MAX
        data = self.sigma_data if self.preconditioning == "edm" else math.inf
        return LogUniform(network.sigma_min or SIGMA_MIN, high, data)

    def _own(self) -> Loss:
        """The loss that belongs to the preconditioning; VP and iDDPM both predict the noise."""
        if self.preconditioning == "edm":
            return EDM(self.sigma_mean, self.sigma_std, self.sigma_data, self.log_uniform)
        return VE() if self.preconditioning in ("ve", "ncsn") else VP()

    def _levels(self) -> Tensor:
        """(L,) float64, descending."""
        if self.levels == DDPM:
            return ddpm_grid(DDPM_STEPS)[:-1]
        return read_scales(Path(self.levels)).grid()[:-1]

    def objective(self, network: Network) -> Objective:
        """What training makes small: the loss at augmented images; raises as `criterion`."""
        augment = Augment(self.augment) if self.augment else None
        return partial(denoising_loss, self.criterion(network), augment=augment)

    def identity(self) -> dict[str, Any]:
        """What a training is known by: all values, with those of a file in place of its path.

        What says no more than trainings of before, which did not know it, is left out.

        Raises:
            UsageError: the file of `levels` cannot be read.
        """
        values = plain(self)
        if self.levels != DDPM:
            values["levels"] = read_scales(Path(self.levels)).to_json()
        if self.loss == "levels":
            return values
        return {name: value for name, value in values.items() if LATER.get(name) != value}

    def build(self, dataset: Dataset | Drawn) -> nn.Module:
        """The network with initial weights from the global generator; raises as `network`."""
        network = precondition.build(self.network(dataset))
        if self.precision != "float32":
            network.compute_dtype = getattr(torch, self.precision)
        return network

    def network(self, dataset: Dataset | Drawn) -> dict[str, Any]:
        """The network's configuration, for `edm.precondition.build`.

        Raises:
            UsageError: the dataset lacks the labels, or has not the shape, that this recipe needs.
        """
        channels, height, width = dataset.shape
        if height != width:
            raise UsageError(f"{dataset.name} has images of {height} x {width}: expected squares")
        if isinstance(dataset, Points) and self.architecture != "mlp":
            raise UsageError(f"{dataset.name} are points in the plane: expected --architecture mlp")
        if self.conditional and not dataset.label_dim:
            raise UsageError(f"{dataset.name} has no labels, which a conditional network needs")
        sigma_data = {"sigma_data": self.sigma_data} if self.preconditioning == "edm" else {}
        return {
            "precondition": PRECONDITIONERS[self.preconditioning],
            **ARCHITECTURES[self.architecture],
            "img_resolution": height,
            "img_channels": channels,
            "label_dim": dataset.label_dim if self.conditional else 0,
            **self._layers(),
            **sigma_data,
        }

    def _layers(self) -> dict[str, Any]:
        """What the architecture is told beside the images' shape and classes."""
        if self.architecture != "mlp":
            copied = {name: getattr(self, name) for name in COPIED}
            return {"augment_dim": LABELS if self.augment else 0, **copied}
        if self.augment or self.dropout:
            raise UsageError(
                "an mlp knows neither augmentation nor dropout: give --augment 0 --dropout 0"
            )
        return {"width": self.model_channels, "depth": self.num_blocks}

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
PLANE = replace(
    LAPTOP,
    architecture="mlp",
    model_channels=64,
    channel_mult=(),
    num_blocks=3,
    attn_resolutions=(),
    sigma_data=1.6882,  # sqrt((3.26 + 2.44) / 2), of the mixture
    sigma_mean=0.0,  # as far above -1.2 as sigma_data is above 0.5
    batch=512,
    piece=0,
    learning_rate=4e-3,
    duration=1_280_000,
    tick=64_000,
    snapshot=256_000,
)
GPU = Recipe(  # half an hour on one card: 6.99 million parameters, 3.5 GFLOP a call
    model_channels=64,
    channel_mult=(1, 2, 2),
    num_blocks=2,
    dropout=0.1,
    ramp=100_000,
    ema_halflife=100_000,
    precision="bfloat16",
    compile=True,
    duration=10_000_000,
    snapshot=1_000_000,
)
RECIPES = {"published": Recipe(), "gpu": GPU, "laptop": LAPTOP, "digits": DIGITS, "plane": PLANE}


def read_scales(path: str | Path) -> Scales:
    """The noise scales in a file that `scripts/noise_scales.py` wrote.

    Raises:
        UsageError: it is none.
    """
    try:
        outputs = read_kept(Path(path))["outputs"]
        if not isinstance(outputs, dict):
            raise UsageError("it has no outputs")
        scales = Scales.from_json(outputs)
        if scales.levels > MOST_LEVELS:
            raise UsageError(f"{scales.levels} levels: expected at most {MOST_LEVELS}")
        scales.grid()
    except OSError as error:
        raise UsageError(f"{path} cannot be read as noise scales: {error.strerror}") from error
    except (UsageError, ValueError) as error:
        raise UsageError(f"{path} holds no noise scales ({error}): make it anew") from error
    return scales

"""Everything that decides the numbers of a training run, as one frozen value; three of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edm import precondition
from edm.training.augment import LABELS, Augment
from edm.training.loss import EDM, VE, VP, Loss, denoising_loss
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError
from linear_structure.system.options import choice, option

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
COPIED = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")

Objective = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Network, images (b, C, H, W) and labels -> squared errors (b, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made and trained; amounts of training are counted in images.

    The defaults are the published CIFAR-10 recipe (Karras et al. 2022, appendix F.2).
    `linear_structure.system.options.parse` makes one from plain values and checks them.
    """

    architecture: str = choice(*ARCHITECTURES, meaning="kind of network")
    preconditioning: str = choice(*PRECONDITIONERS, meaning="of the network, and its loss")
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
    seed: int = option(0, 0, 2**32 - 1, "of weights, order, sigmas and noise")
    duration: int = option(200_000_000, 1, meaning="images to train on")
    tick: int = option(50_000, 1, meaning="images between two looks at the loss")
    snapshot: int = option(2_500_000, 1, meaning="images between two snapshots")

    def loss(self) -> Loss:
        """The loss that belongs to the preconditioning; VP and iDDPM both predict the noise."""
        if self.preconditioning == "edm":
            return EDM(self.sigma_mean, self.sigma_std, self.sigma_data, self.log_uniform)
        return VE() if self.preconditioning == "ve" else VP()

    def objective(self) -> Objective:
        """What training makes small: the loss at augmented images."""
        augment = Augment(self.augment) if self.augment else None
        return partial(denoising_loss, self.loss(), augment=augment)

    def build(self, dataset: Dataset) -> nn.Module:
        """The network with initial weights from the global generator; raises as `network`."""
        network = precondition.build(self.network(dataset))
        if self.precision != "float32":
            network.compute_dtype = getattr(torch, self.precision)
        return network

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
            **{name: getattr(self, name) for name in COPIED},
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

"""Diffusion-based representation learning: an encoder and a denoiser that learn together.

    w(sigma) |D(x_0 + sigma n, sigma, z) - x_0|^2 + weight R(z),   z of E(x_0, sigma)

              z                                   R, of each image
    drl       E(x_0, sigma)                       sum |z_i|
    vdrl      mu + exp(v / 2) n, (mu, v) of E     KL(N(mu, exp v) || N(0, 1))

The encoder sees the clean image (Mittal et al. 2022, arXiv 2210.13774): z is whatever at this noise
level helps the denoiser most, and goes in where the class labels would. Zeros are not
"no code": training never sees them, and a denoiser that was trained without one does better.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edm.precondition import Preconditioned, build
from edm.representation.encoder import Encoder
from edm.training.loss import Loss, denoising_loss
from linear_structure.denoise import Denoiser, expand
from linear_structure.system.errors import UsageError

KINDS = ("drl", "vdrl")
WEIGHT = 1e-5


class Coded(NamedTuple):
    """Codes (B, d) as a denoiser gets them in training, and their penalty R (B,)."""

    code: Tensor
    penalty: Tensor


def absolute(z: Tensor) -> Tensor:
    """`sum |z_i|`: (B, d) -> (B,)."""
    return z.abs().sum(1)


def divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """`KL(N(mu, e^v) || N(0, 1)) = 1/2 sum (mu^2 + e^v - 1 - v)` in nats: (B, d) each -> (B,)."""
    return (mu**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2


class Pair(nn.Module):
    """An encoder, and the denoiser that is told its codes.

    Attributes:
        encoder: clean images and sigma -> (B, d), or (B, 2 d) for "vdrl".
        network: with label_dim d.
        kind: "drl" or "vdrl".
    """

    def __init__(self, encoder: nn.Module, network: Preconditioned, kind: str = "drl") -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
        self.encoder, self.network, self.kind = encoder, network, kind

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Pair":
        """A pair with initial weights, of what `config` gives.

        Raises:
            UsageError: either configuration is none, or they do not fit each other.
        """
        parts = ("encoder", "network")
        if config.keys() != {*parts, "kind"} or not all(
            isinstance(config[part], Mapping) for part in parts
        ):
            raise UsageError("it is not a pair: expected kind, encoder and network")
        encoder, network = Encoder.of(config["encoder"]), build(config["network"])
        pair = cls(encoder, network, config["kind"])
        _check_fit(encoder, network, pair.outputs)
        return pair

    @property
    def config(self) -> dict[str, Any]:
        """Kind and both configurations, as JSON values."""
        return {"kind": self.kind, "encoder": self.encoder.config, "network": self.network.config}

    @property
    def dim(self) -> int:
        """Numbers in a code."""
        return self.network.label_dim

    @property
    def outputs(self) -> int:
        """Numbers that its encoder must give."""
        return self.dim * (2 if self.kind == "vdrl" else 1)

    def code(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Codes (B, d) of clean images (B, C, H, W) at sigma, () or (B,); their mean for "vdrl"."""
        outputs = self.encoder(images, sigma)
        return outputs.chunk(2, dim=1)[0] if self.kind == "vdrl" else outputs

    def draw(self, images: Tensor, sigma: Tensor) -> Coded:
        """Codes to train with; those of "vdrl" from the global generator."""
        outputs = self.encoder(images, sigma)
        if self.kind == "drl":
            return Coded(outputs, absolute(outputs))
        mu, log_variance = outputs.chunk(2, dim=1)
        code = mu + (log_variance / 2).exp() * torch.randn_like(mu)
        return Coded(code, divergence(mu, log_variance))

    def bind(self, images: Tensor, sigma: Tensor) -> Denoiser:
        """The network told what these images (n, C, H, W) are at sigma: a denoiser of n images."""
        return self.network.bind(self.code(images, sigma))


def _check_fit(encoder: Encoder, network: Preconditioned, outputs: int) -> None:
    """UsageError unless the encoder gives so many numbers, of the network's images."""
    given, wanted = encoder.config, network.config
    images = ("img_channels", "img_resolution")
    found, size = ([each[name] for name in images] for each in (given, wanted))
    if not outputs or given["outputs"] != outputs or found != size:
        raise UsageError(
            f"an encoder that gives {given['outputs']} numbers of images of {found} (channels, "
            f"pixels) does not fit a network that takes {outputs} of images of {size}"
        )


def objective(
    loss: Loss, pair: Pair, images: Tensor, labels: Tensor | None = None, weight: float = WEIGHT
) -> Tensor:
    """The denoising loss with the encoder in the labels' place, and the penalty of its codes.

    Args:
        loss: noise levels and weight.
        images: clean, in [-1, 1]: (B, C, H, W).
        labels: classes, of which neither part is told anything.
        weight: of the penalty, beside an error that is summed over an image.

    Returns:
        (B, C, H, W), the penalty spread evenly: not reduced, as `denoising_loss`.
    """
    drawn: list[Coded] = []

    def encode(clean: Tensor, sigma: Tensor) -> Tensor:
        drawn.append(pair.draw(clean, sigma))
        return drawn[-1].code

    errors = denoising_loss(loss, pair.network, images, encode)
    return errors + expand(drawn[0].penalty, images) * (weight / images[0].numel())

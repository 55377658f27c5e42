"""Preconditioning: the denoiser that a network F makes (Karras et al. 2022, table 1).

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma))

| | c_skip | c_out | c_in | c_noise |
|---|---|---|---|---|
| EDM | d^2 / v | sigma d / sqrt(v) | 1 / sqrt(v) | ln(sigma) / 4 |
| VP | 1 | -sigma | 1 / sqrt(sigma^2 + 1) | (M - 1) t(sigma) |
| VE | 1 | sigma | 1 | ln(sigma / 2) |
| NCSN | 1 | sigma | 1 | 0 |
| iDDPM | 1 | -sigma | 1 / sqrt(sigma^2 + 1) | M - 1 - (index of the nearest u_j) |

with EDM's `d = sigma_data` and `v = sigma^2 + d^2`; VP's inverse `t(sigma)` and iDDPM's noise
levels u as in `linear_structure.sampling.processes`. All is computed in float32, as when the
networks were trained; F alone may run in a narrower type.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks import ADM, MLP, ADMOptions, DDPMpp, DDPMppOptions, MLPOptions
from linear_structure.denoise import Denoiser, expand
from linear_structure.sampling.processes import PublishedVP, iddpm_levels
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_state
from linear_structure.system.options import count, option, parse, plain
from linear_structure.system.precision import factors_in_float32

SMALL, LARGE = 1e-6, 1e6  # between them no square in float32 is 0 or infinite


class Coefficients(NamedTuple):
    """The four functions of sigma, each in sigma's shape."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every preconditioner is told, under the published names."""

    img_resolution: int = count()
    img_channels: int = count()
    label_dim: int = count(0, low=0)
    use_fp16: bool = option(False)


class Preconditioned(nn.Module):
    """A denoiser made of a network; a conditional one is first bound to its labels.

    Attributes:
        model: the network F.
        sigma_min, sigma_max: the range of noise levels that it was made for.
        compute_dtype: the type that F computes in, on any device. None, the default, is the
            published rule: float16 on CUDA if `use_fp16`, else float32.

    Faster with `network.to(memory_format=torch.channels_last)`, and with `network.compile()`.
    """

    options_type: ClassVar[type[Options]]
    default_model: ClassVar[str] = "SongUNet"
    outputs_per_channel: ClassVar[int] = 1

    options: Options
    sigma_min: float
    sigma_max: float
    compute_dtype: torch.dtype | None

    def __init__(self, options: Options, model: nn.Module) -> None:
        super().__init__()
        self.options, self.model, self.compute_dtype = options, model, None
        self.img_resolution, self.img_channels = options.img_resolution, options.img_channels
        self.label_dim = options.label_dim

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it makes."""
        return (self.img_channels, self.img_resolution, self.img_resolution)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of configuration and tensors, whatever file held them."""
        return digest_of_state(self.config, self.state_dict())

    @property
    def config(self) -> dict[str, Any]:
        """All options, defaults included, as JSON values: `build` makes the same network of it."""
        precondition = next(name for name, kind in PRECONDITIONERS.items() if type(self) is kind)
        model_type = next(name for name, each in MODELS.items() if isinstance(self.model, each[0]))
        return {
            "precondition": precondition,
            "model_type": model_type,
            **plain(self.model.options),
            **plain(self.options),
        }

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in and c_noise at float32 noise levels of any shape."""
        raise NotImplementedError

    def published_dtype(self, device: torch.device) -> torch.dtype:
        """The type that F computes in where `compute_dtype` names none."""
        half = self.options.use_fp16 and device.type == "cuda"
        return torch.float16 if half else torch.float32

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The noise level(s) nearest to sigma that the network knows; here, all are known."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """The expected clean image D(x, sigma).

        Args:
            x: noisy images (B, C, H, W) in any floating-point type.
            sigma: () or (B,). One noise level for all is embedded once, not once for each image.
            class_labels: one-hot (B, label_dim) or (1, label_dim); None: no class. Ignored by an
                unconditional network.
            augment_labels: (B, augment_dim), in training; None: not augmented.
            force_fp32: compute in float32 whatever `compute_dtype` says.

        Returns:
            (B, C, H, W) in x's dtype and on its device.

        Raises:
            UsageError: x is of integers.
        """
        if not x.is_floating_point():
            raise UsageError(f"x is {str(x.dtype)[6:]}: expected floats, of uint8 `from_uint8(x)`")
        images = x.to(torch.float32)
        c = self.coefficients(expand(sigma, images))
        chosen = self.compute_dtype or self.published_dtype(x.device)
        dtype = torch.float32 if force_fp32 else chosen
        inputs = (c.input * images).to(dtype)
        labels = self._labels(class_labels, x.device)
        outputs = self.model(inputs, c.noise.flatten(), labels, augment_labels)
        return (c.skip * images + c.out * outputs[:, : x.shape[1]].to(torch.float32)).to(x.dtype)

    def bind(self, labels: Tensor) -> Denoiser:
        """This network as a denoiser of images of given classes.

        Args:
            labels: classes (n,), any integer type, or floating point (n, label_dim): one-hot, or
                whatever else the network was trained with.

        Raises:
            UsageError: the network is unconditional, or labels have another shape or range.
        """
        if not self.label_dim:
            raise UsageError("the network is unconditional: it takes no class labels")
        return partial(self, class_labels=self._one_hot(labels))

    def _one_hot(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point() and labels.shape[1:] == (self.label_dim,):
            return labels.to(torch.float32)
        if labels.is_floating_point() or labels.ndim != 1:
            raise UsageError(
                f"labels have shape {tuple(labels.shape)} and type {labels.dtype}: expected "
                f"integers (n,) or one-hot floating point (n, {self.label_dim})"
            )
        if labels.numel() and not 0 <= labels.min() <= labels.max() < self.label_dim:
            raise UsageError(
                f"labels lie between {labels.min()} and {labels.max()}: "
                f"the network knows the classes 0 to {self.label_dim - 1}"
            )
        return F.one_hot(labels.long(), self.label_dim).to(torch.float32)

    def _labels(self, labels: Tensor | None, device: torch.device) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return torch.zeros(1, self.label_dim, device=device)
        return labels.to(device, torch.float32).reshape(-1, self.label_dim)


@dataclass(frozen=True, kw_only=True)
class RangedOptions(Options):
    """The range of noise levels of a network that knows any sigma; EDM's by default."""

    sigma_min: float = option(0.0, high=LARGE)
    sigma_max: float = option(math.inf, low=SMALL)

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise UsageError(
                f"option 'sigma_min' is {self.sigma_min!r}: expected less than 'sigma_max', "
                f"{self.sigma_max!r}"
            )


class Ranged(Preconditioned):
    """A network whose range of noise levels is an option."""

    options: RangedOptions

    def __init__(self, options: RangedOptions, model: nn.Module) -> None:
        super().__init__(options, model)
        self.sigma_min, self.sigma_max = options.sigma_min, options.sigma_max


@dataclass(frozen=True, kw_only=True)
class EDMOptions(RangedOptions):
    """Options of EDM preconditioning, under the published names."""

    sigma_data: float = option(0.5, SMALL, LARGE)


class EDM(Ranged):
    """Unit variance in and out of F at every noise level (Karras et al. 2022)."""

    options_type = EDMOptions
    default_model = "DhariwalUNet"
    options: EDMOptions

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The row "EDM" of the table above."""
        data = self.options.sigma_data
        variance = sigma**2 + data**2
        return Coefficients(
            skip=data**2 / variance,
            out=sigma * data / variance.sqrt(),
            input=1 / variance.sqrt(),
            noise=sigma.log() / 4,
        )


def _of_noise(sigma: Tensor, label: Tensor) -> Coefficients:
    """F predicts the noise in images scaled to the variance that they have without any."""
    return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), label)


@dataclass(frozen=True, kw_only=True)
class VPOptions(Options):
    """Options of VP preconditioning, under the published names."""

    beta_d: float = option(19.9, SMALL, LARGE)
    beta_min: float = option(0.1, high=LARGE)
    M: int = count(1000)
    epsilon_t: float = option(1e-5, high=1)


class VP(Preconditioned):
    """Variance preserving (Song et al. 2021): DDPM's noise prediction in continuous time."""

    options_type = VPOptions
    options: VPOptions

    def __init__(self, options: VPOptions, model: nn.Module) -> None:
        super().__init__(options, model)
        self.process = PublishedVP(options.beta_d, options.beta_min)
        ends = torch.tensor([options.epsilon_t, 1], dtype=torch.float32, device="cpu")
        self.sigma_min, self.sigma_max = self.process.sigma(ends).tolist()

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The row "VP" of the table above."""
        return _of_noise(sigma, (self.options.M - 1) * self.process.time(sigma))


@dataclass(frozen=True, kw_only=True)
class VEOptions(RangedOptions):
    """Options of VE and NCSN preconditioning, under the published names of VE."""

    sigma_min: float = option(0.02, high=LARGE)
    sigma_max: float = option(100.0, low=SMALL)


class VE(Ranged):
    """Variance exploding (Song et al. 2021)."""

    options_type = VEOptions
    options: VEOptions

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The row "VE" of the table above."""
        one = torch.ones_like(sigma)
        return Coefficients(skip=one, out=sigma, input=one, noise=(sigma / 2).log())


class NCSN(VE):
    """VE without telling F the noise: s = F(x) / sigma (Song and Ermon 2020, technique 3)."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The row "NCSN" of the table above."""
        return super().coefficients(sigma)._replace(noise=torch.zeros_like(sigma))


@dataclass(frozen=True, kw_only=True)
class IDDPMOptions(Options):
    """Options of iDDPM preconditioning, under the published names."""

    C_1: float = option(0.001, high=1)
    C_2: float = option(0.008, high=1)
    M: int = count(1000, high=10000)


class IDDPM(Preconditioned):
    """Improved DDPM (Nichol and Dhariwal 2021): M noise levels; F also predicts a variance."""

    options_type = IDDPMOptions
    default_model = "DhariwalUNet"
    outputs_per_channel = 2  # the image comes first; the variance is not used
    options: IDDPMOptions
    u: Tensor

    def __init__(self, options: IDDPMOptions, model: nn.Module) -> None:
        super().__init__(options, model)
        levels = iddpm_levels(options.M, options.C_1, options.C_2, torch.float32)
        self.sigma_min, self.sigma_max = float(levels[-2]), float(levels[0])
        self.register_buffer("u", levels.to(torch.get_default_device()))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The row "iDDPM" of the table above."""
        return _of_noise(sigma, (self.options.M - 1 - self._index(sigma)).to(torch.float32))

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest of the M + 1 levels u, in sigma's shape, dtype and device."""
        sigma = torch.as_tensor(sigma)
        return self.u[self._index(sigma.to(self.u))].to(sigma)

    def _index(self, sigma: Tensor) -> Tensor:
        """`cdist`, not a difference: near ties its rounding decides, as in the published code."""
        with factors_in_float32():
            distances = torch.cdist(sigma.reshape(-1, 1), self.u[:, None])
        return distances.argmin(1).reshape(sigma.shape)


MODELS: dict[str, tuple[Any, Any]] = {
    "SongUNet": (DDPMpp, DDPMppOptions),
    "DhariwalUNet": (ADM, ADMOptions),
    "MLP": (MLP, MLPOptions),
}
PRECONDITIONERS = {
    "EDMPrecond": EDM,
    "VPPrecond": VP,
    "VEPrecond": VE,
    "iDDPMPrecond": IDDPM,
    "NCSNPrecond": NCSN,
}
SHARED = {"img_resolution", "label_dim"}  # options of the preconditioner and of its network


def build(config: Mapping[str, Any]) -> Preconditioned:
    """Make a network with initial weights, on the default device, from plain JSON values.

    Args:
        config: `precondition` (the published class name), `model_type`, `img_resolution`,
            `img_channels`, `label_dim`, `use_fp16`, and the options of both by their published
            names; what is absent has the published default.

    Raises:
        UsageError: a name is unknown or missing, or a value has the wrong type or range.
    """
    values = dict(config)
    name = values.pop("precondition", None)
    kind = _named(PRECONDITIONERS, name, "precondition")
    model_type = values.pop("model_type", kind.default_model)
    model, model_options = _named(MODELS, model_type, "model type")
    own = {each.name for each in fields(kind.options_type)} & values.keys()
    options = parse(kind.options_type, {key: values[key] for key in own}, name)
    rest = {key: values[key] for key in values.keys() - own | own & SHARED}
    channels = options.img_channels
    network = model(
        parse(model_options, rest, model_type), channels, channels * kind.outputs_per_channel
    )
    return kind(options, network)


def _named(table: Mapping[str, Any], name: Any, what: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise UsageError(f"unknown {what} {name!r}; known are {', '.join(table)}")
    return table[name]

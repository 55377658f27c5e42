"""What experiments ask of a network, and how anything callable as `D(x, sigma)` becomes one.

    network = network_of(module, shape=(3, 32, 32))
    *_, last = heun(network, x, sigma_grid(18))

Samplers keep their state in float64 and pass sigma as a scalar tensor. A module written for
float32 images and one sigma for each of them knows neither: `network_of` casts in and out.
"""

import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edm.identity import Unidentified, digest_of_callable
from linear_structure.denoise import Denoiser
from linear_structure.sampling.grids import Rounding, exact
from linear_structure.sampling.seeds import check_class
from linear_structure.system.errors import UsageError
from linear_structure.system.machine import world_size
from linear_structure.teleport import Sized


class Network(Sized, Protocol):
    """A denoiser of images that says what it is."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def sigma_min(self) -> float:
        """The lowest noise level that it was made for."""

    @property
    def sigma_max(self) -> float:
        """The highest one."""

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of what it is: equal digests, equal bits."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that it knows, in sigma's shape, dtype and device."""

    def bind(self, labels: Tensor) -> Denoiser:
        """It as a denoiser of images of given classes (n,), int64."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The expected clean images: x (B, C, H, W), sigma () or (B,) -> x's shape and dtype."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """A callable as a `Network`; see `network_of`."""

    denoise: Callable[..., Tensor]
    shape: tuple[int, int, int]
    label_dim: int
    sigma_min: float
    sigma_max: float
    device: torch.device
    dtype: torch.dtype
    round_sigma: Rounding
    version: str | None
    gradients: bool
    labels: Tensor | None = None

    @property
    def digest(self) -> str:
        """Of the callable as it is now, and of how it is called.

        Raises:
            UsageError: it has no identity, and several processes would each give it another.
        """
        said = [self.shape, self.label_dim, self.sigma_min, self.sigma_max, str(self.dtype)]
        try:
            return digest_of_callable(self.denoise, self.version, said)
        except Unidentified as unknown:
            told = f"{unknown} cannot be told from another"
            if world_size() > 1:
                raise UsageError(f"{told}: several processes need a version= of it") from unknown
            if "_own" not in vars(self):
                serves = "results serve this process alone; state a version of the network to keep"
                print(f"{told}: {serves} them", file=sys.stderr)
            return self._own

    @cached_property
    def _own(self) -> str:
        """Stands for a digest where there is none."""
        return uuid.uuid4().hex

    def bind(self, labels: Tensor) -> Denoiser:
        """The callable with its third argument, the classes (n,), int64; UsageError for others."""
        for label in labels.unique().tolist():
            check_class(label, self.label_dim)
        return replace(self, labels=labels)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`D(x, sigma)` in x's dtype and on its device.

        Raises:
            UsageError: images of another shape, or a callable that fails, or that would take
                one sigma for each image for one for each channel, row or column.
        """
        made = getattr(self.denoise, "shape", self.shape)
        if isinstance(made, tuple) and len(made) == 3 and tuple(made) != self.shape:
            raise UsageError(f"shape {self.shape} of a network that makes {tuple(made)}")
        if tuple(x.shape[1:]) != self.shape:
            raise UsageError(f"x {tuple(x.shape)}: expected (B, {str(self.shape)[1:]}")
        inputs = x.to(self.device, self.dtype)
        levels = torch.as_tensor(sigma).to(inputs).expand(len(x))
        labels = () if self.labels is None else (self.labels.to(self.device),)
        if 1 < len(x) in self.shape and "_tried" not in vars(self):
            other = next(size for size in range(3, 7) if size not in self.shape)
            some = (each[:1].expand(other, *each.shape[1:]) for each in (inputs, levels, *labels))
            self._call(*some)
            vars(self)["_tried"] = True
        return self._call(inputs, levels, *labels).to(x)

    def _call(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """The callable's images, of x's shape."""
        name = getattr(self.denoise, "__qualname__", type(self.denoise).__qualname__)
        said = f"x {tuple(x.shape)} {str(self.dtype)[6:]}, sigma ({len(x)},)"
        call = f"{name}({said}{', labels' if labels else ''})"
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            try:
                denoised = self.denoise(x, sigma, *labels)
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError, LookupError) as error:
                raise UsageError(f"{call} fails: {error}") from error
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            kind = None if denoised is None else f"a {type(denoised).__name__}"
            found = tuple(denoised.shape) if isinstance(denoised, Tensor) else kind
            raise UsageError(f"{call} gives {found}: expected {tuple(x.shape)}")
        return denoised


def network_of(
    denoise: Callable[..., Any],
    shape: tuple[int, int, int],
    *,
    label_dim: int = 0,
    sigma_min: float = 0.0,
    sigma_max: float = inf,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    round_sigma: Rounding = exact,
    version: str | None = None,
    gradients: bool = False,
) -> Adapted:
    """Anything callable as `D(x, sigma)` as a network that every experiment takes.

    Args:
        denoise: a function, or an `nn.Module`, which is put into evaluation mode: x (B, C, H, W)
            and sigma (B,), both in `dtype` on `device`, give the expected clean images; with
            classes, `D(x, sigma, labels)`, labels (B,) int64.
        shape: (C, H, W) of its images, pixels in [-1, 1].
        label_dim: number of its classes; 0: it has none.
        sigma_min, sigma_max: the noise levels that it was made for.
        device, dtype: that it wants; by default those of a module's first parameter, else the CPU
            and float32.
        round_sigma: to the levels that it knows, where these are few.
        version: what tells it from another. By default the digest rests on all tensors, values and
            source files that can be found; where one cannot, a line says so, and results serve this
            process alone.
        gradients: whether to let them through, where torch records them; else none are kept.
    """
    like = torch.empty(0, dtype=torch.float32, device="cpu")
    if isinstance(denoise, nn.Module):
        like = next((p for p in denoise.eval().parameters() if p.is_floating_point()), like)
    wanted = torch.device(device or like.device), dtype or like.dtype
    shape = (*shape,)
    return Adapted(
        denoise, shape, label_dim, sigma_min, sigma_max, *wanted, round_sigma, version, gradients
    )

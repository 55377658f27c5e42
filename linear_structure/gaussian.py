"""Gaussian data: denoiser, score and the closed-form probability-flow ODE.

Data `N(mu, U diag(lam) U')` with orthonormal U (D, r), seen as `x = a x_0 + b eps`. Every operator
below has the form `c I + U diag(g) U'`, applied as two thin products; no D x D matrix is ever made.
With d = x - a mu:

    D(x; a, b)     = mu + U diag(a lam / (a^2 lam + b^2)) U' d
    flow 0 -> 1    = a1 mu + (b1/b0) (I - U U') d0
                     + U diag(sqrt((a1^2 lam + b1^2) / (a0^2 lam + b0^2))) U' d0
    log p(x; a, b) = -1/2 [ |U'd|^2_{1/(a^2 lam + b^2)} + |d - U U'd|^2 / b^2
                            + sum log(a^2 lam + b^2) + (D - r) log b^2 + D log 2 pi ]

Half precision is computed in float32: a variance of sigma 256 is beyond what float16 holds.

A level is a `Position(a, b)`, or sigma alone, which is a = 1 and b = sigma (Wang and Vastola 2023,
section 3). a = 0, where no signal is left, is a start like any other. The flow is the whole of the
teleport: it continues the trajectory of its state. `draw` is the flow from (0, 1), whose noise is
not a state of any trajectory, but the randomness of a fresh sample of the noised data.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch
from scipy.linalg import eigh
from torch import Tensor

from linear_structure.denoise import Level, Model, Position, Posterior, coefficients, single
from linear_structure.images import values_of
from linear_structure.moments import Moments
from linear_structure.system.errors import UsageError

RANK_TOLERANCE = 1e-12  # directions with lam <= 1e-12 lam_max are dropped
NEGATIVE_TOLERANCE = 1e-6  # of the sum of all: what rounding in float32 can leave
ORTHONORMAL_TOLERANCE = 1e-3


def eigh_destroying(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), descending, and eigenvectors, the columns of (D, D), in float64.

    The matrix (D, D), symmetric, finite and float64, is overwritten; the CPU decomposes it.
    """
    negative = matrix.neg_().cpu().numpy().T  # whose eigenvalues ascend where the matrix's descend
    found = eigh(negative, driver="evd", overwrite_a=True, check_finite=False)
    eigenvalues, vectors = (torch.from_numpy(each).to(matrix.device) for each in found)
    return -eigenvalues, vectors


def check_variances(eigenvalues: Tensor) -> None:
    """Refuse (ValueError) eigenvalues below 0 by more than rounding leaves."""
    if bool((eigenvalues < -NEGATIVE_TOLERANCE * eigenvalues.abs().sum()).any()):
        raise ValueError(f"lambdas holds {float(eigenvalues.min()):g}, a variance below 0")


@dataclass(frozen=True)
class Planned:
    """As many directions as a teleport to a level needs.

    Dropping those of a set R moves its end by `sqrt(sum_R (sqrt(1 + lam / sigma^2) - 1)^2 / D)`,
    root mean square over the D values, in units of sigma.
    """

    sigma: float  # where the teleport ends, above 0
    error: float = 0.005  # the most that it may be moved by

    def of(self, eigenvalues: Tensor, dim: int) -> int:
        """How many of the eigenvalues, descending, are kept."""
        moved = ((1 + eigenvalues.double() / self.sigma**2).sqrt() - 1).square() / dim
        dropped = moved.flip(0).cumsum(0)  # by the last, the last two, ...
        return int((dropped > self.error**2).sum())


Rank = int | Planned | None
"""The most directions that are kept, or how they are chosen; None: all."""


def _check_start(start: Level) -> None:
    noise = start.noise if isinstance(start, Position) else start
    if not bool((torch.as_tensor(noise) > 0).all()):
        raise ValueError(f"a flow starts at sigma > 0, not at {noise}")


class Flowing(Model):
    """A Gaussian: a model whose flow is a formula."""

    mean: Tensor  # (D,)

    @abstractmethod
    def flow(self, x: Tensor, start: Level, stop: Level) -> Tensor:
        """Solution at `stop` of the probability-flow ODE that is at x (B, *S) when at `start`.

        It continues one trajectory, as a sampler would from the same noise: the same seed gives
        the same picture.

        Raises:
            ValueError: there is no noise at the start.
        """

    def draw(self, noise: Tensor, level: Level) -> Tensor:
        """A sample of the noised data at a level, from noise (B, *S) of `N(0, I)`.

        It is the flow from `Position(0, 1)`. Where a sampler starts from `N(0, b^2 I)` although
        signal is left at its first level, `flow` keeps what that start lacks, such as the spread of
        the average brightness; `draw` has it, and so gives other pictures for the same seed.
        """
        return self.flow(noise, Position(0.0, 1.0), level)


AnyFlowing = TypeVar("AnyFlowing", bound=Flowing)


class EigenGaussian(Flowing):
    """A Gaussian by the eigenvalues of its covariance, and the maps onto its axes and back."""

    mean: Tensor  # (D,)
    eigenvalues: Tensor  # (r,), in squared units of x

    @abstractmethod
    def onto_axes(self, offset: Tensor) -> Tensor:
        """U' d of d (B, D): (B, r)."""

    @abstractmethod
    def from_axes(self, inside: Tensor) -> Tensor:
        """U c of c (B, r): (B, D)."""

    @abstractmethod
    def to(self, x: Tensor) -> Self:
        """The same model in the dtype and on the device of x."""

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def rank(self) -> int:
        """How many directions have a spread."""
        return int((self.eigenvalues > 0).sum())

    def denoise(self, x: Tensor, sigma: Level) -> Tensor:
        """`mu + U diag(a lam / (a^2 lam + b^2)) U' (x - a mu)`: (B, *S), in x's dtype."""
        g, offset, a, b = self._prepare(x, sigma)
        shrink = g._shrink(a, g._variance(a, b))
        return (g.mean + g.from_axes(g.onto_axes(offset) * shrink)).to(x.dtype).view_as(x)

    def flow(self, x: Tensor, start: Level, stop: Level) -> Tensor:
        """`a1 mu + (b1/b0) (d - U U'd) + U diag(sqrt(var1 / var0)) U'd`, var = a^2 lam + b^2."""
        _check_start(start)
        g, offset, a0, b0 = self._prepare(x, start)
        a1, b1 = coefficients(stop, offset)
        outside = b1 / b0
        inside = (g._variance(a1, b1) / g._variance(a0, b0)).sqrt()
        moved = outside * offset + g.from_axes(g.onto_axes(offset) * (inside - outside))
        return (a1 * g.mean + moved).to(x.dtype).view_as(x)

    def denoised_along(self, x: Tensor, start: Level, sigma: Level) -> Tensor:
        """Denoised image at `sigma` on the trajectory that is at x (B, *S) when at `start`.

        `mu + U diag(a lam / sqrt((a^2 lam + b^2)(a0^2 lam + b0^2))) U' d0`, equal to
        `denoise(flow(x, start, sigma), sigma)`.
        """
        _check_start(start)
        g, offset, a0, b0 = self._prepare(x, start)
        a, b = coefficients(sigma, offset)
        variance = g._variance(a, b)
        gain = g._shrink(a, variance) * (variance / g._variance(a0, b0)).sqrt()
        return (g.mean + g.from_axes(g.onto_axes(offset) * gain)).to(x.dtype).view_as(x)

    def squared_error(self, x: Tensor, level: Level) -> Tensor:
        """`E |D(a x + b n; a, b) - x|^2` over the noise n, of any clean x (B, *S): (B,).

        With d = x - mu and g = a lam / (a^2 lam + b^2) it is
        `sum [(1 - a g)^2 (u'd)^2 + (g b)^2] + |d - U U'd|^2`.
        """
        flat = single(x).flatten(1)
        g, (a, b) = self.to(flat), coefficients(level, flat)
        offset = flat - g.mean
        inside = g.onto_axes(offset)
        outside = (offset - g.from_axes(inside)).square().sum(1)
        shrink = g._shrink(a, g._variance(a, b))
        pulled, passed = (1 - a * shrink) * inside, shrink * b
        return (pulled**2 + passed**2).sum(1) + outside

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) from `N(mean, U diag(lam) U' + sigma^2 I)`."""
        g = self.to(self.mean)
        inside = torch.randn(count, len(g.eigenvalues), generator=generator).to(g.mean)
        noise = torch.randn(count, g.dim, generator=generator).to(g.mean)
        return g.mean + g.from_axes(inside * g.eigenvalues.sqrt()) + sigma * noise

    def posterior(self, x: Tensor, sigma: Level) -> Posterior:
        """Log density (B,) in nats and denoised image (B, *S), from one projection.

        Raises:
            ValueError: b = 0, and some direction has no spread: there is no density.
        """
        g, offset, a, b = self._prepare(x, sigma)
        dim, rank = g.dim, len(g.eigenvalues)
        if not bool((b > 0).all()) and g.rank < dim:
            raise ValueError(f"rank {g.rank} of {dim}: there is no density at sigma = 0")
        variance = g._variance(a, b)
        inside = g.onto_axes(offset)
        distance = (inside.square() / variance).sum(1)
        log_volume = variance.log().expand_as(inside).sum(1) + dim * math.log(2 * math.pi)
        if rank < dim:
            outside = (offset - g.from_axes(inside)).square().sum(1)
            square = (b**2).expand(len(x), 1).squeeze(1)
            distance = distance + outside / square
            log_volume = log_volume + (dim - rank) * square.log()
        denoised = g.mean + g.from_axes(inside * g._shrink(a, variance))
        return Posterior(denoised.to(x.dtype).view_as(x), -(distance + log_volume) / 2)

    def log_prob(self, x: Tensor, sigma: Level = 0.0) -> Tensor:
        """Log density in nats of the noised data at x (B, *S): (B,). Raises as `posterior`."""
        return self.posterior(x, sigma).log_prob

    def _variance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of the noised data along the axes: (r,) or (B, r)."""
        return a.square() * self.eigenvalues + b.square()

    def _shrink(self, a: Tensor, variance: Tensor) -> Tensor:
        """`a lam / (a^2 lam + b^2)`; zero for lam <= 0, at b = 0 too."""
        above = torch.finfo(variance.dtype).tiny
        return a * self.eigenvalues.clamp(min=0) / variance.clamp(min=above)

    def _prepare(self, x: Tensor, level: Level) -> tuple[Self, Tensor, Tensor, Tensor]:
        """The model as x is, d = x - a mu as (B, D), and the a and b that broadcast over it."""
        flat = single(x).flatten(1)
        g, (a, b) = self.to(flat), coefficients(level, flat)
        return g, flat - a * g.mean, a, b


def guided(conditional: AnyFlowing, unconditional: AnyFlowing, weight: float) -> AnyFlowing:
    """The Gaussian whose denoiser is `D_u + w (D_c - D_u)`, of two that share their covariance.

    Classifier-free guidance by w (1: none) moves the mean to `mu_u + w (mu_c - mu_u)`, and nothing
    else, so the guided flow is a flow like any other.

    Raises:
        UsageError: their covariances differ, of which there is no closed form.
    """
    ours, theirs = conditional.tensors(), unconditional.tensors()
    shared = ours.keys() == theirs.keys() and type(conditional) is type(unconditional)
    if not shared or not all(torch.equal(ours[n], theirs[n]) for n in ours if n != "mu"):
        raise UsageError(
            "guidance has a closed form for Gaussians that differ in their means alone: expected "
            "one covariance for both, such as that of all data"
        )
    mean = unconditional.mean + weight * (conditional.mean - unconditional.mean)
    return replace(conditional, mean=mean)  # type: ignore[type-var]


@dataclass(frozen=True)
class Gaussian(EigenGaussian):
    """`N(mean, basis diag(eigenvalues) basis')`, of any rank; r = 0 is a point."""

    kind: ClassVar[str] = "gaussian"
    files: ClassVar[tuple[str, ...]] = ("mu.pt", "U.pt", "lambdas.pt")
    mean: Tensor  # (D,)
    basis: Tensor  # (D, r), orthonormal columns
    eigenvalues: Tensor  # (r,), descending, in squared units of x

    @classmethod
    def from_covariance(
        cls, mean: Tensor, covariance: Tensor, rank: Rank = None, overwrite: bool = False
    ) -> "Gaussian":
        """Decompose a covariance (D, D) in float64, once, and keep at most `rank` directions.

        With `overwrite` the covariance is destroyed, which saves the memory of a copy.

        Raises:
            ValueError: the covariance holds NaN or infinity.
        """
        if not bool(torch.isfinite(covariance.sum())):
            raise ValueError("the covariance holds NaN or infinity")
        eigenvalues, basis = eigh_destroying(covariance.to(torch.float64, copy=not overwrite))
        return cls(mean, basis, eigenvalues).truncated(rank)

    @classmethod
    def from_samples(cls, samples: Tensor, rank: Rank = None) -> "Gaussian":
        """Mean and covariance (over n - 1) of samples (n, D), or (n, *S), in float64.

        uint8 stands for [-1, 1]; floats, which may be in any units, are taken as they are.

        With fewer samples than dimensions the n x n Gram matrix of the centred samples X gives
        the same eigenvalues, and the axes as `X' v / |X' v|`: exact, and far cheaper.

        Raises:
            ValueError: there is no sample, or one holds NaN or infinity.
        """
        if not len(samples) or not bool(torch.isfinite(samples.double().sum())):
            raise ValueError("samples are needed, without NaN and infinity")
        samples = values_of(samples.flatten(1), torch.float64)
        if len(samples) > samples.shape[1]:
            moments = Moments.of(samples)
            return cls.from_covariance(moments.mean, moments.covariance, rank, overwrite=True)
        mean = samples.mean(0)
        centred = (samples - mean) / max(len(samples) - 1, 1) ** 0.5
        eigenvalues, vectors = eigh_destroying(centred @ centred.T)
        inner = cls(mean, vectors, eigenvalues).truncated(rank)
        axes = centred.T @ inner.basis
        return cls(mean, axes / axes.norm(dim=0), inner.eigenvalues)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Gaussian":
        """In the standard form: mu flat, descending lambdas, the rank rule applied.

        Raises:
            ValueError: the shapes do not fit, a variance is negative, U is not orthonormal.
        """
        mean, basis, eigenvalues = tensors["mu"].flatten(), tensors["U"], tensors["lambdas"]
        dim, rank = mean.numel(), eigenvalues.numel()
        if (basis.shape, eigenvalues.shape) != ((dim, rank), (rank,)):
            raise ValueError(
                f"mu {tuple(mean.shape)}, U {tuple(basis.shape)} and lambdas "
                f"{tuple(eigenvalues.shape)} do not fit: expected (D,), (D, r) and (r,)"
            )
        order = eigenvalues.argsort(descending=True, stable=True)
        eigenvalues, basis = eigenvalues[order].double(), basis[:, order].float()
        check_variances(eigenvalues)
        gaussian = cls(mean.double(), basis, eigenvalues).truncated()
        probe = torch.linspace(1, 2, gaussian.basis.shape[1])  # no zeros: every column counts
        error = gaussian.basis.T @ (gaussian.basis @ probe) - probe
        stretched = (gaussian.basis.norm(dim=0) - 1).abs() > ORTHONORMAL_TOLERANCE
        if stretched.any() or not bool(error.norm() <= ORTHONORMAL_TOLERANCE * probe.norm()):
            raise ValueError("the columns of U are not orthonormal")
        return gaussian

    def tensors(self) -> dict[str, Tensor]:
        """As `from_tensors` takes them, by the rank rule: mu (D,), U (D, r) and lambdas (r,).

        U is float32, the others float64.
        """
        g = self.truncated()
        return {"mu": g.mean.double(), "U": g.basis.float(), "lambdas": g.eigenvalues.double()}

    def rescale(self, factor: float) -> "Gaussian":
        return Gaussian(self.mean, self.basis, self.eigenvalues * factor)

    def truncated(self, rank: Rank = None) -> "Gaussian":
        """Without the directions of the rank rule (lam <= 1e-12 lam_max), at most `rank` kept."""
        kept = int((self.eigenvalues > RANK_TOLERANCE * self.eigenvalues[:1]).sum())
        if isinstance(rank, Planned):
            rank = rank.of(self.eigenvalues[:kept], self.dim)
        kept = kept if rank is None else min(kept, rank)
        return Gaussian(self.mean, self.basis[:, :kept], self.eigenvalues[:kept])

    def to(self, x: Tensor) -> "Gaussian":
        return Gaussian(self.mean.to(x), self.basis.to(x), self.eigenvalues.to(x))

    def onto_axes(self, offset: Tensor) -> Tensor:
        return offset @ self.basis

    def from_axes(self, inside: Tensor) -> Tensor:
        return inside @ self.basis.T


@dataclass(frozen=True)
class Isotropic(Flowing):
    """`N(mean, s0^2 I)`; with s0 = 0 the denoiser is the mean."""

    kind: ClassVar[str] = "isotropic"
    files: ClassVar[tuple[str, ...]] = ("mu.pt", "s0.pt")
    mean: Tensor  # (D,)
    s0: float = 0.0  # standard deviation of every pixel, >= 0, in units of x

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Isotropic":
        """Of mu, of any shape, and s0 of one value, 0 where there is none.

        Raises:
            ValueError: s0 is negative, or more than one value.
        """
        s0 = tensors.get("s0", torch.zeros(()))
        if s0.numel() != 1 or float(s0) < 0:
            raise ValueError("s0: expected one standard deviation, 0 or more")
        return cls(tensors["mu"].flatten().double(), float(s0))

    def tensors(self) -> dict[str, Tensor]:
        """As `from_tensors` takes them: mu (D,) and s0 (), in float64."""
        return {"mu": self.mean.double(), "s0": torch.tensor(self.s0, dtype=torch.float64)}

    @property
    def dim(self) -> int:
        return len(self.mean)

    def to(self, x: Tensor) -> "Isotropic":
        return Isotropic(self.mean.to(x), self.s0)

    def denoise(self, x: Tensor, sigma: Level) -> Tensor:
        """`mu + a s0^2 / (a^2 s0^2 + b^2) (x - a mu)`: (B, *S)."""
        a, b = coefficients(sigma, single(x))
        return self._scaled(x, a, self._gain(a, b, 1.0), 1.0)

    def flow(self, x: Tensor, start: Level, stop: Level) -> Tensor:
        """`a1 mu + sqrt((a1^2 s0^2 + b1^2) / (a0^2 s0^2 + b0^2)) (x - a0 mu)`: (B, *S)."""
        _check_start(start)
        (a0, b0), (a1, b1) = (coefficients(level, single(x)) for level in (start, stop))
        factor = (self._variance(a1, b1) / self._variance(a0, b0)).sqrt()
        return self._scaled(x, a0, factor, a1)

    def denoised_along(self, x: Tensor, start: Level, sigma: Level) -> Tensor:
        """`denoise(flow(x, start, sigma), sigma)` in closed form: (B, *S)."""
        _check_start(start)
        (a0, b0), (a, b) = (coefficients(level, single(x)) for level in (start, sigma))
        factor = (self._variance(a, b) / self._variance(a0, b0)).sqrt()
        return self._scaled(x, a0, self._gain(a, b, factor), 1.0)

    def squared_error(self, x: Tensor, level: Level) -> Tensor:
        """`E |D(a x + b n; a, b) - x|^2` over the noise n, of any clean x (B, *S): (B,)."""
        flat = single(x).flatten(1)
        square = (flat - self.mean.to(flat)).square().sum(1)
        a, b = coefficients(level, square)
        gain = self._gain(a, b, 1.0)
        return (1 - a * gain) ** 2 * square + self.dim * (gain * b) ** 2

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) from `N(mean, (s0^2 + sigma^2) I)`."""
        noise = torch.randn(count, self.dim, generator=generator).to(self.mean)
        return self.mean + math.hypot(self.s0, sigma) * noise

    def posterior(self, x: Tensor, sigma: Level) -> Posterior:
        """Log density (B,) in nats and denoised image (B, *S).

        Raises:
            ValueError: s0 and b are 0: there is no density.
        """
        flat = single(x).flatten(1)
        a, b = coefficients(sigma, flat)
        variance = self._variance(a, b).flatten()
        if not bool((variance > 0).all()):
            raise ValueError("s0 = 0 and sigma = 0: there is no density")
        square = (flat - a * self.mean.to(flat)).square().sum(1)
        log_prob = -(square / variance + self.dim * (2 * math.pi * variance).log()) / 2
        return Posterior(self.denoise(x, sigma), log_prob)

    def log_prob(self, x: Tensor, sigma: Level = 0.0) -> Tensor:
        """Log density in nats of the noised data at x (B, *S): (B,). Raises as `posterior`."""
        return self.posterior(x, sigma).log_prob

    def _variance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of each value of the noised data."""
        return a**2 * self.s0**2 + b**2

    def _gain(self, a: Tensor, b: Tensor, factor: Tensor | float) -> Tensor:
        """`a s0^2 / (a^2 s0^2 + b^2)` times a factor; zero for a point, at b = 0 too."""
        variance = self.s0**2
        gain = variance / self._variance(a, b) if variance else torch.zeros_like(b)
        return gain * factor * a

    def _scaled(self, x: Tensor, a: Tensor, factor: Tensor, stop: Tensor | float) -> Tensor:
        """`stop mu + factor (x - a mu)`."""
        own = single(x)
        mean = self.mean.to(own).reshape(x.shape[1:])
        return (stop * mean + factor * (own - a * mean)).to(x.dtype)

"""Gaussian data: denoiser, score and the closed-form probability-flow ODE.

Data `N(mu, U diag(lam) U')` with orthonormal U (D, r). Every operator below has the form
`a I + U diag(b) U'`, applied as two thin products; no D x D matrix is ever made. With d = x - mu:

    D(x, sigma)    = mu + U diag(lam / (lam + sigma^2)) U' d
    flow a -> b    = mu + (b/a) (I - U U') d + U diag(sqrt((lam + b^2) / (lam + a^2))) U' d
    log p(x;sigma) = -1/2 [ |U'd|^2_{1/(lam+sigma^2)} + |d - U U'd|^2 / sigma^2
                            + sum log(lam + sigma^2) + (D - r) log sigma^2 + D log 2 pi ]

(Wang and Vastola 2023, section 3.) The flow is the whole of the teleport.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.linalg import eigh
from torch import Tensor

from linear_structure.denoise import Model, Posterior, expand
from linear_structure.images import from_uint8
from linear_structure.moments import Moments

RANK_TOLERANCE = 1e-12  # directions with lam <= 1e-12 lam_max are dropped
NEGATIVE_TOLERANCE = 1e-6  # of the sum of all: what rounding in float32 can leave
ORTHONORMAL_TOLERANCE = 1e-3


def eigh_destroying(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), descending, and eigenvectors, the columns of (D, D), in float64.

    The matrix (D, D), symmetric, finite, float64 and on the CPU, is overwritten.
    """
    negative = matrix.neg_().numpy().T  # whose eigenvalues ascend where the matrix's descend
    eigenvalues, vectors = eigh(negative, driver="evd", overwrite_a=True, check_finite=False)
    return -torch.from_numpy(eigenvalues), torch.from_numpy(vectors)


def _check_start(start: Tensor | float) -> None:
    if not bool((torch.as_tensor(start) > 0).all()):
        raise ValueError(f"a flow starts at sigma > 0, not at {start}")


@dataclass(frozen=True)
class Gaussian(Model):
    """`N(mean, basis diag(eigenvalues) basis')`, of any rank; r = 0 is a point."""

    kind: ClassVar[str] = "gaussian"
    files: ClassVar[tuple[str, ...]] = ("mu.pt", "U.pt", "lambdas.pt")
    mean: Tensor  # (D,)
    basis: Tensor  # (D, r), orthonormal columns
    eigenvalues: Tensor  # (r,), descending, in squared units of x

    @property
    def dim(self) -> int:
        return len(self.mean)

    @classmethod
    def from_covariance(
        cls, mean: Tensor, covariance: Tensor, rank: int | None = None, overwrite: bool = False
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
    def from_samples(cls, samples: Tensor, rank: int | None = None) -> "Gaussian":
        """Mean and covariance (over n - 1) of samples (n, D), or (n, *S), in float64.

        uint8 stands for [-1, 1]; floats, which may be in any units, are taken as they are.

        With fewer samples than dimensions the n x n Gram matrix of the centred samples X gives
        the same eigenvalues, and the axes as `X' v / |X' v|`: exact, and far cheaper.

        Raises:
            ValueError: there is no sample, or one holds NaN or infinity.
        """
        if not len(samples) or not bool(torch.isfinite(samples.double().sum())):
            raise ValueError("samples are needed, without NaN and infinity")
        samples = samples.flatten(1)
        if samples.dtype == torch.uint8:
            samples = from_uint8(samples, torch.float64)
        if len(samples) > samples.shape[1]:
            moments = Moments.of(samples)
            return cls.from_covariance(moments.mean, moments.covariance, rank, overwrite=True)
        mean = samples.double().mean(0)
        centred = (samples.double() - mean) / max(len(samples) - 1, 1) ** 0.5
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
        if bool((eigenvalues < -NEGATIVE_TOLERANCE * eigenvalues.abs().sum()).any()):
            raise ValueError(f"lambdas holds {float(eigenvalues.min()):g}, a variance below 0")
        gaussian = cls(mean.double(), basis, eigenvalues).truncated()
        probe = torch.linspace(1, 2, gaussian.basis.shape[1])  # no zeros: every column counts
        error = gaussian.basis.T @ (gaussian.basis @ probe) - probe
        stretched = (gaussian.basis.norm(dim=0) - 1).abs() > ORTHONORMAL_TOLERANCE
        if stretched.any() or not bool(error.norm() <= ORTHONORMAL_TOLERANCE * probe.norm()):
            raise ValueError("the columns of U are not orthonormal")
        return gaussian

    def tensors(self) -> dict[str, Tensor]:
        g = self.truncated()
        return {"mu": g.mean.double(), "U": g.basis.float(), "lambdas": g.eigenvalues.double()}

    def rescale(self, factor: float) -> "Gaussian":
        return Gaussian(self.mean, self.basis, self.eigenvalues * factor)

    def truncated(self, rank: int | None = None) -> "Gaussian":
        """Without the directions of the rank rule (lam <= 1e-12 lam_max), at most `rank` kept."""
        kept = int((self.eigenvalues > RANK_TOLERANCE * self.eigenvalues[:1]).sum())
        kept = kept if rank is None else min(kept, rank)
        return Gaussian(self.mean, self.basis[:, :kept], self.eigenvalues[:kept])

    def to(self, x: Tensor) -> "Gaussian":
        return Gaussian(self.mean.to(x), self.basis.to(x), self.eigenvalues.to(x))

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        g, offset, sigma = self._prepare(x, sigma)
        shrink = g.eigenvalues / (g.eigenvalues + sigma**2)
        return (g.mean + (offset @ g.basis * shrink) @ g.basis.T).view_as(x)

    def flow(self, x: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """Solution at `stop` of the probability-flow ODE that is at x (B, *S) when sigma = start.

        Both are () or (B,); a ValueError unless start > 0.
        """
        _check_start(start)
        g, offset, start = self._prepare(x, start)
        stop = expand(stop, offset)
        outside = stop / start
        inside = ((g.eigenvalues + stop**2) / (g.eigenvalues + start**2)).sqrt()
        moved = outside * offset + (offset @ g.basis * (inside - outside)) @ g.basis.T
        return (g.mean + moved).view_as(x)

    def denoised_along(self, x: Tensor, start: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Denoised image at `sigma` on the trajectory that is at x (B, *S) when sigma = start.

        `mu + U diag(lam / sqrt((lam + sigma^2)(lam + start^2))) U' (x - mu)`, equal to
        `denoise(flow(x, start, sigma), sigma)`.
        """
        _check_start(start)
        g, offset, start = self._prepare(x, start)
        lam, sigma = g.eigenvalues, expand(sigma, offset)
        gain = lam / (lam + sigma**2).sqrt() / (lam + start**2).sqrt()  # float16 holds both
        return (g.mean + (offset @ g.basis * gain) @ g.basis.T).view_as(x)

    def squared_error(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """`E |D(x + sigma n, sigma) - x|^2` over the noise n, of any clean x (B, *S): (B,).

        With d = x - mu and g = lam / (lam + sigma^2) it is
        `sum [(1 - g)^2 (u'd)^2 + (g sigma)^2] + |d - U U'd|^2`.
        """
        g, offset, sigma = self._prepare(x, sigma)
        inside = offset @ g.basis
        outside = (offset - inside @ g.basis.T).square().sum(1)
        variance = g.eigenvalues + sigma**2
        pulled, passed = sigma**2 / variance * inside, g.eigenvalues / variance * sigma
        return (pulled**2 + passed**2).sum(1) + outside

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) from `N(mean, U diag(lam) U' + sigma^2 I)`."""
        g = self.to(self.mean)
        dim, rank = g.basis.shape
        inside = torch.randn(count, rank, generator=generator).to(g.mean)
        noise = torch.randn(count, dim, generator=generator).to(g.mean)
        return g.mean + (inside * g.eigenvalues.sqrt()) @ g.basis.T + sigma * noise

    def posterior(self, x: Tensor, sigma: Tensor | float) -> Posterior:
        """Log density (B,) and denoised image (B, *S) from one projection."""
        g, offset, sigma = self._prepare(x, sigma)
        dim, rank = g.basis.shape
        if rank < dim and not bool((sigma > 0).all()):
            raise ValueError(f"rank {rank} of {dim}: there is no density at sigma = 0")
        variance = g.eigenvalues + sigma**2
        inside = offset @ g.basis
        outside = (offset - inside @ g.basis.T).square().sum(1)
        distance = (inside.square() / variance).sum(1)
        log_volume = variance.log().expand_as(inside).sum(1) + dim * math.log(2 * math.pi)
        if rank < dim:
            square = (sigma**2).expand(len(x), 1).squeeze(1)
            distance = distance + outside / square
            log_volume = log_volume + (dim - rank) * square.log()
        denoised = g.mean + (inside * (g.eigenvalues / variance)) @ g.basis.T
        return Posterior(denoised.view_as(x), -(distance + log_volume) / 2)

    def _prepare(self, x: Tensor, sigma: Tensor | float) -> tuple["Gaussian", Tensor, Tensor]:
        g, flat = self.to(x), x.flatten(1)
        return g, flat - g.mean, expand(sigma, flat)


@dataclass(frozen=True)
class Isotropic(Model):
    """`N(mean, s0^2 I)`; with s0 = 0 the denoiser is the mean."""

    kind: ClassVar[str] = "isotropic"
    files: ClassVar[tuple[str, ...]] = ("mu.pt", "s0.pt")
    mean: Tensor  # (D,)
    s0: float = 0.0  # standard deviation of every pixel, >= 0, in units of x

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Isotropic":
        s0 = tensors.get("s0", torch.zeros(()))
        if s0.numel() != 1 or float(s0) < 0:
            raise ValueError("s0: expected one standard deviation, 0 or more")
        return cls(tensors["mu"].flatten().double(), float(s0))

    def tensors(self) -> dict[str, Tensor]:
        return {"mu": self.mean.double(), "s0": torch.tensor(self.s0, dtype=torch.float64)}

    @property
    def dim(self) -> int:
        return len(self.mean)

    def to(self, x: Tensor) -> "Isotropic":
        return Isotropic(self.mean.to(x), self.s0)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """`mu + s0^2 / (s0^2 + sigma^2) (x - mu)`: (B, *S)."""
        return self._scaled(x, self._gain(expand(sigma, x) ** 2, 1.0))

    def flow(self, x: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """`mu + sqrt((s0^2 + stop^2) / (s0^2 + start^2)) (x - mu)`: (B, *S); needs start > 0."""
        _check_start(start)
        variance = self.s0**2
        before, after = variance + expand(start, x) ** 2, variance + expand(stop, x) ** 2
        return self._scaled(x, (after / before).sqrt())

    def denoised_along(self, x: Tensor, start: Tensor | float, sigma: Tensor | float) -> Tensor:
        """`denoise(flow(x, start, sigma), sigma)` in closed form: (B, *S)."""
        _check_start(start)
        square, before = expand(sigma, x) ** 2, self.s0**2 + expand(start, x) ** 2
        return self._scaled(x, self._gain(square, ((self.s0**2 + square) / before).sqrt()))

    def squared_error(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """`E |D(x + sigma n, sigma) - x|^2` over the noise n, of any clean x (B, *S): (B,)."""
        square = (x.flatten(1) - self.mean.to(x)).square().sum(1)
        sigma = expand(sigma, square)
        kept = self._gain(sigma**2, 1.0)
        return (1 - kept) ** 2 * square + self.dim * (kept * sigma) ** 2

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) from `N(mean, (s0^2 + sigma^2) I)`."""
        noise = torch.randn(count, self.dim, generator=generator).to(self.mean)
        return self.mean + math.hypot(self.s0, sigma) * noise

    def posterior(self, x: Tensor, sigma: Tensor | float) -> Posterior:
        """Log density (B,) and denoised image (B, *S); no density where s0 and sigma are 0."""
        variance = self.s0**2 + expand(sigma, x).flatten() ** 2
        if not bool((variance > 0).all()):
            raise ValueError("s0 = 0 and sigma = 0: there is no density")
        square = (x.flatten(1) - self.mean.to(x)).square().sum(1)
        log_prob = -(square / variance + self.dim * (2 * math.pi * variance).log()) / 2
        return Posterior(self.denoise(x, sigma), log_prob)

    def _gain(self, square: Tensor, factor: Tensor | float) -> Tensor:
        """`s0^2 / (s0^2 + square)` times a factor; zero for a point, at square = 0 too."""
        variance = self.s0**2
        return variance / (variance + square) * factor if variance else torch.zeros_like(square)

    def _scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        mean = self.mean.to(x).reshape(x.shape[1:])
        return mean + factor * (x - mean)

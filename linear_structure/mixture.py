"""Gaussian mixtures: each component a `Gaussian` of any rank, so a noised one is one too.

    D(x, sigma) = sum_k w_k D_k(x, sigma)
    w           = softmax_k(log pi_k + log N(x; mu_k, Sigma_k + sigma^2 I))

The Gaussian's thin form is Woodbury's identity and the determinant lemma at once; the weights stay
in the log domain. One component is the Gaussian; components of rank 0 are a point cloud.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from linear_structure.denoise import Model, Posterior, expand, single
from linear_structure.gaussian import Gaussian

WEIGHT_TOLERANCE = 1e-3  # of their sum


@dataclass(frozen=True)
class GaussianMixture(Model):
    """`sum_k weights_k N(mean_k, Sigma_k)`."""

    kind: ClassVar[str] = "mixture"
    files: ClassVar[tuple[str, ...]] = ("pi.pt", *Gaussian.files)
    weights: Tensor  # (K,), positive, sum 1
    components: tuple[Gaussian, ...]  # K, of one dimension

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "GaussianMixture":
        """From pi (K,) and the tensors of K Gaussians, stacked; zeros fill up the shorter ranks.

        Raises:
            ValueError: the counts differ, pi holds no weights, or as `Gaussian.from_tensors`.
        """
        names, weights = ("mu", "U", "lambdas"), tensors["pi"]
        parts = [tensors[name] for name in names]
        if weights.ndim != 1 or any(part.shape[:1] != weights.shape for part in parts):
            raise ValueError("pi, mu, U and lambdas do not count the same components")
        if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > WEIGHT_TOLERANCE:
            raise ValueError("pi: expected positive weights of sum 1")
        rows = (dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True))
        return cls(weights.double(), tuple(map(Gaussian.from_tensors, rows)))

    def tensors(self) -> dict[str, Tensor]:
        """As `from_tensors` takes them."""
        parts = [each.tensors() for each in self.components]
        stacks = {name: _stacked([part[name] for part in parts]) for name in parts[0]}
        return {"pi": self.weights.double(), **stacks}

    def rescale(self, factor: float) -> "GaussianMixture":
        return GaussianMixture(self.weights, tuple(p.rescale(factor) for p in self.components))

    @property
    def dim(self) -> int:
        return self.components[0].dim

    def to(self, x: Tensor) -> "GaussianMixture":
        return GaussianMixture(self.weights.to(x), tuple(part.to(x) for part in self.components))

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) from the mixture with sigma^2 I added to each covariance."""
        edges = self.weights.double().cpu().cumsum(0)[:-1]
        uniform = torch.rand(count, dtype=torch.float64, generator=generator)
        chosen = torch.bucketize(uniform, edges)
        drawn = self.components[0].mean.new_empty(count, self.dim)
        for number, component in enumerate(self.components):
            own = chosen == number
            drawn[own] = component.sample(int(own.sum()), sigma, generator)
        return drawn

    def gaussian(self) -> Gaussian:
        """The Gaussian of its mean and covariance, whose roots are side by side: (D, sum r + K)."""
        means = torch.stack([part.mean for part in self.components])
        mean = self.weights @ means
        shares = self.weights.sqrt()
        roots = [part.basis * part.eigenvalues.sqrt() for part in self.components]
        within = [share * root for share, root in zip(shares, roots, strict=True)]
        axes = torch.cat([*within, shares * (means - mean).T], 1)
        basis, lengths, _ = torch.linalg.svd(axes, full_matrices=False)
        return Gaussian(mean, basis, lengths**2).truncated()

    def posterior(self, x: Tensor, sigma: Tensor | float) -> Posterior:
        """Denoised image (B, *S), log density (B,) in nats and responsibilities (B, K).

        The components come one after the other.

        Raises:
            ValueError: sigma is 0 and a component has no density.
        """
        wide = single(x)
        log_prob = torch.full_like(wide.flatten(1)[:, 0], -torch.inf)
        denoised, joint = torch.zeros_like(wide), []
        for log_weight, component in zip(self.weights.to(wide).log(), self.components, strict=True):
            part = component.posterior(wide, sigma)
            joint.append(log_weight + part.log_prob)
            log_prob = torch.logaddexp(log_prob, joint[-1])
            share = expand((joint[-1] - log_prob).exp(), wide)
            denoised = denoised + share * (part.denoised - denoised)
        logits, denoised = torch.stack(joint, 1), denoised.to(x.dtype)
        return Posterior(denoised, logits.logsumexp(1), responsibilities=logits.softmax(1))


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Stack along a new first axis; zeros fill up shorter last axes."""
    longest = max(value.shape[-1] for value in values)
    return torch.stack([pad(value, (0, longest - value.shape[-1])) for value in values])

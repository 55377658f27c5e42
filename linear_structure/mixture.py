"""Gaussian mixtures: each component a `Gaussian` of any rank, so a noised one is one too.

    D(x, sigma) = sum_k w_k D_k(x, sigma)
    w           = softmax_k(log pi_k + log N(x; mu_k, Sigma_k + sigma^2 I))

The Gaussian's thin form is Woodbury's identity and the determinant lemma at once; the weights stay
in the log domain. One component is the Gaussian; components of rank 0 are a point cloud.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linear_structure.denoise import expand
from linear_structure.gaussian import Gaussian


@dataclass(frozen=True)
class GaussianMixture:
    """`sum_k weights_k N(mean_k, Sigma_k)`.

    Attributes:
        weights: (K,), positive, sum 1.
        components: K Gaussians of one dimension.
    """

    weights: Tensor
    components: tuple[Gaussian, ...]

    def to(self, x: Tensor) -> "GaussianMixture":
        """The same mixture in the dtype and on the device of x."""
        components = tuple(component.to(x) for component in self.components)
        return GaussianMixture(self.weights.to(x), components)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Posterior mean of the data: x (B, *S), sigma () or (B,) -> (B, *S)."""
        wide = _wide(x)
        log_prob = torch.full_like(wide.flatten(1)[:, 0], -torch.inf)
        denoised = torch.zeros_like(wide)
        for log_weight, component in zip(self._log_weights(wide), self.components, strict=True):
            log_k, denoised_k = component.posterior(wide, sigma)
            total = torch.logaddexp(log_prob, log_weight + log_k)
            share = expand((log_weight + log_k - total).exp(), wide)
            denoised = denoised + share * (denoised_k - denoised)
            log_prob = total
        return denoised.to(x.dtype)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density in nats of the noised data at x (B, *S): (B,)."""
        return self._joint(x, sigma).logsumexp(1)

    def responsibilities(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Posterior probability of each component: (B, K)."""
        return self._joint(x, sigma).softmax(1)

    def _joint(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        x = _wide(x)
        terms = [component.log_prob(x, sigma) for component in self.components]
        return self._log_weights(x) + torch.stack(terms, 1)

    def _log_weights(self, x: Tensor) -> Tensor:
        return self.weights.to(x).log()


def _wide(x: Tensor) -> Tensor:
    """x in float32 at least: log densities are in the thousands."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cluster(samples: Tensor, components: int, seed: int = 0) -> Tensor:
    """k-means labels (n,) int64 of samples (n, D), the same for the same seed.

    Raises:
        ValueError: more components than samples.
    """
    if not 1 <= components <= len(samples):
        raise ValueError(f"{components} components cannot be fitted to {len(samples)} samples")
    from sklearn.cluster import KMeans  # takes over a second, and only this needs it

    means = KMeans(components, n_init=1, random_state=seed)
    labels = means.fit_predict(samples.flatten(1).numpy().astype(np.float32))
    return torch.from_numpy(labels).long()


def fit(samples: Tensor, labels: Tensor, rank: int | None = None) -> GaussianMixture:
    """One component of at most `rank` directions for each label: its share, mean, covariance.

    Args:
        samples: (n, D), in the units of x.
        labels: (n,) int64; the components come in ascending order of the labels.
    """
    groups = [samples[labels == label] for label in labels.unique()]
    weights = torch.tensor([len(group) for group in groups], dtype=torch.float64) / len(samples)
    components = (Gaussian.from_samples(group, rank) for group in groups)
    return GaussianMixture(weights, tuple(components))

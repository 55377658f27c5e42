"""What codes hold, where a head looks for it, and what linear theory expects of them.

Attention and factors.

    profile         how much a head takes from each level, of a set of images
    JSD(p, q)       H((p + q) / 2) - (H(p) + H(q)) / 2 with the entropy H in bits: 0 to 1

Mutual information, in nats.

    MINE      sup_T  E_joint T - ln E_product e^T  over networks T (Belghazi et al. 2018)
    copula    -1/2 ln(det R / (det R_a det R_b))  of normal scores, R their correlations: exact
              where some monotone map of each number makes them jointly Gaussian

Linear theory. Gaussian data, U diag(lam) U', given x_sigma, vary with P = lam sigma^2 / (lam +
sigma^2) along U, whatever x_sigma is. A code A x_0 lowers the Bayes risk sum P by
tr(A P^2 A' (A P A')^-1), at most by the d largest P (Ky Fan): those of the first d principal
components, the same at every sigma. A trajectory of linear codes of Gaussian data holds no more
than one level of it. What tells component d from d + 1 is the difference of their P, which vanishes
as sigma^4.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.linalg import subspace_angles
from scipy.special import ndtri
from torch import Generator, Tensor, nn
from tqdm import trange

from edm.representation.heads import Attentive
from edm.training.state import mixed
from linear_structure.gaussian import Gaussian
from linear_structure.system.errors import UsageError

ROWS = 1024  # images that a head reads at once
SHIFTS = 8  # pairings of held-out rows that stand for the product
DETERMINED = 1e-12  # 1 - rho^2 below this is none


@torch.no_grad()
def profile(head: Attentive, z: Tensor, visible: Tensor | None = None) -> Tensor:
    """Mean weight of each level over images and heads of attention: (K,) float64.

    It tells where a head looks, not what it would miss: hide levels to find that.

    Args:
        head: as trained.
        z: codes (n, K, d), standardised as those it learnt from.
        visible: (K,) bool, the levels that are shown; None: all.
    """
    sums = [head.weights(rows, visible).double().sum((0, 1)) for rows in z.split(ROWS)]
    return torch.stack(sums).sum(0) / (head.heads * len(z))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Divergence in bits of distributions (..., K) with sums 1: (...), from 0 to 1."""
    middle, entropy = (p + q) / 2, torch.special.entr
    nats = (entropy(middle) - (entropy(p) + entropy(q)) / 2).sum(-1)
    return (nats / math.log(2)).clamp(0, 1)


@dataclass(frozen=True)
class Mine:
    """How a network is trained to tell pairs from strangers.

    Attributes:
        width: of its two hidden layers.
        decay: of the moving average of E e^T in the gradient, in place of a batch's own, which
            would bias it.
        held_out: share of the rows that it never learns from.
    """

    steps: int = 2000
    batch: int = 256
    width: int = 128
    learning_rate: float = 5e-4
    decay: float = 0.99
    held_out: float = 0.2


class Information(NamedTuple):
    """Mutual information in nats.

    Attributes:
        held_out: a lower bound but for the noise of few rows, from rows that were not learnt from.
        training: mean over the last quarter of the steps; far above it, pairs were learnt by heart.
    """

    held_out: float
    training: float


def mutual_information(
    a: Tensor, b: Tensor, recipe: Mine, seed: int, source: Tensor | None = None
) -> Information:
    """MINE of rows (n, d_a) and (n, d_b). Where it is infinite, it grows with the steps.

    Equal arguments, on one machine and with as many threads, give equal bits. The global generator
    is left as it was.

    Args:
        source: (n,) what each row was made from; rows of one source are held out together. None:
            each row stands alone.

    Raises:
        UsageError: the rows are not as many, or fewer than two are held out or left.
    """
    a, b = _scaled(a), _scaled(b)
    if len(a) != len(b):
        raise UsageError(f"{len(a)} rows and {len(b)}: expected as many, in pairs")
    device = a.device
    known, kept = _cut(torch.arange(len(a)) if source is None else source, recipe.held_out, seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(mixed(seed))
        critic = _critic(a.shape[1] + b.shape[1], recipe.width).to(a)
        training = _learn(critic, a[known], b[known], recipe)
    return Information(_held_out(critic, a[kept], b[kept]), training)


def _scaled(x: Tensor) -> Tensor:
    """(n, d) with mean 0 and variance 1 of each number."""
    variance, mean = torch.var_mean(x.double(), dim=0)
    return ((x - mean) * torch.where(variance > 0, variance.rsqrt(), 1)).float()


def _cut(source: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to measure on, in random order."""
    sources, of_row = source.cpu().unique(return_inverse=True)
    generator = Generator().manual_seed(mixed(seed, len(sources)))
    kept = torch.randperm(len(sources), generator=generator) < round(share * len(sources))
    order = torch.randperm(len(source), generator=generator)
    apart = kept[of_row[order]]
    known, held_out = order[~apart], order[apart]
    if min(len(known), len(held_out)) < 2:
        raise UsageError(
            f"{len(held_out)} of {len(source)} rows would be held out: expected two at least, "
            "and two to learn from"
        )
    return known, held_out


def _critic(dim: int, width: int) -> nn.Sequential:
    hidden = [nn.Linear(dim, width), nn.ELU(), nn.Linear(width, width), nn.ELU()]
    return nn.Sequential(*hidden, nn.Linear(width, 1), nn.Flatten(0))


def _log_mean(values: Tensor) -> Tensor:
    """`ln mean e^values`: ()."""
    return values.logsumexp(0) - math.log(len(values))


def _learn(critic: nn.Module, a: Tensor, b: Tensor, recipe: Mine) -> float:
    """Train in place; the mean bound of a batch over the last quarter of the steps."""
    optimizer = torch.optim.Adam(critic.parameters(), recipe.learning_rate)
    kept, new = math.log(recipe.decay), math.log1p(-recipe.decay)
    average: Tensor | None = None
    bounds = []
    for _ in trange(recipe.steps, unit="step", leave=False):
        own, other = torch.randint(len(a), (2, recipe.batch), device="cpu").to(a.device)
        pairs = torch.cat([a[own], a[own]]), torch.cat([b[own], b[other]])
        joint, product = critic(torch.cat(pairs, dim=1)).chunk(2)
        level = _log_mean(product.detach())
        average = level if average is None else torch.logaddexp(average + kept, level + new)
        optimizer.zero_grad()
        ((product - average).exp().mean() - joint.mean()).backward()
        optimizer.step()
        bounds.append(joint.detach().mean() - level)
    return float(torch.stack(bounds[-max(1, recipe.steps // 4) :]).double().mean())


@torch.no_grad()
def _held_out(critic: nn.Module, a: Tensor, b: Tensor) -> float:
    """The bound on pairs of rows, and on strangers from cyclic shifts of one against the other."""
    shifts = range(1, min(SHIFTS, len(a) - 1) + 1)
    joint = critic(torch.cat([a, b], dim=1)).double()
    product = [critic(torch.cat([a, b.roll(shift, 0)], dim=1)).double() for shift in shifts]
    return float(joint.mean() - _log_mean(torch.cat(product)))


def copula_information(a: Tensor, b: Tensor) -> float:
    """Mutual information in nats of rows (n, d_a) and (n, d_b) if their copula is Gaussian.

    `-1/2 sum ln(1 - rho_i^2)` of the canonical correlations of their normal scores: infinite where
    a number of one follows from the other. Estimated from n rows it lies about d_a d_b / (2 n) too
    high.

    Raises:
        UsageError: the rows are not as many of each.
    """
    if len(a) != len(b):
        raise UsageError(f"{len(a)} rows and {len(b)}: expected as many, in pairs")
    correlations = torch.linalg.svdvals(_axes(a).T @ _axes(b))
    left = 1 - correlations.clamp(max=1) ** 2
    return float(-torch.where(left > DETERMINED, left, 0).log().sum() / 2)


def _axes(x: Tensor) -> Tensor:
    """Orthonormal axes (n, r) of the normal scores of (n, d), r at most d."""
    from scipy.stats import rankdata  # takes half a second

    ranks = rankdata(x.cpu().numpy(), axis=0)
    scores = torch.from_numpy(ndtri(ranks / (len(x) + 1)))
    axes, sizes, _ = torch.linalg.svd(scores - scores.mean(0), full_matrices=False)
    return axes[:, sizes > 1e-6 * math.sqrt(len(x))]


def normalised(information: Tensor) -> Tensor:
    """`I_ij / sqrt(I_ii I_jj)` of (K, K).

    The information of codes in themselves is infinite: its estimate, and so this, is a function of
    how long the estimate was trained.

    Raises:
        UsageError: the diagonal is not finite and above 0.
    """
    own = information.diagonal()
    if not bool(((own > 0) & own.isfinite()).all()):
        raise UsageError(
            f"information of levels in themselves is {own.tolist()}: expected finite, above 0"
        )
    return information / (own[:, None] * own).sqrt()


def posterior_variances(eigenvalues: Tensor, sigma: Tensor) -> Tensor:
    """P of Gaussian data given x_sigma: eigenvalues (r,), sigma (*S,) -> (*S, r)."""
    square = sigma.unsqueeze(-1) ** 2
    return eigenvalues * square / (eigenvalues + square)


def linear_gain(eigenvalues: Tensor, sigma: Tensor, A: Tensor) -> Tensor:
    """How much a code A x_0 lowers the Bayes risk at sigma: `tr(A P^2 A' (A P A')^-1)`.

    Args:
        eigenvalues: (r,) of the covariance.
        sigma: (*S,) above 0.
        A: (d, r), or (*S, d, r), of full rank, in coordinates along the eigenvectors.

    Returns:
        (*S,), in squared units of the data.
    """
    weighted = A * posterior_variances(eigenvalues, sigma).unsqueeze(-2)
    return (torch.linalg.solve(weighted @ A.mT, weighted) * weighted).sum((-2, -1))


def pressure(eigenvalues: Tensor, sigma: Tensor, dim: int) -> Tensor:
    """How much more component d is worth to a code than d + 1: (*S,), of sigma (*S,).

    `sigma^4 (lam_d - lam_{d+1}) / ((lam_d + sigma^2) (lam_{d+1} + sigma^2))`.

    Raises:
        UsageError: d is below 1, or there is no component d + 1.
    """
    if not 1 <= dim < len(eigenvalues):
        raise UsageError(
            f"a code of {dim} numbers of {len(eigenvalues)} components: expected 1 or more, fewer"
        )
    upper, lower, square = eigenvalues[dim - 1], eigenvalues[dim], sigma**2
    return square / (upper + square) * (square / (lower + square)) * (upper - lower)


def principal_angles(A: Tensor, gaussian: Gaussian) -> Tensor:
    """Angles in degrees, the largest first, of a code A (d, D) to the first d components: (d,).

    They are taken between rows of A U, inside the support of the Gaussian: a code is free to be
    anything where the data do not vary.
    """
    inside = A.double() @ gaussian.basis.double()
    first = torch.eye(inside.shape[1], len(A), dtype=torch.float64)
    return torch.from_numpy(subspace_angles(inside.T.numpy(), first.numpy())).rad2deg()


def learned_codes(
    gaussian: Gaussian, sigma: Tensor, dim: int, steps: int, seed: int, rate: float = 0.03
) -> Tensor:
    """Linear codes that gradient descent on the Bayes risk finds, each at its level.

    Adam on the closed risk, from one random start for all levels.

    Args:
        sigma: (S,) above 0.
        dim: numbers of each code.
        rate: of Adam.

    Returns:
        A (S, dim, D) float64, in the data's coordinates.

    Raises:
        UsageError: dim is below 1 or not below the rank.
    """
    eigenvalues, basis = gaussian.eigenvalues.double(), gaussian.basis.double()
    pressure(eigenvalues, sigma, dim)
    generator = Generator().manual_seed(seed)
    draw = torch.randn(dim, gaussian.dim, generator=generator, dtype=torch.float64)
    start = draw * gaussian.dim**-0.5
    A = start.repeat(len(sigma), 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([A], rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-linear_gain(eigenvalues, sigma.double(), A @ basis).sum()).backward()
        optimizer.step()
    return A.detach()

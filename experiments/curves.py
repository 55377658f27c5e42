"""What curves of codes hold and where heads look for it: the numbers behind the pictures.

    accuracies    of each level's own head, and of those that read all levels, by factor and seed
    attention     how much it takes from each level, and what it misses when that level is hidden
    divergence    of attention between factors, and between seeds of one factor, in bits
    information   of levels in each other, in nats: by MINE and by a Gaussian copula
    theory        what a linear code of Gaussian data of these moments would hold

Attention says where a head looks, hiding what it would miss. MINE of codes in themselves estimates
what is infinite, so its normalised map depends on the steps of training, which stand beside it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, combinations_with_replacement
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from edm.representation.analysis import (
    Mine,
    copula_information,
    jensen_shannon,
    learned_codes,
    linear_gain,
    mutual_information,
    normalised,
    posterior_variances,
    pressure,
    principal_angles,
)
from experiments.probe import ATTENTION, GRU, KEPT, MIXED, ONE, REPEATED, Study, Subject, measured
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8, to_uint8
from linear_structure.system.errors import UsageError
from linear_structure.system.options import plain
from linear_structure.system.store import kept

READ = (ONE, MIXED, GRU, ATTENTION, REPEATED)
STEPS = (300, 3000)  # of gradient descent on the risk of a linear code
ROUNDING = 1e-16  # of a share
LEVELS = 6  # at most, among which MINE is measured


def numbers(study: Study, mine: Mine) -> dict[str, Any]:
    """All of the above, as JSON values; measured once, with a bar.

    Information and theory are those of the first pair.

    Raises:
        UsageError: the codes have one level.
    """
    subject = study.first
    if subject.levels < 2:
        raise UsageError(f"{subject.folder} has codes at one level: expected two or more")
    return {
        "sigmas": subject.codes.sigmas.tolist(),
        "dim": subject.dim,
        "seeds": [each.seed for each in study.subjects],
        "factors": (read := readings(study)),
        "divergence": divergences({task: each["profile"] for task, each in read.items()}),
        "information": information(subject, mine),
        "theory": theory(subject),
    }


def readings(study: Study) -> dict[str, dict[str, Any]]:
    """Of each task: shares of test images by head, a list a seed; profiles and hidden levels."""
    asked = [(task, head) for task in study.tasks for head in READ]
    bar = tqdm(asked, unit="head", disable=None)
    found: dict[str, dict[str, Any]] = {task: {} for task in study.tasks}
    for task, head in bar:
        bar.set_description(f"{task}, {head}")
        of_seed = [measured(each, task, head, study.recipe) for each in study.subjects]
        found[task][head] = [outputs["test"] for outputs in of_seed]
        if head == ATTENTION:
            for name in ("profile", "hidden"):
                found[task][name] = [outputs[name] for outputs in of_seed]
    return found


@torch.no_grad()
def reconstructions(subject: Subject, count: int, levels: Sequence[int]) -> list[Tensor]:
    """Rows of uint8 (count, C, H, W): test images; then of each level denoised, told their codes
    and not."""
    pair, factors = subject.pair, subject.factors
    test = factors.within("test")
    spread = torch.linspace(0, len(test) - 1, count).long()
    clean = from_uint8(test[spread]).to(pair.network.device)
    noise = torch.randn(clean.shape, generator=Generator().manual_seed(0)).to(clean)
    rows = [clean]
    for sigma in subject.codes.sigmas[list(levels)].to(clean):
        noised = clean + sigma * noise
        rows += [pair.bind(clean, sigma)(noised, sigma), pair.network(noised, sigma)]
    return [to_uint8(row).cpu() for row in rows]


def divergences(profiles: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Jensen-Shannon divergence in bits of attention profiles.

    Args:
        profiles: of each factor, a list of each seed.

    Returns:
        `factors`, their names; `between` them, means over seeds; `seeds`, the mean over pairs of
        seeds of one factor, None of a single seed.
    """
    by_factor = {name: torch.tensor(each).double() for name, each in profiles.items()}
    between = [
        [float(jensen_shannon(a, b).mean()) for b in by_factor.values()] for a in by_factor.values()
    ]
    pairs = [
        float(jensen_shannon(*pair))
        for each in by_factor.values()
        for pair in combinations(each, 2)
    ]
    return {
        "factors": list(by_factor),
        "between": between,
        "seeds": fmean(pairs) if pairs else None,
    }


def information(subject: Subject, mine: Mine) -> dict[str, Any]:
    """Between levels of one pair, in nats; None is infinite.

    Returns:
        `copula` (K, K) of all levels; of those `chosen`, `held_out` and `training` estimates of
        MINE; `normalised`, of the latter, which depends on its `steps`.
    """
    z, count = subject.codes.z, subject.levels
    chosen = _spread(count)
    cells = list(combinations_with_replacement(chosen, 2))
    bar = tqdm(cells, "information", unit="pair", disable=None)
    found = {cell: _mine(subject, cell, mine) for cell in bar}
    held_out, training = (
        _square(chosen, {c: each[i] for c, each in found.items()}) for i in (0, 1)
    )
    every = combinations_with_replacement(range(count), 2)
    copula = {(i, j): copula_information(z[:, i], z[:, j]) for i, j in every}
    return {
        "copula": _finite(_square(range(count), copula)),
        "chosen": chosen,
        "held_out": held_out.tolist(),
        "training": training.tolist(),
        "normalised": normalised(training).tolist(),
        "steps": mine.steps,
    }


def _spread(count: int) -> list[int]:
    """Up to `LEVELS` of so many levels, the first and the last among them."""
    places = torch.linspace(0, count - 1, min(count, LEVELS))
    return [round(place) for place in places.tolist()]


def _mine(subject: Subject, cell: tuple[int, int], mine: Mine) -> list[float]:
    """The held-out and the training estimate."""
    codes, (i, j) = subject.codes, cell
    inputs = {"codes": codes.digest, "levels": [i, j], "recipe": plain(mine), "seed": subject.seed}
    path = subject.folder / KEPT / "information" / f"{i}-{j}.json"
    given = (codes.z[:, i], codes.z[:, j], mine, subject.seed, codes.source)
    measure = lambda: list(mutual_information(*given))  # noqa: E731
    return kept(path, {**inputs, **subject.machine.inputs}, measure)


def _square(levels: Iterable[int], values: Mapping[tuple[int, int], float]) -> Tensor:
    """A symmetric matrix of its upper triangle."""
    places = list(levels)
    rows = [[values[min(i, j), max(i, j)] for j in places] for i in places]
    return torch.tensor(rows, dtype=torch.float64)


def _finite(values: Tensor) -> list[list[float | None]]:
    return [[v if math.isfinite(v) else None for v in row] for row in values.tolist()]


def theory(subject: Subject) -> dict[str, Any]:
    """Linear codes of the Gaussian of the training images, as gradient descent finds them.

    Returns:
        `steps`, numbers of them; for each, a list of all levels: `angles` in degrees, the largest
        to the first principal components, and `missed`, the share of what those would gain; and of
        all levels `gap`, what tells the last component from the next, over the posterior variance:
        None where there is no next component. Angles count directions alike in which images vary
        much or hardly at all, gains do not.
    """
    inputs = {
        "images": subject.codes.inputs["images"],
        "sigmas": subject.codes.sigmas.tolist(),
        "dim": subject.dim,
        "steps": list(STEPS),
    }
    path = subject.folder / KEPT / "theory.json"
    return kept(path, {**inputs, **subject.machine.inputs}, partial(_theory, subject))


def _theory(subject: Subject) -> dict[str, Any]:
    known = subject.factors.within("train")
    gaussian = Gaussian.from_samples(from_uint8(known, torch.float64).flatten(1))
    sigmas, dim, lam = subject.codes.sigmas, subject.dim, gaussian.eigenvalues.double()
    found: dict[str, Any] = {"steps": list(STEPS), "angles": [], "missed": [], "gap": None}
    if dim >= len(lam):
        return found
    variances = posterior_variances(lam, sigmas)
    for steps in tqdm(STEPS, "theory", unit="run", disable=None):
        codes = learned_codes(gaussian, sigmas, dim, steps, seed=0)
        found["angles"].append([float(principal_angles(each, gaussian)[0]) for each in codes])
        gain = linear_gain(lam, sigmas, codes @ gaussian.basis.double())
        missed = 1 - gain / variances[:, :dim].sum(-1)
        found["missed"].append(missed.clamp(min=ROUNDING).tolist())
    return {**found, "gap": (pressure(lam, sigmas, dim) / variances.sum(-1)).tolist()}

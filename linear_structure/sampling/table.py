"""The table of samplers: all that a command, a table or a figure asks of one, in a row each.

    | name      | what it is                                           | grid      | calls         |
    | heun      | Karras et al. 2022, algorithm 1                      | edm       | 2 (N - k) - 1 |
    | dpmpp_2m  | Lu et al. 2022                                       | edm       | N - k         |
    | unipc     | Zhao et al. 2023                                     | edm       | N - k         |
    | ancestral | DDPM: `chains.posterior`, or `chains.beta`           | edm       | N - k         |
    | ddim      | `chains.ddim`                                        | edm       | N - k         |
    | pc        | `chains.reverse`, M corrector steps before each step | geometric | (1 + M)(N - k)|
    | annealed  | Langevin dynamics, T steps at a level                | geometric | T (N - k) + 1 |

with N levels, of which k are skipped. Rules, and the step of `annealed`, belong to the full grid;
the noise of skipped levels is drawn and dropped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from linear_structure.denoise import Denoiser
from linear_structure.sampling import chains
from linear_structure.sampling.chains import Rule
from linear_structure.sampling.langevin import Corrector, annealed
from linear_structure.sampling.samplers import Noise, Step, discard, dpmpp_2m, heun, unipc
from linear_structure.sampling.scales import step_ratio
from linear_structure.system.errors import UsageError
from linear_structure.system.options import choice, option, parse

UNEVEN = 1.01  # of ratios of neighbouring levels, the largest over the smallest


@dataclass(frozen=True)
class Settings:
    """What some samplers can be told; each value belongs to the rows that use it."""

    variance: str = choice("posterior", "beta", meaning="ancestral: of its noise (posterior)")
    eta: float = option(0.5, 0, 1, "ddim: share of the posterior's noise (default: 0.5)")
    corrector_steps: int = option(1, 1, 1000, "pc: Langevin steps at each level (default: 1)")
    corrector_ratio: float = option(0.16, 1e-6, 0.999, "pc: of a step to its level (default: 0.16)")
    level_steps: int = option(3, 1, 1000, "annealed: Langevin steps at each level (default: 3)")


Run = Callable[[Denoiser, Tensor, Tensor, int, Noise | None, Settings], Iterator[Step]]
"""Denoiser, x (B, *S) at sigmas[skip], the full grid (N + 1,), skip, noise, settings -> the Steps
left."""

Calls = Callable[[int, int, Settings], int]
"""Steps, skip, settings -> network calls of a sample, its NFE."""


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    Attributes:
        name: on command lines and in results.
        title: in figures.
        stochastic: whether it draws noise; one that does not is an ODE solver.
        discretization: of the grid that it is made for, as `Ablation` names them.
        uses: the names of its settings.
        derived: what else it depends on that the full grid (N + 1,) and the settings decide.
    """

    name: str
    title: str
    run: Run
    calls: Calls
    stochastic: bool = False
    discretization: str = "edm"
    uses: tuple[str, ...] = ()
    derived: Callable[[Tensor, Settings], dict[str, float]] = lambda sigmas, settings: {}

    def inputs(self, sigmas: Tensor, settings: Settings) -> dict[str, Any]:
        """What its results depend on, beside its name and the full grid (N + 1,)."""
        used = {name: getattr(settings, name) for name in self.uses}
        return {**({"settings": used} if used else {}), **self.derived(sigmas, settings)}


def _solver(walk: Callable[[Denoiser, Tensor, Tensor], Iterator[Step]]) -> Run:
    """A sampler that takes what is left of the grid, and nothing else."""
    return lambda denoise, x, sigmas, skip, noise, settings: walk(denoise, x, sigmas[skip:])


def _chain(
    rules: Callable[[Tensor, Settings], Sequence[Rule]],
    corrector: Callable[[Settings], Corrector | None] = lambda settings: None,
    draws: Callable[[Settings], int] = lambda settings: 1,
) -> Run:
    """A chain of the full grid's rules, of which the first, with their draws, are skipped."""
    return lambda denoise, x, sigmas, skip, noise, settings: chains.chain(
        denoise,
        x,
        rules(sigmas, settings)[skip:],
        _left(noise, x, skip * draws(settings)),
        corrector(settings),
    )


def _refuse_equal(sigmas: Tensor, settings: Settings) -> dict[str, float]:
    """A chain depends on nothing more.

    Raises:
        UsageError: two neighbours of the full grid (N + 1,) are equal.
    """
    if equal := int((sigmas.diff() == 0).sum()):
        raise UsageError(
            f"a chain has no step between equal levels, and {equal} of these {len(sigmas) - 1} "
            "equal the one before, as the network rounds them: take fewer steps, or heun"
        )
    return {}


def _level_ratio(sigmas: Tensor, settings: Settings) -> dict[str, float]:
    """The step of technique 4 for the ratio of neighbouring levels, of the full grid (N + 1,).

    Raises:
        UsageError: there is no such ratio, or it is too near to 1 for a step.
    """
    if len(sigmas) < 3:
        raise UsageError("annealed needs a grid of 2 levels or more: its step is of their ratio")
    ratios = sigmas[:-2] / sigmas[1:-1]
    low, high = float(ratios.min()), float(ratios.max())
    if high > UNEVEN * low:
        raise UsageError(
            "annealed has one step for levels evenly spaced in log sigma: the ratio of neighbours "
            f"in this grid goes from {low:.4g} to {high:.4g}"
        )
    try:
        return {"ratio": step_ratio(float(ratios[0]), settings.level_steps).ratio}
    except ValueError as error:
        raise UsageError(f"annealed has no step for these levels: {error}") from error


def _left(noise: Noise | None, x: Tensor, draws: int) -> Noise:
    """The noise after that of skipped levels, so many draws, is dropped; ValueError for None."""
    if noise is None:
        raise ValueError("this sampler adds noise: noise(x) is needed")
    discard(noise, x.double(), draws)
    return noise


def _once(steps: int, skip: int, settings: Settings) -> int:
    return steps - skip


SAMPLERS = {
    row.name: row
    for row in (
        Sampler("heun", "Heun", _solver(heun), lambda steps, skip, _: 2 * (steps - skip) - 1),
        Sampler("dpmpp_2m", "DPM-Solver++(2M)", _solver(dpmpp_2m), _once),
        Sampler("unipc", "UniPC-2", _solver(unipc), _once),
        Sampler(
            "ancestral",
            "ancestral (DDPM)",
            _chain(lambda sigmas, settings: chains.ANCESTRAL[settings.variance](sigmas)),
            _once,
            stochastic=True,
            uses=("variance",),
            derived=_refuse_equal,
        ),
        Sampler(
            "ddim",
            "DDIM",
            _chain(lambda sigmas, settings: chains.ddim(sigmas, settings.eta)),
            _once,
            stochastic=True,
            uses=("eta",),
            derived=_refuse_equal,
        ),
        Sampler(
            "pc",
            "predictor-corrector",
            _chain(
                lambda sigmas, _: chains.reverse(sigmas),
                lambda settings: Corrector(settings.corrector_ratio, settings.corrector_steps),
                lambda settings: 1 + settings.corrector_steps,
            ),
            lambda steps, skip, settings: (1 + settings.corrector_steps) * (steps - skip),
            stochastic=True,
            discretization="ve",
            uses=("corrector_steps", "corrector_ratio"),
            derived=_refuse_equal,
        ),
        Sampler(
            "annealed",
            "annealed Langevin",
            lambda denoise, x, sigmas, skip, noise, settings: annealed(
                denoise,
                x,
                sigmas[skip:],
                settings.level_steps,
                _level_ratio(sigmas, settings)["ratio"],
                _left(noise, x, skip * settings.level_steps),
            ),
            lambda steps, skip, settings: settings.level_steps * (steps - skip) + 1,
            stochastic=True,
            discretization="ve",
            uses=("level_steps",),
            derived=_level_ratio,
        ),
    )
}
"""By name, every sampler that walks down a grid of levels with no more to set than `Settings`."""


def find(name: str) -> Sampler:
    """The sampler of this name; where there is none, a UsageError lists the known ones."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler is {name!r}: expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def chosen_settings(name: str, told: Mapping[str, Any]) -> Settings:
    """The settings of a sampler, of which some are told.

    Raises:
        UsageError: one is out of range, or belongs to another sampler.
    """
    own = SAMPLERS[name].uses if name in SAMPLERS else ()
    for each in told:
        if each not in own:
            owner = next(row.name for row in SAMPLERS.values() if each in row.uses)
            raise UsageError(
                f"--{each.replace('_', '-')} belongs to the sampler {owner}; {name} has "
                f"{', '.join(own) if own else 'no settings, for it adds no noise'}"
            )
    return parse(Settings, told, name)

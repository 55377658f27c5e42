"""The largest number of steps to skip, from a few dozen trajectories, before any distance.

    python scripts/suggest_skip.py digits
    python scripts/suggest_skip.py cifar10 --network my.pkl --parameters my_params --count 128

A measured sweep of the preset, where there is one, is named beside it.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from typing import Any

import torch
from tqdm import tqdm

from experiments import loading, options, results
from experiments.pooled import pool
from experiments.presets import Preset
from experiments.sampling import Sampling, grid_of
from linear_structure.sampling.seeds import SeedRange
from linear_structure.suggestion import STRESS, TOLERANCE, Effect, Trial, effects
from linear_structure.system.errors import UsageError, run_command

COUNT = 64
UNSEEN = (0.05, 0.01)  # weights of modes of which it is said how likely all seeds miss them


def _parse() -> argparse.Namespace:
    parser = options.command(__doc__, "suggest_skip")
    told = f"trajectories, from the preset's first seed on (default {COUNT}); or name --seeds"
    parser.add_argument("--count", type=int, help=told)
    allowed = f"change of a finished sample that is allowed (default {TOLERANCE})"
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=allowed)
    return parser.parse_args()


def check_sampler(name: str) -> None:
    """Refuse (UsageError) a sampler that nothing here would sample with."""
    if name != "heun":
        raise UsageError(
            f"--sampler {name} would change nothing: skips are tried by Heun's method, and what it "
            "allows is said of no other sampler: expected heun"
        )


def chosen_seeds(typed: argparse.Namespace, preset: Preset) -> SeedRange:
    """The seeds that were typed, or as many as were asked for; UsageError for both, or too few."""
    if typed.count is not None and typed.seeds is not None:
        raise UsageError("--count would change nothing: --seeds says how many")
    first, count = preset.seeds.first, typed.count if typed.count is not None else COUNT
    seeds = typed.seeds or SeedRange(first, first + count - 1)
    if seeds.count < 2:
        raise UsageError(f"{seeds.count} seeds: --count or --seeds must be above 1")
    return seeds


def tried(sampling: Sampling, seeds: SeedRange, tolerance: float) -> list[Effect]:
    """The effects of skips from the largest one down, with a bar."""
    (numbers,) = seeds.blocks(seeds.count)
    _, start, labels, _ = sampling.drawn(numbers)
    network, teleport, sigmas = sampling.network, sampling.teleport, sampling.sigmas
    assert teleport is not None
    trial = Trial(
        lambda own: network if own is None else network.bind(own), teleport, start, sigmas, labels
    )
    bar = tqdm(effects(trial, tolerance), desc="skips", unit=" skips", leave=False)
    with torch.inference_mode():
        return list(bar)


def measured(preset: Preset, settled: dict[str, Any]) -> tuple[str, str]:
    """What the latest sweep of the preset says, if it was of these settings.

    Returns:
        A warning, to be read first, and what it measured, each a sentence or nothing.
    """
    try:
        sweep = results.latest_sweep(results.ROOT, preset.name)
        other = [name for name, value in settled.items() if sweep[0].inputs.get(name) != value]
        if other:
            told = f"The latest sweep was of another {', '.join(other)}: nothing to compare with."
            return "", told
        together = pool(results.ROOT, sweep)
    except UsageError as error:
        return "", f"Nothing measured to compare with: {error}."
    notes = [note for note in together.notes if note != together.warning]
    return together.warning, " ".join([*notes, together.verdict]).strip()


def show(preset: Preset, found: list[Effect], seeds: SeedRange, tolerance: float) -> None:
    """Print each skip's effect, the suggestion, and what it is worth."""
    print(f"Change of {seeds.count} finished samples (seeds {seeds}) whose states are pushed")
    print(f"{STRESS:g} times as far as the teleport misses, in units of their spread:")
    print("skip   sigma  change")
    for effect in found:
        told = f"{effect.size:.3f}" if effect.size <= tolerance else f"above {tolerance:g}"
        print(f"{effect.skip:4d}  {effect.sigma:6.3g}  {told}")
    best = found[-1].skip
    calls, full = preset.calls(best), preset.calls(0)
    end = ", the highest there is" if best == preset.steps - 1 else ""
    said = f"Skip {best} of {preset.steps} steps{end}: NFE {calls}, not {full}."
    print(said if best else "Skip nothing: the first step is above the tolerance already.")
    print("It is careful: a change to the better counts like one to the worse.")
    missed = (f"{(1 - p) ** seeds.count:.2g} for {100 * p:g} %" for p in UNSEEN)
    print(
        f"It cannot see a mode that none of {seeds.count} seeds is near: of weight p, this has "
        f"probability (1 - p)^{seeds.count}, {', '.join(missed)}."
    )


def main() -> None:
    """Try, suggest, and name the measured knee."""
    typed = _parse()
    if not 0 < typed.tolerance <= 1:
        raise UsageError("--tolerance must be above 0 and at most 1, a spread of all samples")
    options.check_unused(typed, ("features", "reference"), "no distance is computed")
    options.check_unused(typed, ("skips",), "skips are tried from the largest one down")
    options.check_unused(typed, ("block",), "all seeds are sampled together")
    preset = options.chosen_preset(typed)
    check_sampler(preset.sampler)
    seeds = chosen_seeds(typed, preset)
    network = loading.load_network(preset, options.chosen_machine(typed, preset))
    teleport = loading.load_teleport(preset, network)
    sampling = Sampling(network, grid_of(preset, network), teleport)
    settled = {
        "network": network.digest,
        "sigmas": sampling.sigmas.tolist(),
        "sampler": preset.sampler,
        **preset.row.inputs(sampling.sigmas, preset.settings),
        **dict.fromkeys(("by_class", "solver_steps")),  # None where a sweep does not have them
        **teleport.inputs,
    }
    warning, told = measured(preset, settled)
    if warning:
        print(warning)
    show(preset, tried(sampling, seeds, typed.tolerance), seeds, typed.tolerance)
    if told:
        print(told)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The largest number of steps to skip, from a few dozen trajectories, before any distance.

    python scripts/suggest_skip.py digits
    python scripts/suggest_skip.py cifar10 --network my.pkl --parameters my_params --count 32

A measured sweep of the preset, where there is one, is named beside it.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from typing import Any

import torch
from tqdm import tqdm

from experiments import loading, options, results, tables
from experiments.presets import Preset
from experiments.sampling import Sampling, grid_of
from experiments.suggestion import TOLERANCE, Offset, best_skip, offsets, until_above, verdict
from linear_structure.system.errors import UsageError, run_command
from linear_structure.teleport import Teleport


def _parse() -> argparse.Namespace:
    parser = options.command(__doc__, "suggest_skip")
    parser.add_argument("--count", type=int, default=64, help="trajectories (default 64)")
    allowed = f"RMS deviation of a pixel, in units of sigma, that is allowed (default {TOLERANCE})"
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=allowed)
    return parser.parse_args()


def suggested(
    preset: Preset, sampling: Sampling, teleport: Teleport, count: int, tolerance: float
) -> list[Offset]:
    """The offsets up to the first skip above the tolerance, with a bar."""
    first = preset.seeds.first
    denoise, start, labels, _ = sampling.drawn(range(first, first + count))
    found = offsets(denoise, teleport, start, sampling.sigmas, labels)
    bar = tqdm(found, total=preset.steps, desc="levels", unit=" levels", leave=False)
    with torch.inference_mode():
        return until_above(bar, tolerance)


def measured(preset: Preset, settled: dict[str, Any]) -> str:
    """What the latest sweep of the preset says in a sentence, if it was of these settings."""
    try:
        sweep = results.latest_sweep(results.ROOT, preset.name)
    except UsageError as error:
        return f"Nothing measured to compare with: {error}."
    other = [name for name, value in settled.items() if sweep[0].inputs.get(name) != value]
    if other:
        return f"The latest sweep was of another {', '.join(other)}: nothing to compare with."
    distances = {row.skip: row.mean for row in tables.rows(sweep)}
    if 0 not in distances:
        return "The latest sweep has no distance without skips to compare with."
    return verdict(distances)


def show(preset: Preset, found: list[Offset], tolerance: float) -> None:
    """Print each skip's deviation, and the suggestion."""
    print("skip   sigma  deviation / sigma, RMS of a pixel, median of the seeds")
    for offset in found:
        above = f"  above {tolerance:g}" if offset.median > tolerance else ""
        print(f"{offset.skip:4d}  {offset.sigma:6.3g}  {offset.median:.5f}{above}")
    best = best_skip(found, tolerance)
    calls, full = preset.calls(best), preset.calls(0)
    end = ", the highest there is" if best == found[-1].skip else ""
    said = f"Skip {best} of {preset.steps} steps{end}: NFE {calls}, not {full}."
    print(said if best else "Skip nothing: the first step is above the tolerance already.")


def main() -> None:
    """Compare, suggest, and name the measured knee."""
    typed = _parse()
    if typed.count < 1 or not typed.tolerance > 0:
        raise UsageError("--count and --tolerance must be above 0")
    options.check_unused(typed, ("features", "reference"), "no distance is computed")
    preset = options.chosen_preset(typed)
    network = loading.load_network(preset, options.chosen_machine(typed, preset))
    teleport = loading.load_teleport(preset, network)
    sampling = Sampling(network, grid_of(preset, network))
    found = suggested(preset, sampling, teleport, typed.count, typed.tolerance)
    show(preset, found, typed.tolerance)
    settled = {
        "network": network.digest,
        "sigmas": sampling.sigmas.tolist(),
        "sampler": preset.sampler,
        **preset.row.inputs(sampling.sigmas, preset.settings),
        **dict.fromkeys(("by_class", "solver_steps")),  # None where a sweep does not have them
        **teleport.inputs,
    }
    if said := measured(preset, settled):
        print(said)


if __name__ == "__main__":
    sys.exit(run_command(main))

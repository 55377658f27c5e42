"""The largest number of steps to skip, from a few dozen trajectories, before any distance.

    python scripts/suggest_skip.py digits
    python scripts/suggest_skip.py cifar10 --network my.pkl --parameters my_params --count 32

A measured sweep of the preset, where there is one, is named beside it.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from edm.checkpoints.checkpoint import network_digest
from edm.precondition import Preconditioned
from experiments import results, settings, tables
from experiments.presets import Preset
from experiments.sampling import Sampling, grid_of, image_shape, nfe
from experiments.suggestion import TOLERANCE, Offset, best_skip, offsets, until_above, verdict
from experiments.sweep import teleport_inputs
from experiments.teleports import check_shape, flow_of, flows_of
from linear_structure.parameters import Parameters
from linear_structure.system.errors import UsageError, run_command

UNUSED = ("features", "reference")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    settings.add_preset(parser)
    settings.add_machine(parser)
    parser.add_argument("--count", type=int, default=64, help="trajectories (default 64)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help=f"RMS deviation of a pixel, in units of sigma, that is allowed (default {TOLERANCE})",
    )
    return parser.parse_args()


def suggested(
    preset: Preset,
    network: Preconditioned,
    own: Parameters,
    by_class: Mapping[int, Parameters],
    options: argparse.Namespace,
) -> list[Offset]:
    """The offsets up to the first skip above the tolerance, with a bar."""
    sigmas, flow = grid_of(preset, network), flow_of(own.model)
    device = next(network.parameters()).device
    sampling = Sampling(image_shape(network), sigmas, 0, flow, device, by_class=flows_of(by_class))
    seeds = range(preset.seeds.first, preset.seeds.first + options.count)
    denoise, start, teleport = sampling.drawn(network, seeds)
    found = offsets(denoise, teleport or flow, start, sigmas)
    bar = tqdm(found, total=preset.steps, desc="levels", unit=" levels", leave=False)
    with torch.inference_mode():
        return until_above(bar, options.tolerance)


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


def main() -> None:
    """Print each skip's deviation, the suggestion, and the measured knee."""
    options = _parse()
    if options.count < 1 or not options.tolerance > 0:
        raise UsageError("--count and --tolerance must be above 0")
    settings.check_unused(options, UNUSED, "no distance is computed")
    preset = settings.chosen_preset(options)
    device, _ = settings.chosen_device(options, preset)
    network = settings.load_network(preset, device)
    own = settings.load_parameters(preset, network)
    check_shape(own.model, network)
    by_class = settings.load_classes(preset, network)
    found = suggested(preset, network, own, by_class, options)
    print("skip   sigma  deviation / sigma, RMS of a pixel, median of the seeds")
    for offset in found:
        above = f"  above {options.tolerance:g}" if offset.median > options.tolerance else ""
        print(f"{offset.skip:4d}  {offset.sigma:6.3g}  {offset.median:.5f}{above}")
    best = best_skip(found, options.tolerance)
    calls, full = (nfe(preset.steps, skip, preset.sampler) for skip in (best, 0))
    end = ", the highest there is" if best == found[-1].skip else ""
    said = f"Skip {best} of {preset.steps} steps{end}: NFE {calls}, not {full}."
    print(said if best else "Skip nothing: the first step is above the tolerance already.")
    settled = {
        "network": network_digest(network),
        "sigmas": grid_of(preset, network).tolist(),
        "sampler": preset.sampler,
        **dict.fromkeys(("by_class", "solver_steps")),  # None where a sweep does not have them
        **teleport_inputs(own, by_class),
    }
    if said := measured(preset, settled):
        print(said)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The largest number of steps to skip, from a few dozen trajectories, before any distance.

    python scripts/suggest_skip.py digits
    python scripts/suggest_skip.py cifar10 --network my.pkl --parameters my_params --count 32

A measured sweep of the preset, where there is one, is named beside it.
"""

import argparse
import sys

import torch
from tqdm import tqdm

from experiments import report, results, settings
from experiments.presets import Preset
from experiments.sampling import Sampling, grid_of, image_shape, nfe
from experiments.suggestion import TOLERANCE, Offset, knee, offsets, within
from experiments.teleports import check_shape, flow_of, flows_of
from linear_structure.errors import UsageError, run_command


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


def suggested(preset: Preset, options: argparse.Namespace) -> list[Offset]:
    """The offsets up to the last skip within the tolerance, with a bar."""
    device, _ = settings.chosen_device(options, preset)
    network = settings.load_network(preset, device)
    own = settings.load_parameters(preset, network).model
    check_shape(own, network)
    sigmas = grid_of(preset, network)
    sampling = Sampling(
        image_shape(network),
        sigmas,
        teleport=flow_of(own),
        device=device,
        by_class=flows_of(settings.load_classes(preset, network)),
    )
    seeds = range(preset.seeds.first, preset.seeds.first + options.count)
    denoise, latents, teleport = sampling.drawn(network, seeds)
    x = latents.double() * sigmas[0]
    found = offsets(denoise, teleport or flow_of(own), x, sigmas)
    bar = tqdm(found, total=preset.steps, desc="levels", unit=" levels", leave=False)
    with torch.inference_mode():
        return within(iter(bar), options.tolerance)


def measured(preset: Preset) -> str:
    """What the latest sweep of the preset says, in one sentence."""
    try:
        rows = report.rows(results.latest_sweep(results.ROOT, preset.name))
    except UsageError as error:
        return f"Nothing measured to compare with: {error}."
    distances = {row.skip: row.mean for row in rows}
    if 0 not in distances:
        return "The latest sweep has no distance without skips to compare with."
    last = knee(distances)
    return f"Measured: the distance stays within 1.1 times that of skip 0 up to skip {last}."


def main() -> None:
    """Print each skip's deviation, the suggestion, and the measured knee."""
    options = _parse()
    if options.count < 1 or options.tolerance <= 0:
        raise UsageError("--count and --tolerance must be above 0")
    preset = settings.chosen_preset(options)
    found = suggested(preset, options)
    print("skip   sigma  deviation / sigma, RMS of a pixel, median of the seeds")
    for offset in found:
        print(f"{offset.skip:4d}  {offset.sigma:6.3g}  {offset.median:.5f}")
    best, full = found[-1].skip, nfe(preset.steps, 0)
    print(
        f"Skip {best} of {preset.steps} steps: {nfe(preset.steps, best)} network calls, not {full}."
    )
    print(measured(preset))


if __name__ == "__main__":
    sys.exit(run_command(main))

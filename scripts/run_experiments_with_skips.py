"""Distance against skipped steps: a result file for each number of skipped steps of a preset."""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from dataclasses import replace

from tqdm import tqdm

from edm.evaluation.features import Resized
from edm.evaluation.fid import singular
from experiments import forecast, options, own, sweep
from experiments.loading import labels_for, load_dataset, load_sweep
from experiments.presets import OWN, parse_levels
from experiments.sweep import Sweep
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import rank


def refuse_without_network(typed: argparse.Namespace) -> None:
    """A UsageError that says how to train one, where none was named for the user's images."""
    words = options.remembered(typed)
    if words and "dataset" in words and "network" not in words:
        device = options.chosen_machine(typed).device
        made = forecast.training_of(str(words["dataset"]), typed.name or OWN, device)
        raise UsageError(
            "nothing says which network is yours: give --network a file, a URL or "
            f"module:function; one named {made}"
        )


def claim(typed: argparse.Namespace, loaded: Sweep) -> None:
    """Keep what was typed for a name, and say what judges its images.

    Raises:
        UsageError: the network has classes, and the images no labels.
    """
    preset = loaded.preset
    labels_for(load_dataset(preset, loaded.network), loaded.network)
    if rank() == 0:
        own.claim(preset.name, options.said(typed))
        if isinstance(loaded.features, Resized):
            print(loaded.features)
        if note := own.note_on(preset):
            print(f"note: {note}", file=sys.stderr)


def main() -> None:
    """Run or continue the sweep and print each result as it is made."""
    parser = options.command(__doc__, "run_experiments_with_skips")
    options.add_precision(parser)
    add = parser.add_argument
    levels = "where teleports end, a level for each of --skips, in place of the grid's"
    add("--sigma-skip", type=parse_levels, default=(), metavar="S,S", help=levels)
    add("--save-images", action="store_true", help="write the images as PNG")
    add("--dry-run", action="store_true", help="say what all of it costs, touch nothing")
    add("--name", help=f"of {OWN}: what your images and network are called (default: {OWN})")
    typed = parser.parse_args()
    if typed.preset == OWN:
        refuse_without_network(typed)
    preset = replace(options.chosen_preset(typed), sigma_skip=typed.sigma_skip)
    sweep.check_seeds(preset.seeds)
    options.check_images_count(preset)
    machine = options.chosen_machine(typed, preset)
    if typed.dry_run:
        print(forecast.forecast(preset, machine.device))
        return
    if typed.preset == OWN:
        own.check_place(preset.name)
    dtype = options.chosen_dtype(typed)
    loaded = load_sweep(preset, machine, typed.save_images, alone=True, dtype=dtype)
    if typed.preset == OWN:
        claim(typed, loaded)
    if rank() == 0 and preset.seeds.count <= loaded.features.dim:
        print(f"note: {singular(preset.seeds.count, loaded.features.dim)}", file=sys.stderr)
    for result in sweep.run(loaded):
        inputs, outputs = result.inputs, result.outputs
        tqdm.write(
            f"skipped steps {result.skip:2d}   sigma {inputs['sigma_skip']:8.4g}   "
            f"NFE {outputs['nfe']:3d}   {inputs['distance_name']} {outputs['distance']:.4f}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))

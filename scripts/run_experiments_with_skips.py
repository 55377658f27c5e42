"""Distance against skipped steps: a result file for each number of skipped steps of a preset."""

if __name__ == "__main__":
    import start  # noqa: F401

import sys
from dataclasses import replace

from tqdm import tqdm

from edm.evaluation.fid import singular
from experiments import forecast, options, sweep
from experiments.loading import load_sweep
from experiments.presets import parse_levels
from linear_structure.system.errors import run_command
from linear_structure.system.machine import rank


def main() -> None:
    """Run or continue the sweep and print each result as it is made."""
    parser = options.command(__doc__, "run_experiments_with_skips")
    options.add_precision(parser)
    add = parser.add_argument
    levels = "where teleports end, a level for each of --skips, in place of the grid's"
    add("--sigma-skip", type=parse_levels, default=(), metavar="S,S", help=levels)
    add("--save-images", action="store_true", help="write the images as PNG")
    add("--dry-run", action="store_true", help="say what all of it costs, touch nothing")
    typed = parser.parse_args()
    preset = replace(options.chosen_preset(typed), sigma_skip=typed.sigma_skip)
    sweep.check_seeds(preset.seeds)
    options.check_images_count(preset)
    machine = options.chosen_machine(typed, preset)
    if typed.dry_run:
        print(forecast.forecast(preset, machine.device))
        return
    dtype = options.chosen_dtype(typed)
    loaded = load_sweep(preset, machine, typed.save_images, alone=True, dtype=dtype)
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

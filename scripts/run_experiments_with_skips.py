"""Distance against skipped steps: a result file for each number of skipped steps of a preset."""

import argparse
import sys

from tqdm import tqdm

from experiments import forecast, settings, sweep
from experiments.results import Result
from linear_structure.system.errors import run_command


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_experiments_with_skips")
    settings.add_preset(parser)
    settings.add_machine(parser)
    settings.add_tf32(parser)
    parser.add_argument("--save-images", action="store_true", help="write the images as PNG")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what all of it costs, touch nothing"
    )
    return parser.parse_args()


def _line(result: Result) -> str:
    inputs, outputs = result.inputs, result.outputs
    return (
        f"skipped steps {result.skip:2d}   sigma {inputs['sigma_skip']:8.4g}   "
        f"NFE {outputs['nfe']:3d}   {inputs['distance_name']} {outputs['distance']:.4f}"
    )


def main() -> None:
    """Run or continue the sweep and print each result as it is made."""
    options = _parse()
    preset = settings.chosen_preset(options)
    sweep.check_seeds(preset.seeds)
    settings.check_images_count(preset)
    device, threads = settings.chosen_device(options, preset)
    if options.dry_run:
        settings.allow_tf32(options.tf32, device)
        print(forecast.forecast(preset, device))
        return
    loaded = settings.load_sweep(preset, device, threads, options.save_images, options.tf32)
    for result in sweep.run(loaded):
        tqdm.write(_line(result))


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The paper's figures and findings for a preset: numbers first, then pictures of them.

    bash scripts/reproduce_figures.sh digits
    bash scripts/reproduce_figures.sh cifar10-small --dataset CIFAR10 --seeds 0-499

Everything goes to figures/PRESET. A run that was stopped continues; numbers that are there serve.
"""

import argparse
import sys
from pathlib import Path

from experiments import reproduction, settings, variations
from experiments.reproduction import Reproduction
from linear_structure.gaussian import Gaussian
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import world_size


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    settings.add_preset(parser)
    settings.add_machine(parser)
    parser.add_argument(
        "--count", type=int, default=64, help="trajectories beside the models' (default 64)"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of all presets")
    return parser.parse_args()


def main() -> None:
    """Compare, draw, and measure the quality of solvers and teleports."""
    options = _parse()
    if options.count < 2:
        raise UsageError(f"--count {options.count}: quartiles need 2 or more")
    if world_size() > 1:
        raise UsageError("reproduce_figures runs in one process: share the sweep with torchrun")
    preset = settings.chosen_preset(options)
    device, threads = settings.chosen_device(options, preset)
    sweep = settings.load_sweep(preset, device, threads)
    model = sweep.parameters.model
    if not isinstance(model, Gaussian):
        raise UsageError(f"{preset.parameters} holds no Gaussian: the figures are about one")
    made = Reproduction(
        sweep=sweep,
        gaussian=model,
        images=settings.images_at_hand(preset, sweep.network, sweep.parameters),
        count=min(options.count, preset.seeds.count),
        folder=options.out / preset.name,
    )
    reproduction.write_comparisons(made)
    reproduction.write_pictures(made)
    variations.write_solvers(sweep, made.folder)
    variations.write_teleports(sweep, made.images, made.folder)
    print(f"figures, numbers and findings are in {made.folder}")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The paper's figures and findings for a preset: numbers first, then pictures of them.

    bash scripts/reproduce_figures.sh digits
    bash scripts/reproduce_figures.sh cifar10-small --dataset CIFAR10 --seeds 0-499

Everything goes to figures/PRESET. A run that was stopped continues; numbers that are there serve.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import sys
from pathlib import Path

from experiments import loading, options, reproduction, variations
from experiments.reproduction import Reproduction
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import world_size
from linear_structure.system.options import folder


def main() -> None:
    """Compare, draw, and measure the quality of solvers and teleports."""
    parser = options.command(__doc__, "reproduce_figures")
    add = parser.add_argument
    add("--count", type=int, default=64, help="trajectories beside the models' (default 64)")
    add("--out", type=folder, default=Path("figures"), help="folder of all presets")
    typed = parser.parse_args()
    if typed.count < 2:
        raise UsageError(f"--count {typed.count}: quartiles need 2 or more")
    if world_size() > 1:
        raise UsageError("reproduce_figures runs in one process: share the sweep with torchrun")
    preset = options.chosen_preset(typed)
    sweep = loading.load_sweep(preset, options.chosen_machine(typed, preset))
    made = Reproduction(
        sweep=sweep,
        gaussian=loading.components_of(preset, sweep.teleport.model),
        images=loading.images_at_hand(preset, sweep.network),
        count=min(typed.count, preset.seeds.count),
        folder=typed.out / preset.name,
        labels=loading.labels_at_hand(preset, sweep.network),
    )
    reproduction.write_comparisons(made)
    reproduction.write_pictures(made)
    variations.write_solvers(sweep, made.folder)
    variations.write_teleports(sweep, made.images, made.folder)
    print(f"figures, numbers and findings are in {made.folder}")


if __name__ == "__main__":
    sys.exit(run_command(main))

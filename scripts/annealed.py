"""Images of annealed Langevin dynamics, whole and with the first levels teleported.

    python scripts/annealed.py digits --steps 18 --sigma-max 9.63 --sigma-min 0.05 --skips 0,4

Levels are spaced evenly in log sigma; the largest distance between two images is where they
should start (scripts/noise_scales.py). A panel shows the first 25 of the seeds. The picture goes to
score_based/PRESET/annealed.png.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import sys
from dataclasses import replace

from experiments import loading, options, teleported
from experiments.results import SCORE_BASED
from experiments.sampling import Sampling, grid_of
from linear_structure.system.errors import run_command
from linear_structure.system.options import folder

UNUSED = {
    "no distance is computed": ("features", "reference"),
    "annealed Langevin dynamics walks down levels evenly spaced in log sigma": ("sampler", "rho"),
    "the images of a panel are sampled together": ("block",),
}


def main() -> None:
    """Sample, and draw a panel for each number of skipped levels."""
    parser = options.command(__doc__, "annealed")
    parser.add_argument("--out", type=folder, default=SCORE_BASED, help="of all presets")
    typed = parser.parse_args()
    for reason, names in UNUSED.items():
        options.check_unused(typed, names, reason)
    typed.sampler = "annealed"
    preset = options.chosen_preset(typed)
    teleported.check_shown(preset.seeds)
    if typed.skips is None:
        preset = replace(preset, skips=(0,))
    network = loading.load_network(preset, options.chosen_machine(typed, preset))
    teleport = loading.load_teleport(preset, network)
    sigmas = grid_of(preset, network)
    sampling = Sampling(network, sigmas, teleport, preset.row, preset.settings)
    path = typed.out / preset.name / "annealed.png"
    teleported.write_images(preset, sampling, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_command(main))

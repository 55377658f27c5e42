"""The teleport before stochastic chains: calls, distances, and their change with its interval.

    python scripts/teleported_chains.py digits

Four samplers, each whole and with its first levels skipped, on 3,000 seeds, whose thirds are also
told apart. The table and its picture go to score_based/PRESET; a run that was stopped continues.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import sys
from dataclasses import replace

from experiments import loading, options, teleported
from experiments.results import SCORE_BASED
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import world_size
from linear_structure.system.options import folder

SEEDS = SeedRange(0, 2999)


def main() -> None:
    """Sweep each chain, print each line as soon as it is there, and write table and picture."""
    parser = options.command(__doc__, "teleported_chains")
    parser.add_argument("--out", type=folder, default=SCORE_BASED, help="of all presets")
    typed = parser.parse_args()
    own = ("sampler", *options.SETTINGS, "steps", "sigma_min", "sigma_max", "skips")
    options.check_unused(typed, own, "each chain has its own")
    if world_size() > 1:
        raise UsageError("teleported_chains runs in one process")
    preset = options.chosen_preset(typed)
    if typed.seeds is None:
        preset = replace(preset, seeds=SEEDS)
    teleported.check_thirds(preset.seeds)
    plain = loading.load_sweep(preset, options.chosen_machine(typed, preset))
    distance = teleported.spread_of(loading.load_dataset(preset, plain.network).images())
    place, name = typed.out / preset.name, plain.features.distance_name
    print(f"sampler    skipped  sigma calls   {name}   change, 95 % interval")
    rows = []
    for row in teleported.compared(plain, distance, place / "sweeps"):
        print(teleported.line(row))
        rows.append(row)
    title = f"{plain.preset.title}: teleported chains, {preset.seeds.count:,} images each"
    teleported.write(place, rows, name, title)
    print(f"wrote teleported_chains.csv and .png to {place}")


if __name__ == "__main__":
    sys.exit(run_command(main))

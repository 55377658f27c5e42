"""Relative error of analytic scores against a network's, along its sampling trajectory."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from experiments import scores, settings, style
from linear_structure.system.errors import run_command

FOLDER = Path("scores")
SEEDS = 1000
UNUSED = ("sampler", "by_class", "features", "reference")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_plot_scores")
    settings.add_preset(parser)
    settings.add_machine(parser)
    return parser.parse_args()


def main() -> None:
    """Compare or continue; then write the numbers, their settings, and the picture of them."""
    options = _parse()
    settings.check_unused(options, UNUSED, "scores are compared along Heun's whole trajectory")
    preset = settings.chosen_preset(options)
    device, threads = settings.chosen_device(options, preset)
    if options.seeds is None:
        preset = replace(preset, seeds=preset.seeds.head(SEEDS))
    network = settings.load_network(preset, device)
    models = settings.analytic_models(preset, network)
    study = scores.Study(preset, network, models, device, threads, FOLDER / "blocks")
    comparisons = scores.compare(study)
    table, record, picture = (FOLDER / f"scores.{end}" for end in ("csv", "json", "png"))
    scores.write_table(table, comparisons)
    scores.write_record(record, study, table)
    count = f"{preset.seeds.count:,} trajectories"
    style.score_errors(
        picture, comparisons, f"{preset.name}: analytic scores against the network's, {count}"
    )
    print(f"wrote {table}, {record} and {picture}")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Relative error of analytic scores against a network's, along its sampling trajectory."""

import argparse
import sys
from pathlib import Path

from experiments import plots, scores, settings
from linear_structure.errors import run_command

FOLDER = Path("scores")
SEEDS = 1000


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_plot_scores")
    settings.add_preset(parser)
    settings.add_machine(parser)
    return parser.parse_args()


def main() -> None:
    """Compare, then write the numbers and the picture made from them."""
    options = _parse()
    preset = settings.chosen_preset(options)
    device, _ = settings.chosen_device(options, preset)
    seeds = preset.seeds if options.seeds else preset.seeds.head(SEEDS)
    network = settings.load_network(preset, device)
    models = settings.analytic_models(preset, network)
    comparisons = scores.compare(network, models, preset, seeds, device)
    scores.write_table(FOLDER / "scores.csv", comparisons)
    title = f"{preset.name}: analytic scores against the network's, {seeds.count:,} trajectories"
    plots.score_errors(FOLDER / "scores.png", comparisons, title)
    print(f"wrote {FOLDER / 'scores.csv'} and {FOLDER / 'scores.png'}")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Samplers in the plane, where the score is known: what each makes, and at how many calls.

    python scripts/plane.py mixture
    python scripts/plane.py moons --network FILE

Pictures and numbers.csv go to score_based/plane, those of other data than the mixture to
score_based/DATA, and so do the particles: a run that was stopped continues. Of other data the exact
score is that of drawn points, which samplers along it return: what a network would do that knows
them by heart.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from pathlib import Path

from edm import checkpoints
from edm.network import Network
from experiments import plane_figures, tables
from experiments.plane import HEAD, SHIPPED, Plane, Study, load, load_learned, table
from experiments.results import SCORE_BASED, surroundings
from linear_structure.data.plane import DRAWS
from linear_structure.system.errors import run_command
from linear_structure.system.files import check_writable, digest_of_file, write_json
from linear_structure.system.machine import set_threads
from linear_structure.system.options import folder, word


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=word, nargs="?", default="mixture", help=", ".join(DRAWS))
    counted = "particles of each sampler (default 20,000; of other data than the mixture 5,000)"
    add("--count", type=int, help=counted)
    add("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    learned = "of the learned score: path or URL (default: the mixture's, shipped)"
    add("--network", type=word, help=learned)
    add("--out", type=folder, help=f"folder (default: {SCORE_BASED}/plane, or {SCORE_BASED}/DATA)")
    return parser.parse_args()


def network_of(plane: Plane, source: str | None) -> Network | None:
    """What was named, or what is shipped for the data; without either, a sentence says so."""
    if source is None and not plane.has_density:
        print(f"No network of {plane.name} is shipped: without --network nothing is learned.")
        return None
    return load_learned(source or checkpoints.shipped(SHIPPED))


def write_pictures(folder: Path, study: Study) -> list[str]:
    """The names of the pictures that there are of the data."""
    plane_figures.write_noised(folder / "noised.png", study)
    plane_figures.write_scores(folder / "scores.png", study)
    plane_figures.write_samples(folder / "samples.png", study)
    names = ["noised.png", "scores.png", "samples.png"]
    if not study.plane.has_density:
        print(f"{study.plane.name} has no density: density.png and Langevin at one level need one.")
        return names
    longest = max((run for run in study.runs if run.walk.is_one_level), key=lambda run: run.calls)
    plane_figures.write_density(folder / "density.png", study, longest)
    return ["density.png", *names]


def main() -> None:
    """Sample, or continue; then print and write the numbers, and draw."""
    typed = _parse()
    set_threads(1)  # states are small: more would change bits and save no time
    plane = load(typed.data)
    count = plane.count if typed.count is None else typed.count
    folder = typed.out or SCORE_BASED / ("plane" if plane.has_density else plane.name)
    network = network_of(plane, typed.network)
    study = Study(plane, network, count, typed.seed, folder / "samples")
    check_writable(folder)
    print(table(study))
    numbers = folder / "numbers.csv"
    tables.write_table(numbers, HEAD, study.rows)
    outputs = {numbers.name: digest_of_file(numbers), "standard_errors": study.errors._asdict()}
    made = {"inputs": study.inputs, "outputs": outputs, "made": surroundings()}
    write_json(folder / "numbers.json", made)
    names = write_pictures(folder, study)
    print(f"wrote {', '.join(names)}, {numbers.name} and numbers.json to {folder}")


if __name__ == "__main__":
    sys.exit(run_command(main))

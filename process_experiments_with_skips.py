"""python process_experiments_with_skips.py [PRESET]: table and graph of the latest sweep."""

if __name__ == "__main__":
    from linear_structure.system.errors import leave_at_once

    leave_at_once()

import argparse
import sys
from pathlib import Path

from linear_structure.system.errors import UsageError, importing, run_command
from linear_structure.system.options import word

TABLE = "experiments_with_skip_results.txt"
EVERYTHING = "experiments_with_skip_results.csv"
GRAPH = "experiments_with_skip_graph.png"


def main() -> None:
    """Write table, CSV and graph to the preset's folder, and copies here; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    latest = "default: that of the latest sweep"
    parser.add_argument("preset", type=word, nargs="?", help=latest)
    name = parser.parse_args().preset
    with importing():  # not before: --help needs none of it
        from experiments import figures, pooled, presets, results, tables
    known = presets.presets()
    if name is not None and name not in known and not (results.ROOT / name).exists():
        none = f"no result in {results.ROOT / name}, and no preset {name!r}"
        raise UsageError(f"{none}: expected one of {', '.join(known)}, or a sweep of yours")
    found = results.latest_sweep(results.ROOT, name)
    name, count = found[0].inputs["preset"], found[0].outputs["count"]
    preset = known.get(name)  # None: of a sweep from Python
    rows, published = tables.rows(found), tables.published_beside(preset, found) if preset else {}
    together = pooled.pool_or_say(results.ROOT, found)
    made = table, everything, graph = [results.ROOT / name / e for e in (TABLE, EVERYTHING, GRAPH)]
    tables.write_columns(table, found, together)
    tables.write_csv(everything, found, published)
    title = f"{found[0].title}: quality against skipped steps"
    distance, source = tables.distance_name(found), preset.source if preset else ""
    figures.distance_against_skips(graph, rows, distance, count, published, title, together, source)
    print(f"{found[0].title}\n\n{tables.table(found, together)}")
    print(results.told(found, results.ROOT))
    if published:
        print(f"Published: {source}.")
    elif preset and preset.published:
        print("The published figures are of other settings, or another count: they are left out.")
    print(results.copied(name, made, Path()))


if __name__ == "__main__":
    sys.exit(run_command(main))

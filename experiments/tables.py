"""Tables of a sweep: the two columns that users know, and everything as CSV."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean

from experiments.presets import Preset
from experiments.results import Result
from linear_structure.sampling.seeds import SeedRange
from linear_structure.sampling.table import Settings, find
from linear_structure.system.files import write_text
from linear_structure.system.options import parse


@dataclass(frozen=True)
class Row:
    """All seed ranges of one number of skipped steps.

    Attributes:
        skip: skipped steps.
        sigma: noise level of the teleport's end.
        nfe: network calls of an image.
        distances: one for each range of seeds.
        ranges: these ranges, in the same order.
    """

    skip: int
    sigma: float
    nfe: int
    distances: tuple[float, ...]
    ranges: tuple[SeedRange, ...]

    @property
    def mean(self) -> float:
        return fmean(self.distances)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest distance; the smallest of three is the published convention."""
        return min(self.distances), max(self.distances)


def rows(results: Sequence[Result]) -> list[Row]:
    """One row for each number of skipped steps, ascending."""
    found = []
    for skip in sorted({result.skip for result in results}):
        first, *_ = same = [result for result in results if result.skip == skip]
        distances, ranges = zip(*((each.distance, each.seeds) for each in same), strict=True)
        found.append(Row(skip, first.inputs["sigma_skip"], first.outputs["nfe"], distances, ranges))
    return found


def range_count(rows: Sequence[Row]) -> str:
    """How many ranges of seeds a row averages: "3", or "2 to 3" where rows differ."""
    counts = [len(row.ranges) for row in rows]
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} to {most}"


def gaps(rows: Sequence[Row]) -> str:
    """A sentence that names what is missing if not all rows average the same ranges, else ""."""
    ranges = {seeds for row in rows for seeds in row.ranges}
    missing = []
    for seeds in sorted(ranges, key=lambda seeds: seeds.first):
        skips = [str(row.skip) for row in rows if seeds not in row.ranges]
        if skips:
            missing.append(f"seeds {seeds} lack skipped steps {', '.join(skips)}")
    if not missing:
        return ""
    return f"Rows average different ranges and do not compare: {'; '.join(missing)}."


def distance_name(results: Sequence[Result]) -> str:
    """`FID` for the published features, `FD-...` for all others."""
    return results[0].inputs["distance_name"]


def write_two_columns(path: Path, results: Sequence[Result]) -> None:
    """`n_skip  fid` (or `FD-...`), the mean over the ranges; a comment if these differ."""
    by_skip, name = rows(results), distance_name(results)
    lines = [f"n_skip  {'fid' if name == 'FID' else name}"]
    lines += [f"{row.skip:6d}  {row.mean:.6g}" for row in by_skip]
    if missing := gaps(by_skip):
        lines.append(f"# {missing}")
    write_text(path, "\n".join(lines) + "\n")


def write_csv(path: Path, results: Sequence[Result], published: Mapping[int, float]) -> None:
    """One line for each result: settings, distance, NFE, the published figure, how it was made."""
    lines = [_flat(result, published) for result in results]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    _write(path, columns, ([line.get(name) for name in columns] for line in lines))


def _flat(result: Result, published: Mapping[int, float]) -> dict[str, object]:
    inputs = {name: value for name, value in result.inputs.items() if name != "sigmas"}
    first, last = inputs.pop("seeds")
    settings = inputs.pop("settings", {})
    versions = result.made.get("versions", {})
    made = {name: value for name, value in result.made.items() if name != "versions"}
    return {
        "n_skip": inputs.pop("n_skip"),
        "sigma_skip": inputs.pop("sigma_skip"),
        **result.outputs,
        "published": published.get(result.skip, ""),
        "first_seed": first,
        "last_seed": last,
        **inputs,
        **settings,
        **made,
        **versions,
    }


def published_beside(preset: Preset, results: Sequence[Result]) -> Mapping[int, float]:
    """The preset's published figures, or none if the results do not compare with them.

    Those are FIDs of as many images as the preset's, by its sampler on its grid.
    """
    inputs, count = results[0].inputs, results[0].outputs["count"]
    theirs = ("FID", preset.seeds.count, preset.sampler, preset.grid.tolist())
    ours = (inputs["distance_name"], count, inputs["sampler"], inputs["sigmas"])
    return preset.published if ours == theirs else {}


def table(results: Sequence[Result]) -> str:
    """Markdown: for each number of skipped steps its cost and distance; a caption.

    Where a row averages several ranges of seeds, each row says how many, and their extremes.
    """
    by_skip = rows(results)
    inputs = results[0].inputs
    settings = parse(Settings, inputs.get("settings", {}), "settings")
    full = find(inputs["sampler"]).calls(len(inputs["sigmas"]) - 1, 0, settings)
    name = distance_name(results)
    head = ["skipped steps", "sigma", "NFE", "calls saved", name, "min", "max", "ranges"]
    columns = len(head) if range_count(by_skip) != "1" else head.index("min")
    lines = [f"| {' | '.join(head[:columns])} |", "|---:" * columns + "|"]
    for row in by_skip:
        cells = [f"{row.skip}", f"{row.sigma:.3g}", f"{row.nfe}", f"{1 - row.nfe / full:.0%}"]
        cells += [*(f"{value:.3f}" for value in (row.mean, *row.spread)), f"{len(row.ranges)}"]
        lines.append(f"| {' | '.join(cells[:columns])} |")
    return "\n".join([*lines, "", caption(results)])


def caption(results: Sequence[Result]) -> str:
    """What the numbers of a table are: how many ranges of seeds, and of how many images."""
    by_skip, count = rows(results), results[0].outputs["count"]
    ranges = range_count(by_skip)
    said = f"One range of {count:,} images."
    if ranges != "1":
        said = (
            f"Mean, minimum and maximum over {ranges} disjoint ranges of {count:,} images; "
            "the published convention is the minimum of three."
        )
    return f"{said} {gaps(by_skip)}".strip()


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """CSV with six digits for floats."""
    _write(path, head, ([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows))


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())

"""Tables of a sweep: the two columns that users know, and everything as CSV."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean

from experiments.pooled import Pool
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
    missing = lacking(rows)
    return f"Rows average different ranges and do not compare: {missing}." if missing else ""


def lacking(rows: Sequence[Row]) -> str:
    """Which ranges of seeds lack which of the skips of others, or ""."""
    ranges = {seeds for row in rows for seeds in row.ranges}
    missing = []
    for seeds in sorted(ranges, key=lambda seeds: seeds.first):
        skips = [str(row.skip) for row in rows if seeds not in row.ranges]
        if skips:
            missing.append(f"seeds {seeds} lack skipped steps {', '.join(skips)}")
    return "; ".join(missing)


def distance_name(results: Sequence[Result]) -> str:
    """`FID` for the published features, `FD-...` for all others."""
    return results[0].inputs["distance_name"]


POOLED = ("pooled", "unbiased", "change", "standard_error", "low", "high")
KERNEL = ("KID", "KID_change", "KID_low", "KID_high")


def write_columns(path: Path, results: Sequence[Result], pool: Pool | None = None) -> None:
    """`n_skip  fid` (or `FD-...`), the mean over the ranges; then, of all seeds, what is `POOLED`.

    And what is of the `KERNEL`, where it is known.

    Rows are those where the network is called; a comment says it if their ranges differ. What is
    not known is nan.
    """
    by_skip, name = [row for row in rows(results) if row.nfe], distance_name(results)
    more = (*(POOLED if pool else ()), *(KERNEL if pool and pool.has_kernel else ()))
    lines = ["  ".join(["n_skip", "fid" if name == "FID" else name, *more])]
    for row in by_skip:
        cells = [f"{row.skip:6d}", f"{row.mean:.6g}"]
        cells += [f"{value:.6g}" for value in _pooled(pool, row.skip)] if pool else []
        cells += [f"{value:.6g}" for value in _kernel(pool, row.skip)] if pool else []
        lines.append("  ".join(cells))
    if missing := gaps(by_skip):
        lines.append(f"# {missing}")
    write_text(path, "\n".join(lines) + "\n")


def _pooled(pool: Pool, skip: int) -> list[float]:
    """The values of `POOLED`; no change of skip 0."""
    row = pool.rows[skip]
    change = row.change
    told = [change.difference, change.standard_error, *change.interval] if change else [0.0] * 4
    return [row.distance, math.nan if row.unbiased is None else row.unbiased, *told]


def _kernel(pool: Pool, skip: int) -> list[float]:
    """The values of `KERNEL`, where they are known; no change of skip 0."""
    row = pool.rows[skip]
    if row.kernel is None:
        return []
    change = row.kernel_change
    return [row.kernel, *([change.difference, *change.interval] if change else [0.0] * 3)]


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
    made |= {"replaced": " ".join(made["replaced"])} if "replaced" in made else {}
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

    Those are FIDs of as many images as the preset's, by its sampler, on its grid but for what the
    preset's `source` says.
    """
    inputs, count = results[0].inputs, results[0].outputs["count"]
    theirs = ("FID", preset.seeds.count, preset.sampler, preset.grid.tolist())
    ours = (inputs["distance_name"], count, inputs["sampler"], inputs["sigmas"])
    return preset.published if ours == theirs else {}


def table(results: Sequence[Result], pool: Pool | None = None) -> str:
    """Markdown: for each number of skipped steps its cost and distance; a caption.

    Of all seeds together, with the change against skip 0, where there is a pool. Else, where a row
    averages several ranges of seeds, each row says how many, and their extremes.
    """
    by_skip = rows(results)
    inputs = results[0].inputs
    settings = parse(Settings, inputs.get("settings", {}), "settings")
    steps, name = len(inputs["sigmas"]) - 1, distance_name(results)
    full = find(inputs["sampler"]).calls(steps, 0, settings)
    head = ["skipped steps", "sigma", "NFE", "calls saved"]
    if pool:
        head += [f"{name}, pooled", "unbiased", "change", "95 % interval"]
        head += ["KID", "change of KID", "95 % interval"] if pool.has_kernel else []
    else:
        head += [name] if range_count(by_skip) == "1" else [name, "min", "max", "ranges"]
    lines = [f"| {' | '.join(head)} |", "|---:" * len(head) + "|"]
    for row in (row for row in by_skip if not pool or row.skip in pool.rows):
        skip = f"{row.skip}" if row.skip < steps else f"{row.skip}, all"
        cells = [skip, f"{row.sigma:.3g}", f"{row.nfe}", f"{1 - row.nfe / full:.0%}"]
        cells += _cells(pool, row.skip) if pool else _spread(row)
        lines.append(f"| {' | '.join(cells[: len(head)])} |")
    said = pooled_caption(pool, by_skip) if pool else caption(results)
    return "\n".join([*lines, "", said])


def _spread(row: Row) -> list[str]:
    """Mean, minimum and maximum of a row's ranges, and how many there are."""
    return [*(f"{value:.3f}" for value in (row.mean, *row.spread)), f"{len(row.ranges)}"]


def _cells(pool: Pool, skip: int) -> list[str]:
    """Distance of all seeds, the same without its bias, the change, and its interval; KID's too."""
    distance, unbiased, difference, _, low, high = _pooled(pool, skip)
    own = [f"{distance:.3f}", "" if math.isnan(unbiased) else f"{unbiased:.3f}"]
    own += [f"{difference:+.4f}", f"[{low:+.4f}, {high:+.4f}]"] if skip else ["", ""]
    if kernel := _kernel(pool, skip):
        own += [f"{kernel[0]:.4g}"]
        own += [f"{kernel[1]:+.2g}", f"[{kernel[2]:+.2g}, {kernel[3]:+.2g}]"] if skip else ["", ""]
    return own


def pooled_caption(pool: Pool, rows: Sequence[Row]) -> str:
    """What the numbers of a pooled table are, and what follows from them."""
    said = (
        f"{pool.name} of {pool.count:,} images together, seeds "
        f"{', '.join(map(str, pool.ranges))}; unbiased: less the bias of so few; change: against "
        "skip 0, image by image."
    )
    if pool.steps in pool.rows:
        said += f" Skip {pool.steps} is the teleport's model alone: no network."
    if missing := lacking(rows):
        said += f" Some are left out: {missing}."
    return "\n".join(filter(None, [said, *pool.notes, pool.verdict]))


def caption(results: Sequence[Result]) -> str:
    """How many ranges of seeds there are, of how many images, and whether all rows have them."""
    by_skip, count = rows(results), results[0].outputs["count"]
    ranges = range_count(by_skip)
    said = f"One range of {count:,} images."
    if ranges != "1":
        said = f"Mean, minimum and maximum over {ranges} disjoint ranges of {count:,} images."
    return f"{said} {gaps(by_skip)}".strip()


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """CSV with six digits for floats."""
    _write(path, head, ([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows))


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())

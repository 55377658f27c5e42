"""Result files: one distance, what it was made from, and how.

`images_with_skips/<preset>/<first>-<last>/<k>.json` holds three parts:

    inputs   settings, seeds and digests; a result is reused, or put beside another, only if equal
    outputs  distance, count, NFE; byte-equal from run to run
    made     seconds, host, versions; never compared

and the digest of these, so that damage is noticed. A result of an earlier version has none: it is
taken as it is, and given one by the sweep that uses it.
"""

import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any

from experiments.presets import titled
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system.errors import UsageError
from linear_structure.system.files import copy, read_sealed, write_sealed
from linear_structure.system.store import put_aside

ROOT = Path("images_with_skips")
CLOCKS = 2.0  # seconds that those of two machines may differ
SCORE_BASED = Path("score_based")  # what the commands of score-based sampling make
PARTS: dict[str, dict[str, type | UnionType]] = {  # what every result has, whatever else it has
    "inputs": {
        "preset": str,
        "n_skip": int,
        "sigma_skip": int | float,
        "seeds": list,
        "sampler": str,
        "sigmas": list,
        "distance_name": str,
    },
    "outputs": {"distance": int | float, "count": int, "nfe": int},
    "made": {"versions": dict},
}


@dataclass(frozen=True)
class Result:
    """One line of a sweep; see the module."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    made: dict[str, Any]

    @property
    def skip(self) -> int:
        return self.inputs["n_skip"]

    @property
    def seeds(self) -> SeedRange:
        return SeedRange(*self.inputs["seeds"])

    @property
    def distance(self) -> float:
        return self.outputs["distance"]

    @property
    def title(self) -> str:
        """The preset's name, and which of its parts were others, as far as that was recorded."""
        return titled(self.inputs["preset"], self.made.get("replaced", ()))

    @property
    def settings(self) -> dict[str, Any]:
        """Inputs that two results must share to stand side by side, the count among them."""
        own = ("n_skip", "sigma_skip", "seeds")  # what differs within one sweep
        shared = {name: value for name, value in self.inputs.items() if name not in own}
        return {**shared, "count": self.outputs["count"]}


def path_of(root: Path, preset: str, seeds: SeedRange, skip: int) -> Path:
    """Where the result of one number of skipped steps lies."""
    return root / preset / str(seeds) / f"{skip}.json"


def write(path: Path, result: Result) -> None:
    """Write a result whole; one of other settings that stood there is kept beside it."""
    if path.exists() and reusable(path, result.inputs) is None:
        put_aside(path)
    write_sealed(path, asdict(result))


def reusable(path: Path, inputs: dict[str, Any]) -> Result | None:
    """The result at this path if it is whole and was made from exactly these inputs."""
    found = _found(path)
    return found if found is not None and found.inputs == inputs else None


def _found(path: Path) -> Result | None:
    """The result at a path, None if there is none, or a damaged one."""
    try:
        return read(path)
    except (FileNotFoundError, UsageError):
        return None


def read(path: Path) -> Result:
    """Read one result file; UsageError where it is damaged or none."""
    try:
        content = read_sealed(path)
        fault = _fault(content)
    except ValueError as error:
        fault = f"it does not consist of {', '.join(PARTS)} as they were written: {error}"
    if fault:
        raise UsageError(f"{path} is no result file, {fault}: move it elsewhere and run the sweep")
    return Result(**content)


def _fault(content: Any) -> str | None:
    """Why this JSON value is no result, None if it is one."""
    if not isinstance(content, dict) or content.keys() != PARTS.keys():
        return f"it does not consist of {', '.join(PARTS)}"
    for part, names in PARTS.items():
        if not isinstance(content[part], dict):
            return f"{part} holds no values"
        for name, kind in names.items():
            if not isinstance(content[part].get(name), kind):
                return f"{part}.{name} is missing or of another type"
    for part, name in (("inputs", "sigma_skip"), ("outputs", "distance")):
        if not abs(content[part][name]) <= sys.float_info.max:  # neither is NaN
            return f"{part}.{name} is not finite"
    ends = content["inputs"]["seeds"]
    if not (len(ends) == 2 and all(isinstance(end, int) for end in ends)):
        return "inputs.seeds is no range"
    return None


def surroundings() -> dict[str, Any]:
    """Where numbers were made, for the record."""
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
    }


def told(results: list[Result], root: Path) -> str:
    """Which settings a table shows, and how many results of the preset have others."""
    first, *_ = results
    folder = root / first.inputs["preset"]
    beside = filter(None, map(_found, folder.glob("*/*.json")))
    others = sum(found.settings != first.settings for found in beside)
    left_out = f" {others} results of other settings are left out." if others else ""
    said = (f"{name} {_short(value)}" for name, value in sorted(first.settings.items()))
    return f"Settings shown: {', '.join(said)}.{left_out}"


def _short(value: Any) -> str:
    """A setting in a few words: the ends of a list, the beginning of a digest."""
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]} ({len(value)})" if value else "none"
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))


def copied(preset: str, made: Sequence[Path], folder: Path) -> str:
    """Copy files of a preset to where only the latest ones lie; a sentence that says so."""
    *most, last = (str(copy(path, folder)) for path in made)
    copies = f"{', '.join(most)} and {last} are copies, now of {preset}"
    return f"everything is in {made[0].parent}; {copies}"


def latest_sweep(root: Path, preset: str | None = None) -> list[Result]:
    """All results that share the settings of the latest one, in order of seeds and skips.

    Args:
        root: the folder of all results.
        preset: only this one; None: whichever is the latest.

    Raises:
        UsageError: there is no result, or two ranges of seeds overlap.
    """
    paths = [p for p in root.glob(f"{preset or '*'}/*/*.json") if p.stem.isdecimal()]
    if not paths:
        command = f"bash run_experiments_with_skips.sh {preset or ''}".strip()
        raise UsageError(f"no result in {root / (preset or '')}: run {command}")
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
    if (ahead := newest.stat().st_mtime - time.time()) > CLOCKS:
        print(
            f"note: {newest} has a time {ahead:.0f} seconds after now, by which its sweep counts "
            "as the latest",
            file=sys.stderr,
        )
    folder = newest.parents[1]
    kept = [found for path in folder.glob("*/*.*.json") if (found := _found(path))]
    current = [read(path) for path in paths if path.parents[1] == folder]
    wanted = read(newest).settings
    chosen = {  # of two for one place, the current one
        (r.seeds.first, r.seeds, r.skip): r for r in (*kept, *current) if r.settings == wanted
    }
    ranges = sorted({result.seeds for result in chosen.values()}, key=lambda seeds: seeds.first)
    for before, after in pairwise(ranges):
        if after.first <= before.last:
            raise UsageError(
                f"seeds {before} and {after} overlap, so their spread would mean nothing: "
                "choose disjoint ranges and remove one of these folders"
            )
    return [chosen[place] for place in sorted(chosen, key=lambda place: (place[0], place[2]))]

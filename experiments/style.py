"""Pictures, made from numbers that are on disk already; each function draws one."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.scores import Comparison
from experiments.tables import Row, gaps, range_count
from linear_structure.system.files import replacing

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
NOISE_LEVEL = "noise level sigma (pixels in [-1, 1]), from noise to image"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MODEL_COLORS = {
    "isotropic": COLORS[4],
    "Gaussian": COLORS[0],
    "Gaussian of each class": COLORS[2],
    "point cloud": "#000000",
}
MIXTURES = "RdPu"  # the colour map in which they darken with the number of components, up to 100
DPI = 150
LINE = 110  # characters of small print across a figure
LOG_FROM = 8  # a curve that spans more than this factor is drawn on a logarithmic axis


def style_of(model: str) -> dict[str, Any]:
    """How the curve of a model looks, by its name: the same in all figures."""
    if model in MODEL_COLORS:
        return {"color": MODEL_COLORS[model], "zorder": 3}
    components = int(model.removeprefix("mixture of ").partition(",")[0])
    shade = 0.35 + 0.3 * math.log10(min(components, 100))
    line = "--" if "rank" in model else "-"
    return {"color": mpl.colormaps[MIXTURES](shade), "linestyle": line, "linewidth": 1.2}


def distance_against_skips(
    path: Path,
    rows: Sequence[Row],
    name: str,
    count: int,
    published: Mapping[int, float],
    title: str,
) -> None:
    """Distance against skipped steps; above it, the NFE and sigma of each; the published curve.

    Below it stands what is missing, if not all points average the same ranges of seeds.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        skips = [row.skip for row in rows]
        several = (ranges := range_count(rows)) != "1"
        label = "measured, mean" if several else "measured"
        axes.plot(skips, [row.mean for row in rows], "o-", color=COLORS[0], label=label)
        if several:
            lows, highs = zip(*(row.spread for row in rows), strict=True)
            label = f"smallest to largest of {ranges} seed ranges"
            axes.fill_between(skips, lows, highs, color=COLORS[0], alpha=0.25, label=label)
        shown = {k: value for k, value in published.items() if k in skips}
        if shown:
            axes.plot(*zip(*shown.items(), strict=True), "s--", color=COLORS[1], label="published")
        means = [row.mean for row in rows]
        if max(means) > LOG_FROM * min(means) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="skipped steps", ylabel=f"{name} of {count:,} images")
        axes.set_xticks(skips)
        axes.legend(loc="upper left")
        _label_skips(axes, rows)
        if missing := gaps(rows):
            figure.supxlabel(textwrap.fill(missing, LINE), fontsize=8)
        figure.suptitle(title)
        save(figure, path)


def _label_skips(axes: Axes, rows: Sequence[Row]) -> None:
    """A second horizontal axis: what each number of skipped steps means."""
    above = axes.secondary_xaxis("top")
    above.spines["top"].set_visible(True)
    above.set_xticks([row.skip for row in rows])
    above.set_xticklabels([f"{row.nfe}\n{row.sigma:.3g}" for row in rows], fontsize=8)
    above.set_xlabel("network calls (NFE), and noise level sigma where the network takes over")


def score_errors(path: Path, comparisons: Mapping[str, Comparison], title: str) -> None:
    """Relative error of each model's score against sigma: median and quartile band, log-log."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        for name, comparison in comparisons.items():
            low, median, high = comparison.quartiles.T
            style = style_of(name)
            axes.plot(comparison.sigmas, median, marker="o", ms=4, label=name, **style)
            axes.fill_between(comparison.sigmas, low, high, color=style["color"], alpha=0.2)
        axes.set(xscale="log", yscale="log")
        axes.invert_xaxis()
        axes.set_xlabel(NOISE_LEVEL)
        axes.set_ylabel("relative error of the score")
        axes.legend(title="median and quartiles over seeds")
        figure.suptitle(title)
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=DPI, format="png")

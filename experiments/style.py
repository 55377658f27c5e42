"""How pictures look: colours, lines, and how they are written."""

import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.comparison import Key
from linear_structure.system.files import replacing

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
NOISE_LEVEL = "noise level sigma (pixels in [-1, 1]), from noise to image"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MODEL_COLORS = {
    "isotropic": COLORS[4],
    "gaussian": COLORS[0],
    "by_class": COLORS[2],
    "spherical": COLORS[5],
    "classes": COLORS[2],
    "pointcloud": "#000000",
    "network": COLORS[1],
}
OTHER = "#888888"  # of a kind without a colour of its own
MIXTURES = "RdPu"  # the colour map in which they darken with the number of components, up to 100
DPI = 150
LETTERS = 10  # of a title, in an inch
FEW_DECADES = 300  # from the lowest to the highest value of an axis


def style_of(key: Key) -> dict[str, Any]:
    """How the curve of a model looks: the same in all figures."""
    if key.kind != "mixture":
        return {"color": MODEL_COLORS.get(key.kind, OTHER), "zorder": 3}
    shade = 0.35 + 0.3 * math.log10(min(key.components, 100))
    line = "-" if key.rank is None else "--"
    return {"color": mpl.colormaps[MIXTURES](shade), "linestyle": line, "linewidth": 1.2}


@contextmanager
def drawn(
    path: Path, title: str, width: float, height: float, grid: bool = True
) -> Iterator[Figure]:
    """A figure to draw on, of inches, with its title; then written as PNG, whole or not at all."""
    with mpl.rc_context({**STYLE, "axes.grid": grid}):
        figure = Figure(figsize=(width, height), layout="constrained")
        lines = title.split("\n")
        figure.suptitle("\n".join(textwrap.fill(line, int(LETTERS * width)) for line in lines))
        yield figure
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":
                    _number(axis)
        with replacing(path) as beside:
            figure.savefig(beside, dpi=DPI, format="png")


def _number(axis: Axis) -> None:
    """Numbers that do not meet on a logarithmic axis: 1, 2, 5 where it spans few decades."""
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_formatter(NullFormatter())
    if high > FEW_DECADES * low:
        return
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    shown = [place for place in places if low <= place <= high]
    if len(shown) > 1:
        axis.set_ticks(shown, [f"{place:g}" for place in shown])

"""Figures, drawn from numbers that are on disk; one function for each."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from experiments.comparison import GAUSSIAN, ISOTROPIC, POINTS, Key, quartiles
from experiments.pooled import Pool
from experiments.published import SHARES, SIGMAS, Share
from experiments.style import COLORS, NOISE_LEVEL, drawn, style_of
from experiments.tables import Row, gaps, range_count
from linear_structure.images import grid, to_uint8

Numbers = Mapping[Key, Mapping[str, Any]]
"""A model -> what `comparison.compared` gives."""
Interval = tuple[int, float, float, float]
"""Network calls, a change, and the ends of its 95 % interval."""
MIXTURES = (2, 10, 100)  # components of those that are drawn: more cannot be told apart
FEW = (ISOTROPIC, GAUSSIAN, Key("mixture", 10), POINTS)
LINE = 110  # characters of small print across a figure, and
WIDE_LINE = 150  # across a wide one
LOG_FROM = 8  # curves that span more than this factor are drawn on a logarithmic axis
WIDE, TALL = 9.6, 4.2
ROUNDING = 1e-9  # deviations below are those of equal states: they have no place on a log axis


def distance_against_skips(
    path: Path,
    rows: Sequence[Row],
    name: str,
    count: int,
    published: Mapping[int, float],
    title: str,
    pool: Pool | None = None,
    source: str = "",
) -> None:
    """Distance against skipped steps; above it, the NFE and sigma of each; the published curve.

    Of all seeds together, with the interval of the change against skip 0, where there is a pool;
    else means of ranges of seeds. Below it stand what is missing, if these differ, and the source
    of the published curve.
    """
    with drawn(path, title, 7.2, 4.6) as figure:
        axes, rows = figure.subplots(), [row for row in rows if row.nfe]
        skips = [row.skip for row in rows]
        label, values, told, band = _pooled(pool, skips) if pool else _averaged(rows)
        axes.plot(skips, values, "o-", color=COLORS[0], label=label)
        if told:
            axes.fill_between(skips, *band, color=COLORS[0], alpha=0.25, label=told)
        shown = {k: value for k, value in published.items() if k in skips}
        if shown:
            axes.plot(*zip(*shown.items(), strict=True), "s--", color=COLORS[1], label="published")
        images = pool.count if pool else count
        axes.set(xlabel="skipped steps", ylabel=f"{name} of {images:,} images")
        axes.set_yscale(_scale(values))
        axes.set_xticks(skips)
        axes.legend()
        above = axes.secondary_xaxis("top")  # what each number of skipped steps means
        above.spines["top"].set_visible(True)
        above.set_xticks(skips)
        above.set_xticklabels([f"{row.nfe}\n{row.sigma:.3g}" for row in rows], fontsize=8)
        above.set_xlabel("network calls (NFE), and noise level sigma where the network takes over")
        small = [gaps(rows), f"published: {source}" if shown and source else ""]
        if any(small):
            figure.supxlabel(textwrap.fill(" ".join(filter(None, small)), LINE), fontsize=8)


Curve = tuple[str, list[float], str, tuple[list[float], list[float]]]
"""A label and values; what a band around them is, "" for none, and its ends."""


def _pooled(pool: Pool, skips: Sequence[int]) -> Curve:
    """Distances of all seeds, within the intervals of their change."""
    start, changes = pool.rows[0].distance, [pool.rows[skip].change for skip in skips]
    ends = [each.interval if each else (0.0, 0.0) for each in changes]
    band = [start + low for low, _ in ends], [start + high for _, high in ends]
    label = "95 % interval of the change against skip 0"
    return "measured", [pool.rows[skip].distance for skip in skips], label, band


def _averaged(rows: Sequence[Row]) -> Curve:
    """Means of ranges of seeds, within their extremes."""
    means, ranges = [row.mean for row in rows], range_count(rows)
    if ranges == "1":
        return "measured", means, "", ([], [])
    band = [row.spread[0] for row in rows], [row.spread[1] for row in rows]
    return "measured, mean", means, f"smallest to largest of {ranges} seed ranges", band


def score_errors(
    path: Path, errors: Mapping[Key, Tensor], sigmas: Sequence[float], title: str
) -> None:
    """Relative errors (n, L) of each model's score at L levels: median and quartile band."""
    with drawn(path, title, 7.2, 4.6) as figure:
        axes = figure.subplots()
        for key, values in errors.items():
            low, median, high = quartiles(values).T
            style = style_of(key)
            axes.plot(sigmas, median, marker="o", ms=4, label=key.title, **style)
            axes.fill_between(sigmas, low, high, color=style["color"], alpha=0.2)
        axes.set(xscale="log", yscale="log", xlabel=NOISE_LEVEL)
        axes.set_ylabel("relative error of the score")
        axes.invert_xaxis()
        axes.legend(title="median and quartiles over seeds")


def denoising_losses(
    path: Path,
    sigmas: Sequence[float],
    losses: Mapping[Key, Sequence[float]],
    excess: Mapping[Key, tuple[Sequence[float], Sequence[float]]],
    notes: Sequence[str],
    title: str,
) -> None:
    """Losses of each model, and what they are above the Gaussian's: (percent, half an interval).

    Where the network's comes to zero, a linear denoiser is as good.
    """
    with drawn(path, title, WIDE, TALL) as figure:
        left, right = figure.subplots(1, 2)
        for key, values in losses.items():
            left.plot(sigmas, values, marker="o", ms=3, label=key.title, **style_of(key))
        _noise_axis(left, "E|D - x_0|^2 / sigma^2, per pixel", "loss")
        left.set_ylim(bottom=min(losses[GAUSSIAN]) / 2)  # memorisation has none
        left.legend()
        right.axhline(0, **style_of(GAUSSIAN))
        for key, (percent, halves) in excess.items():
            right.errorbar(sigmas, percent, halves, marker="o", ms=3, capsize=2, **style_of(key))
        above = "loss above the Gaussian's, same noise, 95 % intervals"
        _noise_axis(right, "percent of the Gaussian's loss", above)
        _percent_axis(right, [value for percent, _ in excess.values() for value in percent])
        small = "\n".join(textwrap.fill(note, WIDE_LINE) for note in notes)
        figure.supxlabel(small, fontsize=8)


def _percent_axis(axes: Axes, values: Sequence[float]) -> None:
    """Powers of ten on both sides of zero, as far as the values go."""
    axes.set_yscale("symlog", linthresh=0.1)
    powers = (sign * 10.0**power for sign in (-1, 1) for power in range(-1, 6))
    ticks = [0, *(power for power in powers if min(values) <= power <= max(values))]
    axes.set_yticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])


def overview(path: Path, numbers: Numbers, title: str) -> None:
    """Figure 1 B and C: a few models' scores, and their solutions, against the network's."""
    with drawn(path, title, WIDE, TALL) as figure:
        left, right = figure.subplots(1, 2)
        for key in (key for key in FEW if key in numbers):
            _band(left, numbers[key]["trajectory"], "error", key)
            _band(right, numbers[key]["solution"], "state", key)
        _noise_axis(left, "relative error of the score", "score, along the network's trajectories")
        _noise_axis(right, "relative deviation of the state x", "solution from the same noise")
        left.legend(title="median, quartiles")


def score_comparison(path: Path, numbers: Numbers, places: Mapping[str, str], title: str) -> None:
    """Figure 3: relative error and unexplained share of the score, for each kind of states.

    Args:
        places: kind of states -> what they are.
    """
    with drawn(path, title, WIDE, 0.85 * TALL * len(places)) as figure:
        panels = figure.subplots(len(places), 2)
        for (left, right), (states, where) in zip(panels, places.items(), strict=True):
            for key, parts in _told_apart(numbers).items():
                agreement, style, label = parts[states], style_of(key), key.title
                median = np.array(agreement["error"])[:, 1]
                left.plot(agreement["sigma"], median, **style, label=label)
                right.plot(agreement["sigma"], 1 - np.array(agreement["explained"]), **style)
            pure = states == "noise"  # whose mean score is 0
            share = "ratio of mean squares" if pure else "unexplained share"
            squares = f"sum |difference|² / sum |score{'' if pure else ' - mean'}|²"
            _noise_axis(left, "|difference| / |score|, median", f"relative error at {where}")
            _noise_axis(right, squares, f"{share} at {where}")
            right.set_ylim(top=3)
        _legend_beside(figure, panels[0, 0])


def published_shares(path: Path, ours: Mapping[Key, Sequence[Share]], title: str) -> None:
    """The unexplained share of the score, mean over images, beside the authors' of their network.

    Ours within its 95 % interval; low ranks of their table are left out, and its shares of 1.0000,
    which are below what it shows.
    """
    with drawn(path, title, WIDE, TALL) as figure:
        axes = figure.subplots()
        for key, values in ours.items():
            if key not in SHARES or key.rank is None:
                share, half = np.array(values).T
                left, style = 1 - share, style_of(key)
                axes.plot(SIGMAS, left, label=f"{key.title}, ours", **style)
                axes.fill_between(SIGMAS, left - half, left + half, color=style["color"], alpha=0.2)
        for key, shares in SHARES.items():
            if key.rank is None:
                left = np.array([math.nan if share == 1 else 1 - share for share in shares])
                theirs = {**style_of(key), "linestyle": ":", "marker": "s", "ms": 4}
                axes.plot(SIGMAS, left, **theirs, label=f"{key.title}, published")
        _noise_axis(axes, "1 - share of |score|² explained, mean over images")
        axes.set_ylim(top=3)
        _legend_beside(figure, axes)


def _told_apart(numbers: Numbers) -> Numbers:
    """Without some of the mixtures."""
    drawn = (0, *MIXTURES)  # 0: of what is no mixture
    return {key: each for key, each in numbers.items() if key.components in drawn}


def solution_deviation(path: Path, numbers: Numbers, part: str, label: str, title: str) -> None:
    """Figures 4 and 5: how far a model's solution is from the network's, "state" or "denoised"."""
    with drawn(path, title, WIDE, TALL) as figure:
        axes = figure.subplots()
        for key, parts in _told_apart(numbers).items():
            _band(axes, parts["solution"], part, key)
        _noise_axis(axes, label)
        _legend_beside(figure, axes)


def settling_order(path: Path, settled: Mapping[str, Any], title: str) -> None:
    """Principal components: when each settles, and how its coordinate shrinks, with the theory."""
    with drawn(path, title, WIDE, TALL) as figure:
        left, right = figure.subplots(1, 2)
        ends = (min(settled["expected_half"]) / 1.5, max(settled["expected_half"]) * 1.5)
        left.plot(ends, ends, color="#888888", linewidth=1, label="Gaussian: sqrt(3 variance)")
        top, bottom = max(settled["sigma"]), min(settled["sigma"])
        points = list(zip(settled["expected_half"], settled["half"], strict=True))
        inside = [point for point in points if bottom < point[1] < top]
        outside = [point for point in points if point not in inside]
        for group, marker, label in ((inside, "o", "network"), (outside, "x", "not in the grid")):
            if group:
                left.plot(*zip(*group, strict=True), marker, color=COLORS[0], label=label)
        left.set(xscale="log", yscale="log", xlabel="sqrt(3 variance) of the component (pixels)")
        left.set_ylabel("sigma where it has half its final size")
        left.legend()
        left.set_title(f"rank correlation with the variance {settled['order']:.3f}", fontsize=10)
        count = len(settled["gain"])
        chosen = sorted({0, 1, 3, 7, 15, count - 1} & set(range(count)))
        for color, k in zip(COLORS, chosen, strict=False):
            right.plot(settled["sigma"], settled["gain"][k], "o", ms=4, color=color)
            label = f"component {k + 1}"
            right.plot(settled["sigma"], settled["expected"][k], color=color, label=label)
        shown = "network (dots), closed form (lines)"
        _noise_axis(right, "coordinate of x, relative to sigma_T", shown)
        right.legend()


def image_rows(
    path: Path, rows: Mapping[str, Tensor], columns: Sequence[str], above: str, title: str
) -> None:
    """Figures 2 A, B and C: labelled rows of images (n, C, H, W) in [-1, 1], a label a column."""
    height = 1.1 + WIDE / len(columns) * len(rows)
    with drawn(path, title, WIDE, height, grid=False) as figure:
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, (name, images) in zip(panels, rows.items(), strict=True):
            edge = max(1, images.shape[-1] // 32)
            tiled = grid(to_uint8(pad(images.cpu(), [edge] * 4, value=1)), len(images))  # 1: white
            axes.imshow(tiled.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        width = rows[next(iter(rows))].shape[-1] + 2 * edge
        panels[-1].set_xticks((np.arange(len(columns)) + 0.5) * width - 0.5, columns)
        panels[-1].set_xlabel(above)


def image_panels(path: Path, panels: Mapping[str, Tensor], columns: int, title: str) -> None:
    """Panels side by side, each with its own title, of images (n, C, H, W) in [-1, 1], framed."""
    with drawn(path, title, 4.2 * len(panels), 4.8, grid=False) as figure:
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, images) in zip(row, panels.items(), strict=True):
            framed = pad(images.cpu(), [max(1, images.shape[-1] // 32)] * 4)  # 0: grey
            tiled = grid(to_uint8(framed), columns).permute(1, 2, 0)
            axes.imshow(tiled.expand(-1, -1, 3).numpy(), interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(name, fontsize=10)


def chain_changes(
    path: Path, curves: Mapping[str, Sequence[Interval]], name: str, title: str
) -> None:
    """The change of the distance by a teleport, with its 95 % interval, against network calls."""
    with drawn(path, title, 7.2, TALL) as figure:
        axes = figure.subplots()
        for color, (sampler, points) in zip(COLORS, curves.items(), strict=False):
            calls, change, low, high = np.array(points).T
            axes.errorbar(
                calls, change, (change - low, high - change), fmt="o-", ms=4, capsize=3,
                color=color, label=sampler,
            )  # fmt: skip
        axes.axhline(0, color="black", lw=0.8)
        axes.set(xlabel="network calls of an image (NFE); rightmost: nothing skipped")
        axes.set_ylabel(f"change of {name}, 95 % interval")
        axes.legend()


def solver_quality(path: Path, curves: Mapping[str, Sequence[Row]], name: str, title: str) -> None:
    """Figure 2 D: distance against NFE, skipped steps and the noise level of the teleport's end."""
    with drawn(path, title, WIDE, TALL) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for color, (solver, rows) in zip(COLORS, curves.items(), strict=False):
            ways = ([r.nfe for r in rows], [r.skip for r in rows], [r.sigma for r in rows])
            for axes, across in zip(panels, ways, strict=True):
                axes.plot(across, [r.mean for r in rows], "o-", ms=4, color=color, label=solver)
        panels[0].set(yscale=_scale(_means(curves)), xlabel="network calls (NFE)", ylabel=name)
        panels[1].set(xlabel="skipped steps")
        panels[2].set(xscale="log", xlabel="sigma where the network starts")
        panels[2].invert_xaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def teleport_quality(
    path: Path, curves: Mapping[Key, Sequence[Row]], name: str, title: str
) -> None:
    """Distance against skipped steps for several models to teleport with."""
    with drawn(path, title, 7.2, TALL) as figure:
        axes = figure.subplots()
        for key, rows in curves.items():
            means, style = [r.mean for r in rows], style_of(key)
            axes.plot([r.skip for r in rows], means, marker="o", label=key.title, **style)
        axes.set(yscale=_scale(_means(curves)), xlabel="skipped steps", ylabel=name)
        axes.legend()


def _means(curves: Mapping[Any, Sequence[Row]]) -> list[float]:
    return [row.mean for rows in curves.values() for row in rows]


def _scale(distances: Sequence[float]) -> str:
    """Logarithmic where the distances span more than a linear axis shows."""
    return "log" if max(distances) > LOG_FROM * min(distances) > 0 else "linear"


def _band(axes: Axes, numbers: Mapping[str, Any], part: str, key: Key) -> None:
    """Median and quartile band; of the many mixtures, the median alone."""
    low, median, high = np.array(numbers[part]).T
    shown, style = median > ROUNDING, style_of(key)
    sigma = np.array(numbers["sigma"])[shown]
    axes.plot(sigma, median[shown], **style, label=key.title)
    if key.kind != "mixture":
        axes.fill_between(sigma, low[shown], high[shown], color=style["color"], alpha=0.15)


def _noise_axis(axes: Axes, label: str, title: str = "") -> None:
    axes.set(xscale="log", yscale="log", ylabel=label)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(NOISE_LEVEL, fontsize=8)
    axes.invert_xaxis()


def _legend_beside(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)

"""Pictures of what curves of codes hold, of the numbers of `experiments.curves`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.curves import reconstructions
from experiments.probe import ATTENTION, GRU, MIXED, ONE, REPEATED, Subject
from experiments.style import COLORS, OTHER, drawn
from linear_structure.data.factors import PARTS

SIGMA = "noise level sigma"
MAP = "viridis"
WIDTH = 3.4  # of a panel, in inches
CLASSES = mpl.colormaps["tab10"]  # of classes
SHOWN = (0.6, 2.5, 20.0)  # noise levels of denoised images, and
SPREAD = (0.02, 0.3, 2.5, 20.0)  # of codes
COLUMNS = 12
ALL = 100.5  # percent, where an axis ends
HEADS = {MIXED: COLORS[1], GRU: COLORS[2], ATTENTION: COLORS[3], REPEATED: OTHER}
LINES = {MIXED: "-", GRU: "--", ATTENTION: "-.", REPEATED: ":"}


def write_all(folder: Path, numbers: Mapping[str, Any], subject: Subject) -> list[Path]:
    """Draw all pictures, of the numbers and of the first pair; their paths."""
    pictures: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
        "profiles.png": accuracies,
        "attention.png": attention,
        "jsd.png": divergence,
        "information.png": information,
        "theory.png": theory,
    }
    for name, draw in pictures.items():
        draw(folder / name, numbers)
    denoised(folder / "reconstructions.png", subject)
    names = [*pictures, "reconstructions.png"]
    if subject.dim == 2:
        scatter(folder / "codes.png", subject)
        names.append("codes.png")
    return [folder / name for name in names]


def _title(numbers: Mapping[str, Any], what: str) -> str:
    count, seeds = len(numbers["sigmas"]), len(numbers["seeds"])
    said = f"{seeds} seeds" if seeds > 1 else "one seed"
    return f"{what}: {numbers['dim']} numbers at {count} levels, {said}"


def accuracies(path: Path, numbers: Mapping[str, Any]) -> None:
    """Test accuracy of each level's own head, and of those that read all levels."""
    factors = numbers["factors"]
    title = _title(numbers, "Test accuracy")
    with drawn(path, title, max(6.0, WIDTH * len(factors)), 3.9) as figure:
        for panel, (factor, read) in zip(_row(figure, len(factors)), factors.items(), strict=True):
            _lines(panel, numbers["sigmas"], 100 * np.array(read[ONE]), COLORS[0], ONE)
            for head, color in HEADS.items():
                mean = 100 * np.mean(read[head])
                panel.axhline(mean, color=color, linestyle=LINES[head], label=head)
            panel.set(title=factor, xscale="log", xlabel=SIGMA, ylabel="accuracy in percent")
            panel.set_ylim(top=min(panel.get_ylim()[1], ALL))
        handles, labels = panel.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def attention(path: Path, numbers: Mapping[str, Any]) -> None:
    """What attention takes from each level, and what it misses when that level is hidden."""
    factors, sigmas = numbers["factors"], numbers["sigmas"]
    title = _title(numbers, "Attention to levels")
    with drawn(path, title, 8.4, 3.9) as figure:
        left, right = _row(figure, 2)
        for color, (factor, read) in zip(COLORS, factors.items(), strict=False):
            whole = np.array(read[ATTENTION])
            _lines(left, sigmas, np.array(read["profile"]), color, factor)
            _lines(right, sigmas, 100 * (whole - np.array(read["hidden"])), color, factor)
        left.axhline(1 / len(sigmas), color=OTHER, linestyle=":", label="all alike")
        left.set(ylabel="mean weight", ylim=(0, None), title="where it looks")
        right.set(ylabel="percentage points", title="accuracy that hiding the level costs")
        for panel in (left, right):
            panel.set(xscale="log", xlabel=SIGMA)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _lines(
    panel: Axes, sigmas: Sequence[float], values: np.ndarray, color: str, label: str
) -> None:
    """The mean over seeds of (S, K), and each seed thinly."""
    for each in values:
        panel.plot(sigmas, each, color=color, linewidth=0.7, alpha=0.35)
    panel.plot(sigmas, values.mean(0), color=color, marker="o", markersize=4, label=label)


def divergence(path: Path, numbers: Mapping[str, Any]) -> None:
    """Between attention to factors."""
    found = numbers["divergence"]
    names, between = found["factors"], np.array(found["between"])
    alone = found["seeds"]
    said = "" if alone is None else f"\ntwo seeds of one factor: {alone:.3f} on average"
    with drawn(
        path, f"Jensen-Shannon divergence of attention, in bits{said}", 5.2, 4.2, False
    ) as f:
        panel = f.add_subplot()
        _heat(f, panel, between, names, "{:.3f}", max(between.max(), 1e-3))


def information(path: Path, numbers: Mapping[str, Any]) -> None:
    """Of levels in each other: by a copula, by MINE, and normalised."""
    found, sigmas = numbers["information"], numbers["sigmas"]
    every = [f"{sigma:.2g}" for sigma in sigmas]
    chosen = [every[place] for place in found["chosen"]]
    copula = np.array(found["copula"], dtype=float)
    title = f"Information of levels in each other, one pair of {numbers['dim']} numbers a level"
    with drawn(path, title, 13.0, 4.6, grid=False) as figure:
        panels = _row(figure, 3)
        largest = np.nanmax(copula) if np.isfinite(copula).any() else 1.0
        _heat(figure, panels[0], copula, every, "", largest)
        _heat(figure, panels[1], np.array(found["held_out"]), chosen, "{:.2f}")
        _heat(figure, panels[2], np.array(found["normalised"]), chosen, "{:.2f}", 1.0)
        panels[0].set_title("Gaussian copula, nats (white: infinite)")
        panels[1].set_title(f"MINE, nats, held out, {found['steps']:,} steps")
        panels[2].set_title(f"MINE, normalised, training, {found['steps']:,} steps")
        for panel in panels:
            panel.set(xlabel=SIGMA, ylabel=SIGMA)


def _heat(
    figure: Figure,
    panel: Axes,
    values: np.ndarray,
    names: Sequence[str],
    form: str,
    high: float | None = None,
) -> None:
    """A square map from 0 up, with its numbers where they have a form."""
    image = panel.imshow(values, cmap=MAP, vmin=0, vmax=high)
    panel.set_xticks(range(len(names)), names, rotation=45)
    panel.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=panel, shrink=0.85)
    middle = (high or np.nanmax(values)) / 2
    for i, row in enumerate(values if form else ()):
        for j, value in enumerate(row):
            color = "black" if value > middle else "white"
            panel.text(j, i, form.format(value), ha="center", va="center", color=color, fontsize=8)


def theory(path: Path, numbers: Mapping[str, Any]) -> None:
    """Linear codes that were learnt beside principal components, and what draws them there."""
    found, sigmas, dim = numbers["theory"], numbers["sigmas"], numbers["dim"]
    with drawn(path, f"Linear codes of {dim} numbers, Gaussian of the images", 11.4, 3.6) as figure:
        angle, missed, worth = panels = _row(figure, 3)
        if found["gap"] is None:
            angle.set_title(f"the images have no component {dim + 1}")
            return
        for panel, name in ((angle, "angles"), (missed, "missed")):
            for color, steps, values in zip(COLORS, found["steps"], found[name], strict=False):
                panel.plot(sigmas, values, color=color, marker="o", label=f"{steps:,} steps")
        worth.plot(sigmas, found["gap"], color=COLORS[2], marker="o")
        angle.set(ylabel="degrees", ylim=(0, 92), title=f"largest angle to {dim} components")
        missed.set(ylabel="share of the gain", yscale="log", title="gain that is missed")
        worth.set(yscale="log", title=f"worth of component {dim} over {dim + 1}")
        worth.set_ylabel("share of the posterior variance")
        angle.legend()
        for panel in panels:
            panel.set(xscale="log", xlabel=SIGMA)


def denoised(path: Path, subject: Subject) -> None:
    """Test images, and what is made of them at some noise levels, told their codes, and z = 0."""
    sigmas = subject.codes.sigmas
    levels = [int((sigmas - wanted).abs().argmin()) for wanted in SHOWN]
    rows = reconstructions(subject, COLUMNS, levels)
    names = ["image"]
    for level in levels:
        names += [f"sigma {sigmas[level]:.2g}, told", "z = 0"]
    with drawn(path, f"Denoised images, codes of {subject.dim} numbers", 6.4, 5.6, False) as figure:
        for place, (name, row) in enumerate(zip(names, rows, strict=True), 1):
            panel = figure.add_subplot(len(rows), 1, place)
            strip = row.permute(2, 0, 3, 1).flatten(1, 2)
            panel.imshow(strip.expand(-1, -1, 3).numpy())
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            panel.set_ylabel(name, rotation=0, ha="right", va="center")


def scatter(path: Path, subject: Subject) -> None:
    """Codes of two numbers of test images at some noise levels, by factor."""
    codes, shown = subject.codes, subject.codes.part == PARTS.index("test")
    levels = [int((codes.sigmas - wanted).abs().argmin()) for wanted in SPREAD]
    factors = {name: labels[shown] for name, labels in codes.labels.items()}
    size, count = 2.5, int(shown.sum())
    title = f"Codes of two numbers of {count:,} test images, coloured by the class of each factor"
    with drawn(path, title, size * len(levels) + 0.6, size * len(factors), grid=False) as figure:
        for row, (name, labels) in enumerate(factors.items()):
            norm = Normalize(-0.5, max(CLASSES.N - 1, int(labels.max())) + 0.5)
            for column, level in enumerate(levels):
                place = row * len(levels) + column + 1
                panel = figure.add_subplot(len(factors), len(levels), place)
                z = codes.z[shown, level]
                points = panel.scatter(z[:, 0], z[:, 1], c=labels, cmap=CLASSES, norm=norm, s=4)
                panel.set(xticks=[], yticks=[])
                if not row:
                    panel.set_title(f"sigma {codes.sigmas[level]:.2g}")
                if not column:
                    panel.set_ylabel(name)
            figure.colorbar(points, ax=panel, label="class", ticks=MaxNLocator(integer=True))


def _row(figure: Figure, count: int) -> list[Axes]:
    return [figure.add_subplot(1, count, place + 1) for place in range(count)]

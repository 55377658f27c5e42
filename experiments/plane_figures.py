"""Pictures of data in the plane. All have one orientation: x_0 to the right, x_1 upwards.

Colours and heights are densities: in closed form, or shares of a sample by square, over its area.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from torch import Tensor

from experiments.plane import (
    BINS,
    HALF,
    Run,
    Study,
    centres,
    density,
    histogram,
    noise_of,
    total_variation,
)
from experiments.style import drawn
from linear_structure.denoise import Denoiser, score

DENSITY, ERROR = "viridis", "plasma"  # colour maps of densities, and of relative errors
ERRORS = (1e-3, 1.0)  # where the latter begins and ends
EXACT = "#333333"  # the colour of arrows without an error
ARROWS = 20  # a side
LONGEST = 2.0  # of the arrows, in squares of their own
NOISED = (0.0, 5.0, 0.58, 0.068)  # the data, then the tutorial's levels
COMPARED = (0.58, 5.0)  # levels of scores
SMOOTH = {"rcount": BINS, "ccount": BINS, "linewidth": 0, "shade": False}
WIDTH = 9.6  # of pictures, and
WIDEST = 3.0  # of their panels
WAYS = {  # teleported, learned -> the word of a panel
    (False, False): "exact score",
    (True, False): "teleported, exact",
    (False, True): "learned score",
    (True, True): "teleported, learned",
}


class Panel(NamedTuple):
    """A density (BINS, BINS) over [-half, half]^2, ordered as `plane.histogram`; None: nothing."""

    title: str
    values: Tensor | None
    half: float = HALF


class Field(NamedTuple):
    """Arrows (ARROWS, ARROWS, 2) at `plane.centres`, and their relative errors, where they have."""

    title: str
    arrows: Tensor
    errors: Tensor | None = None


def sampled(title: str, x: Tensor, half: float = HALF) -> Panel:
    """The histogram of a sample (n, 2)."""
    return Panel(title, histogram(x, half) * (BINS / (2 * half)) ** 2, half)


def write_density(path: Path, study: Study, run: Run) -> None:
    """The density, exact samples and those of a run: as surfaces, and from above."""
    panels = [
        Panel("density", density(study.plane.model, 0.0)),
        sampled("exact samples", study.reference),
        sampled(f"{run.walk.title}, {run.calls:,} steps", study.samples[run]),
    ]
    highest = max(map(_highest, panels))
    title = f"{study.plane.name}: {study.count:,} particles in {BINS} x {BINS} squares"
    with drawn(path, title, WIDTH, 6.4, grid=False) as figure:
        for column, panel in enumerate(panels, 1):
            above = figure.add_subplot(2, len(panels), column, projection="3d")
            _surface(above, panel, highest)
            below = figure.add_subplot(2, len(panels), len(panels) + column)
            colours(below, panel._replace(title=""), highest)


def _surface(axes: Any, panel: Panel, highest: float) -> None:
    x, y = centres(panel.half).unbind(2)
    axes.plot_surface(
        x, y, panel.values, cmap=DENSITY, vmin=0, vmax=highest, rcount=BINS, ccount=BINS
    )
    axes.set(xlabel="$x_0$", ylabel="$x_1$", zlim=(0, highest))
    axes.set_title(panel.title, fontsize=10)
    axes.tick_params(labelsize=7)


def write_noised(path: Path, study: Study) -> None:
    """The data and three noise levels: densities where there is one, samples below."""
    plane, clean = study.plane, study.exact("noised")
    noise = noise_of(study.generator("noise"))(clean)
    rows: dict[str, list[Panel]] = {plane.source: [], f"{study.count:,} samples": []}
    above, below = rows.values()
    for sigma in NOISED:
        name, half = (
            f"$\\sigma$ = {sigma:g}" if sigma else "the data",
            float(round(HALF + 2 * sigma)),
        )
        known = sigma > 0 or plane.has_density
        above.append(Panel(name, density(plane.model, sigma, half) if known else None, half))
        below.append(sampled("" if known else name, clean + sigma * noise, half))
    _write_rows(path, rows, f"{plane.name}: data with noise of standard deviation $\\sigma$")


def write_samples(path: Path, study: Study) -> None:
    """What to compare with; then each sampler: whole, teleported, with the learned score."""
    short = [run for run in study.runs if run.walk.is_one_level]
    rows = {
        "without levels": [
            _titled("exact samples", study.exact(0), study),
            _titled("Gaussian of the data", study.gaussian, study),
            *(
                _titled(f"{r.walk.title}\n{r.calls:,} calls", study.samples[r], study)
                for r in short
            ),
        ]
    }
    shown = [run.walk for run in study.runs if run.teleported and not run.learned]
    for walk in shown:
        own = [run for run in study.runs if run.walk is walk]
        rows[walk.title] = [_panel(run, study) for run in own]
    highest = _highest(sampled("", study.reference))
    title = f"{study.plane.name}: {study.count:,} particles; TV: total variation"
    _write_rows(path, rows, f"{title} to exact samples", highest)


def _titled(name: str, x: Tensor, study: Study) -> Panel:
    return sampled(f"{name}\nTV {total_variation(x, study.reference):.3f}", x)


def _panel(run: Run, study: Study) -> Panel:
    name = f"{WAYS[run.teleported, run.learned]}, {run.calls} calls"
    return _titled(name, study.samples[run], study)


def _write_rows(
    path: Path, rows: Mapping[str, Sequence[Panel]], title: str, highest: float | None = None
) -> None:
    """Rows of panels by their names; colours up to `highest`, or to each panel's own maximum."""
    columns = max(map(len, rows.values()))
    side = min(WIDTH / columns, WIDEST)
    height = 0.4 + len(rows) * (side + 0.1)
    with drawn(path, title, columns * side, height, grid=False) as figure:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes_row, (name, panels) in zip(grid, rows.items(), strict=True):
            for axes, panel in zip(axes_row, panels, strict=False):
                colours(axes, panel, highest)
            for axes in axes_row[len(panels) :]:
                axes.set_axis_off()
            first = next(i for i, panel in enumerate(panels) if panel.values is not None)
            axes_row[first].set_ylabel(f"{name}\n$x_1$")


def colours(axes: Axes, panel: Panel, highest: float | None = None) -> None:
    """A panel as an image, from 0 to `highest`, or to its own maximum."""
    if panel.values is None:
        axes.set_axis_off()
        return
    half = panel.half
    axes.imshow(
        panel.values.numpy(),
        cmap=DENSITY,
        vmin=0,
        vmax=highest,
        origin="lower",
        extent=(-half, half, -half, half),
    )
    _square(axes, half)
    axes.set_title(panel.title, fontsize=9)


def write_scores(path: Path, study: Study) -> None:
    """The exact score, the network's if there is one, and the Gaussian's, each with its error."""
    plane, rows = study.plane, {}
    for level in COMPARED:
        sigma = torch.tensor(level, dtype=torch.float64)
        exact = arrows(plane.model.denoise, sigma)
        fields = [Field(f"exact ({plane.source})", exact)]
        if study.network is not None:
            fields.append(_compared("learned", arrows(study.network, sigma), exact))
        fields.append(_compared("Gaussian", arrows(plane.gaussian.denoise, sigma), exact))
        rows[f"$\\sigma$ = {level:g}"] = fields
    title = f"{plane.name}: scores; the lengths of arrows are square roots"
    columns = len(fields)
    with drawn(path, title, 0.9 + 2.5 * columns, 0.4 + 2.75 * len(rows), grid=False) as figure:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes_row, (name, fields) in zip(grid, rows.items(), strict=True):
            longest = max(float(field.arrows.norm(dim=2).max()) for field in fields)
            for axes, field in zip(axes_row, fields, strict=True):
                _draw(axes, field, longest)
            axes_row[0].set_ylabel(f"{name}\n$x_1$")
        scale, label = ScalarMappable(LogNorm(*ERRORS), ERROR), "relative error of the score"
        figure.colorbar(scale, ax=grid, label=label, extend="both", aspect=40)


def arrows(denoise: Denoiser, sigma: Tensor) -> Tensor:
    """A score at `plane.centres`: (ARROWS, ARROWS, 2)."""
    x = centres(count=ARROWS)
    with torch.inference_mode():
        return score(denoise, x.flatten(0, 1), sigma).view_as(x)


def _compared(name: str, found: Tensor, exact: Tensor) -> Field:
    errors = (found - exact).norm(dim=2) / exact.norm(dim=2)
    return Field(f"{name}: median error {float(errors.median()):.2g}", found, errors)


def _draw(axes: Axes, field: Field, longest: float) -> None:
    """Lengths by their square roots: else the arrows near the modes would be dots."""
    lengths = field.arrows.norm(dim=2, keepdim=True).clamp(min=1e-12)
    shown = field.arrows / (lengths * longest).sqrt() * (LONGEST * 2 * HALF / ARROWS)
    parts = [*centres(count=ARROWS).unbind(2), *shown.unbind(2)]
    if field.errors is not None:
        parts.append(field.errors)
    axes.quiver(
        *(part.numpy() for part in parts),
        color=EXACT,
        cmap=ERROR,
        norm=LogNorm(*ERRORS),
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.006,
    )
    _square(axes, HALF)
    axes.set_title(field.title, fontsize=9)


def _square(axes: Axes, half: float) -> None:
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xlabel="$x_0$", ylabel="$x_1$")
    axes.tick_params(labelsize=7)


def _highest(panel: Panel) -> float:
    return 0.0 if panel.values is None else float(panel.values.max())

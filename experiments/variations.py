"""Distance against skipped steps for several solvers, and for several models to teleport with.

Each curve is a sweep over the same seeds, resumed as any sweep is. That of Heun after the Gaussian
is the preset's own, shared with the other commands; the others lie beside the figures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from experiments import figures, models, sweep, tables
from experiments.sampling import SAMPLERS
from experiments.sweep import Sweep
from experiments.tables import Row, write_table
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.parameters import Model, Parameters, digest

COMPONENTS = 10
TITLES = {"heun": "Heun", "dpmpp_2m": "DPM-Solver++(2M)", "unipc": "UniPC-2"}


def rows_of(varied: Sweep) -> list[Row]:
    """The rows of one sweep, made or continued."""
    return tables.rows(list(sweep.run(varied)))


def solvers(plain: Sweep, folder: Path) -> dict[str, list[Row]]:
    """The same teleport before each solver, at equal steps."""
    varied = {
        name: replace(plain, root=folder / name, preset=replace(plain.preset, sampler=name))
        for name in SAMPLERS
        if name != plain.preset.sampler
    }
    found = {plain.preset.sampler: plain, **varied}
    return {TITLES[name]: rows_of(each) for name, each in found.items()}


def teleports(plain: Sweep, images: Tensor | None, folder: Path) -> dict[str, list[Row]]:
    """The same solver after each model's teleport; the mixture needs images (n, C, H, W)."""
    own = "Gaussian of each class" if plain.by_class else "Gaussian"
    found = {own: rows_of(plain)}
    for name, model in _others(plain.parameters.model, images, bool(plain.by_class)):
        parameters = Parameters(model, {}, digest(model))
        root = folder / name.replace(" ", "-")
        found[name] = rows_of(replace(plain, root=root, parameters=parameters, by_class={}))
    return found


def _others(own: Model, images: Tensor | None, by_class: bool) -> Iterator[tuple[str, Model]]:
    if by_class:
        yield "Gaussian", own
    if isinstance(own, Gaussian):
        yield "isotropic", Isotropic(own.mean)
    if images is not None and len(images) >= COMPONENTS:
        yield f"mixture of {COMPONENTS}", models.fitted(images, COMPONENTS, None)


def write_solvers(plain: Sweep, folder: Path) -> None:
    """Figure 2 D and its numbers."""
    curves, name = solvers(plain, folder / "sweeps"), plain.features.distance_name
    count = f"{plain.preset.seeds.count:,} images"
    _write(folder / "figure2d.csv", curves, name)
    title = f"{plain.preset.name}: quality of teleported samples, {count}"
    figures.solver_quality(folder / "figure2d.png", curves, name, title)


def write_teleports(plain: Sweep, images: Tensor | None, folder: Path) -> None:
    """What other models than the Gaussian are worth as a teleport."""
    curves, name = teleports(plain, images, folder / "sweeps"), plain.features.distance_name
    count = f"{plain.preset.seeds.count:,} images"
    _write(folder / "teleports.csv", curves, name)
    title = f"{plain.preset.name}: teleport by different models, {count}"
    figures.teleport_quality(folder / "teleports.png", curves, name, title)


def _write(path: Path, curves: Mapping[str, list[Row]], name: str) -> None:
    rows = [
        [curve, row.skip, row.sigma, row.nfe, row.mean]
        for curve, points in curves.items()
        for row in points
    ]
    write_table(path, ("curve", "skipped_steps", "sigma", "nfe", name), rows)

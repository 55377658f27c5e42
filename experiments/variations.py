"""Distance against skipped steps for several solvers, and for several models to teleport with.

Each curve is a sweep over the same seeds, resumed as any sweep is. That of Heun after the Gaussian
is the preset's own, shared with the other commands; the others lie beside the figures.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from experiments import figures, sweep, tables
from experiments.comparison import BY_CLASS, GAUSSIAN, ISOTROPIC, Key
from experiments.sweep import Sweep
from experiments.tables import Row, write_table
from linear_structure import fit
from linear_structure.denoise import Model
from linear_structure.gaussian import EigenGaussian, Isotropic
from linear_structure.sampling.table import SAMPLERS
from linear_structure.teleport import Teleport

COMPONENTS = 10


def rows_of(varied: Sweep) -> list[Row]:
    """The rows of one sweep, made or continued."""
    return tables.rows(list(sweep.run(varied)))


def solvers(plain: Sweep, folder: Path) -> dict[str, list[Row]]:
    """The same teleport before each solver, by its title, at equal steps; the preset's first."""
    own = plain.preset.sampler
    varied = {own: plain} | {
        name: replace(plain, root=folder / name, preset=replace(plain.preset, sampler=name))
        for name, row in SAMPLERS.items()
        if name != own and not row.stochastic
    }
    return {SAMPLERS[name].title: rows_of(each) for name, each in varied.items()}


def teleports(plain: Sweep, images: Tensor | None, folder: Path) -> dict[Key, list[Row]]:
    """The same sampler after each model's teleport; the mixture needs images (n, C, H, W)."""
    own, by_class = plain.teleport.model, bool(plain.teleport.by_class)
    others: dict[Key, Model] = {GAUSSIAN: own} if by_class else {}
    if isinstance(own, EigenGaussian):
        others[ISOTROPIC] = Isotropic(own.mean)
    if images is not None and len(images) >= COMPONENTS:
        others[Key("mixture", COMPONENTS)] = fit.mixture_of(images, COMPONENTS)
    found = {BY_CLASS if by_class else GAUSSIAN: rows_of(plain)}
    for key, model in others.items():
        found[key] = rows_of(replace(plain, root=folder / key.slug, teleport=Teleport(model)))
    return found


def write_solvers(plain: Sweep, folder: Path) -> None:
    """Figure 2 D and its numbers."""
    curves, name = solvers(plain, folder / "sweeps"), plain.features.distance_name
    _write(folder / "figure2d.csv", curves, name)
    preset = plain.preset
    title = f"{preset.title}: quality of teleported samples, {preset.seeds.count:,} images"
    figures.solver_quality(folder / "figure2d.png", curves, name, title)


def write_teleports(plain: Sweep, images: Tensor | None, folder: Path) -> None:
    """What other models than the Gaussian are worth as a teleport."""
    curves, name = teleports(plain, images, folder / "sweeps"), plain.features.distance_name
    _write(folder / "teleports.csv", {key.title: rows for key, rows in curves.items()}, name)
    preset = plain.preset
    title = f"{preset.title}: teleport by different models, {preset.seeds.count:,} images"
    figures.teleport_quality(folder / "teleports.png", curves, name, title)


def _write(path: Path, curves: Mapping[str, list[Row]], name: str) -> None:
    rows = [
        [curve, row.skip, row.sigma, row.nfe, row.mean]
        for curve, points in curves.items()
        for row in points
    ]
    write_table(path, ("curve", "skipped_steps", "sigma", "nfe", name), rows)

"""What carries a latent past the first steps: a model's flow, closed or solved, or one a class.

    x = carry(x, sigmas, k, Teleport(gaussian))
    *_, last = heun(network, x, sigmas[k:])

A model with a method `flow` is carried by it. The probability-flow ODE of any other is solved by
Heun's method on the model's own denoiser: no network is called either way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from linear_structure.denoise import Level, Model, Position
from linear_structure.parameters import digest
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import check_skip, heun
from linear_structure.system.errors import UsageError

SOLVER_STEPS = 32


class Sized(Protocol):
    """What a teleport asks of a network."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it makes."""

    @property
    def label_dim(self) -> int:
        """Number of its classes, 0 if it has none."""


def has_flow(model: Model) -> bool:
    """Whether the model's flow is a formula."""
    return hasattr(model, "flow")


def flow(model: Model, x: Tensor, start: Level, stop: Level) -> Tensor:
    """The solution at `stop` of the model's ODE that is at x (B, *S) when at `start`.

    Closed where the model has a formula; else float64, by `SOLVER_STEPS` steps between the two
    levels, each one number above 0 and not infinite.

    Raises:
        UsageError: the model has no formula and nothing to solve by.
    """
    if has_flow(model):
        return model.flow(x, start, stop)  # type: ignore[attr-defined]
    (a0, first), (a1, last) = _scale_and_sigma(start), _scale_and_sigma(stop)
    return a1 * _solved(model, x.double() / a0, sigma_grid(SOLVER_STEPS + 1, last, first)[:-1])


def _scale_and_sigma(level: Level) -> tuple[float, float]:
    scale, noise = map(float, level if isinstance(level, Position) else (1.0, level))
    if not scale > 0:
        raise UsageError("no signal is left at scale 0, where only a closed flow can start")
    return scale, noise / scale


def _solved(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    moved = model.to(x) if hasattr(model, "to") else None  # and None of one that leaves it out
    if moved is None or not hasattr(moved, "denoise"):
        name = type(model).__name__
        raise UsageError(f"{name} cannot teleport: expected `flow`, or `denoise` and `to`")
    *_, last = heun(moved.denoise, x, sigmas)
    return last.x


@dataclass(frozen=True)
class Teleport:
    """A model, or one a class, whose flow takes the place of the first steps."""

    model: Model  # of all images
    by_class: Mapping[int, Model] = field(default_factory=dict)  # used for samples of a class

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What results depend on, beside the grid, as JSON values."""
        classes = [digest(self.by_class[label]) for label in sorted(self.by_class)]
        return {
            "parameters": digest(self.model),
            **({"by_class": classes} if classes else {}),
            **({} if has_flow(self.model) else {"solver_steps": SOLVER_STEPS}),
        }

    def check(self, network: Sized) -> None:
        """Raise a UsageError for a model of no size, or another than the network's; or no class."""
        for model in (self.model, *self.by_class.values()):
            if getattr(model, "dim", None) is None:
                raise UsageError(f"{type(model).__name__} states no `dim`: the values of one image")
            if model.dim != prod(network.shape):
                raise UsageError(
                    f"the parameters describe images of {model.dim} values, the network makes "
                    f"{' x '.join(map(str, network.shape))} = {prod(network.shape)}"
                )
        if self.by_class:
            check_classes(self.by_class, network.label_dim)

    def flow(self, x: Tensor, start: Level, stop: Level, labels: Tensor | None = None) -> Tensor:
        """x (B, *S) at `start`, carried to `stop`; by the models of their classes (B,), if any."""
        return self._by_model(lambda model, part: flow(model, part, start, stop), x, labels)

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Denoised images of x (B, *S), likewise."""
        return self._by_model(lambda model, part: model.denoise(part, sigma), x, labels)

    def _by_model(
        self, apply: Callable[[Model, Tensor], Tensor], x: Tensor, labels: Tensor | None
    ) -> Tensor:
        """What each sample's model makes of it."""
        if not self.by_class or labels is None:
            return apply(self.model, x)
        made = torch.empty_like(x)
        for label in labels.unique().tolist():
            chosen = labels == label
            made[chosen] = apply(self.by_class[label], x[chosen])
        return made


def check_classes(by_class: Mapping[int, Any], label_count: int) -> None:
    """Raise a UsageError if a network has no classes, or if one of them has no parameters."""
    if not label_count:
        raise UsageError("--by-class is for conditional networks: this one has no classes")
    if missing := [str(label) for label in range(label_count) if label not in by_class]:
        raise UsageError(
            f"no parameters of class {', '.join(missing)}: make them with get_parameters --by-class"
        )


def carry(
    x: Tensor, sigmas: Tensor, skip: int, teleport: Teleport | None, labels: Tensor | None = None
) -> Tensor:
    """States x (B, *S) at sigmas[0], carried to sigmas[skip]; skip = 0 calls no model.

    Raises:
        UsageError: skip > 0 without a teleport, or out of the grid's range.
    """
    check_skip(skip, len(sigmas) - 1)
    if skip == 0:
        return x
    if teleport is None:
        raise UsageError(f"skip {skip} needs a model to teleport with, such as a Gaussian")
    return teleport.flow(x, sigmas[0], sigmas[skip], labels)

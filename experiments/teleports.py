"""What carries a latent past the first steps: a model's flow, closed or solved, or one a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm.precondition import Preconditioned
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.parameters import Model, Parameters
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.system.errors import UsageError

SOLVER_STEPS = 32


class Flow(Protocol):
    """A model whose probability-flow ODE can be solved without the network."""

    def flow(self, x: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """The solution at sigma = stop of the trajectory that is at x when sigma = start."""


@dataclass(frozen=True)
class Solved:
    """The flow of a model that has none in closed form: `SOLVER_STEPS` of Heun's method on it."""

    model: GaussianMixture | PointCloud

    def flow(self, x: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """x (B, *S) at `start`, carried to `stop`, both above 0: float64."""
        sigmas, x = sigma_grid(SOLVER_STEPS + 1, float(stop), float(start))[:-1], x.double()
        *_, last = heun(self.model.to(x).denoise, x, sigmas)
        return last.x


@dataclass(frozen=True)
class ByClass:
    """A flow for each class, for samples of known classes.

    Attributes:
        flows: class -> its flow.
        labels: (B,) int64, the classes of the samples.
    """

    flows: Mapping[int, Flow]
    labels: Tensor

    def flow(self, x: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """x (B, *S) at `start`, each sample carried to `stop` by the flow of its class."""
        carried = torch.empty_like(x)
        for label in self.labels.unique().tolist():
            chosen = self.labels == label
            carried[chosen] = self.flows[label].flow(x[chosen], start, stop)
        return carried


def flow_of(model: Model) -> Flow:
    """The flow of any model: closed where it can be."""
    return model if isinstance(model, Gaussian | Isotropic) else Solved(model)


def has_closed_flow(model: Model) -> bool:
    """Whether the model's flow is a formula."""
    return isinstance(model, Gaussian | Isotropic)


def flows_of(by_class: Mapping[int, Parameters]) -> dict[int, Flow]:
    """The flow of each class."""
    return {label: flow_of(parameters.model) for label, parameters in by_class.items()}


def check_classes(by_class: Mapping[int, Parameters], label_count: int) -> None:
    """Refuse parameters that leave out a class of a network.

    Raises:
        UsageError: the network has no classes, or one of them has no parameters.
    """
    if not label_count:
        raise UsageError("--by-class is for conditional networks: this one has no classes")
    if missing := [str(label) for label in range(label_count) if label not in by_class]:
        raise UsageError(
            f"no parameters of class {', '.join(missing)}: make them with get_parameters --by-class"
        )


def dimension(model: Model) -> int:
    """How many pixel values an image of the model has."""
    if isinstance(model, GaussianMixture):
        return len(model.components[0].mean)
    return model.points.shape[1] if isinstance(model, PointCloud) else len(model.mean)


def check_shape(model: Model, network: Preconditioned) -> None:
    """Refuse a model of images of another size.

    Raises:
        UsageError: it is.
    """
    channels, side, found = network.img_channels, network.img_resolution, dimension(model)
    if found != channels * side * side:
        raise UsageError(
            f"the parameters describe images of {found} values, the network makes "
            f"{channels} x {side} x {side} = {channels * side * side}"
        )

"""Training that starts from a network that is there: its weights, and all that they fit.

The average and the optimizer begin anew. A run is known by the network's digest, too.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edm.checkpoints import checkpoint
from edm.precondition import Preconditioned
from edm.training.augment import LABELS
from edm.training.data import Drawn
from edm.training.recipes import ARCHITECTURES, COPIED, Recipe
from linear_structure.data.datasets import Dataset
from linear_structure.system.download import public
from linear_structure.system.errors import UsageError


@dataclass(frozen=True)
class Transfer:
    """A network that training starts from, and what the file is called that it is of."""

    network: Preconditioned
    name: str

    @classmethod
    def of(cls, source: str) -> "Transfer":
        """From a path or URL; raises as `checkpoint.load_to_train`."""
        return cls(checkpoint.load_to_train(source), Path(public(source)).name)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What tells a run that starts here from others."""
        return {"transfer": self.network.digest}

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe for this network: what it says of one is what that has.

        Raises:
            UsageError: it augments images, of which the network could not be told.
        """
        config = self.network.config
        if recipe.augment and config.get("augment_dim") != LABELS:
            raise UsageError(f"{self.name} knows no augmentation: give --augment 0")
        values = {name: _frozen(config[name]) for name in (*COPIED, "sigma_data") if name in config}
        if "width" in config:
            values |= {"model_channels": config["width"], "num_blocks": config["depth"]}
        return replace(
            recipe,
            architecture=_architecture(config),
            preconditioning=config["precondition"].removesuffix("Precond").lower(),
            conditional=bool(self.network.label_dim),
            **values,
        )

    def start(self, recipe: Recipe, dataset: Dataset | Drawn) -> Preconditioned:
        """A copy to be trained.

        Raises:
            UsageError: the dataset is not what the network is of.
        """
        wanted, label_dim = self.network.shape, self.network.label_dim
        if dataset.shape != wanted:
            found, made = (" x ".join(map(str, shape)) for shape in (dataset.shape, wanted))
            raise UsageError(f"{dataset.name} has images of {found}, and {self.name} makes {made}")
        if label_dim and dataset.label_dim != label_dim:
            raise UsageError(
                f"{dataset.name} has {dataset.label_dim} classes, and {self.name} is told one of "
                f"{label_dim}: expected the same"
            )
        network = copy.deepcopy(self.network).requires_grad_(True)
        network.compute_dtype = getattr(torch, recipe.precision)
        return network


def _architecture(config: dict[str, Any]) -> str:
    """The last one, and so the most special, whose options these are."""
    told = {name: _frozen(value) for name, value in config.items()}
    return [name for name, own in ARCHITECTURES.items() if own.items() <= told.items()][-1]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

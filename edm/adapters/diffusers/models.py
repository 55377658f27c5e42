"""A diffusers model and its scheduler as a network of this project, `D(x, sigma)`.

    network = network_of_model(pipe.unet, pipe.scheduler, encoder_hidden_states=embeddings)
    *_, last = heun(network, x, sigma_grid(18, network.sigma_min, network.sigma_max))

of latents, where the pipeline is one of latents. Its guidance is not part of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from edm.adapters.diffusers.predictions import Prediction, prediction_of
from edm.network import Adapted, network_of
from linear_structure.denoise import expand
from linear_structure.system.errors import UsageError


@dataclass(frozen=True, eq=False)
class Read:
    """A model as a callable `D(x, sigma, labels)`, in float64 but for the model itself."""

    model: Callable[..., Any]
    prediction: Prediction
    dtype: torch.dtype  # that the model wants
    conditions: Mapping[str, Any]

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.prediction.check(sigma)
        inputs = self.prediction.inputs
        at, t = inputs.position(sigma), inputs.time(sigma)
        y = expand(at.scale, x) * x
        output = outputs(self.model, y.to(self.dtype), t, self._told(len(x), labels))
        return self.prediction.read(y, at, output)

    def _told(self, count: int, labels: Tensor | None) -> dict[str, Any]:
        told: dict[str, Any] = _repeated(self.conditions, count)
        return told if labels is None else {**told, "class_labels": labels}


def _repeated(value: Any, count: int) -> Any:
    """What is given for one sample, for each of `count`."""
    if isinstance(value, Mapping):
        return {name: _repeated(each, count) for name, each in value.items()}
    single = isinstance(value, Tensor) and value.shape[:1] == (1,)
    return value.expand(count, *value.shape[1:]) if single else value


def outputs(model: Callable[..., Any], y: Tensor, t: Tensor, told: Mapping[str, Any]) -> Tensor:
    """F(y, t), whether the model gives it as `sample`, first of several, or as it is."""
    takes, times = signature(getattr(model, "forward", model)).parameters, t.expand(len(y))
    named = "timestep" in takes  # which is not everywhere the second argument
    made = model(y, timestep=times, **told) if named else model(y, times, **told)
    found = getattr(made, "sample", made[0] if isinstance(made, tuple) else made)
    if not isinstance(found, Tensor):
        raise UsageError(f"the model gives a {type(made).__name__}: expected a tensor or `.sample`")
    return found


def network_of_model(
    model: Callable[..., Any],
    scheduler: Any,
    *,
    shape: tuple[int, int, int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    version: str | None = None,
    **conditions: Any,
) -> Adapted:
    """A model as a `Network`, in the units that the model was trained in.

    A level that its scheduler's table does not have is refused when it is called with it.

    Args:
        model: called as `model(y, t, **conditions)`, or `model(y, timestep=t, **conditions)` where
            it has such an argument; with `num_class_embeds` in its configuration, also with
            `class_labels`, once it is bound.
        scheduler: says what the model predicts; its timesteps do not count.
        shape: (C, H, W); by default as the model's configuration says.
        dtype, device: that the model wants, by default those of its parameters.
        version: as in `network_of`.
        conditions: what else the model is told, such as `encoder_hidden_states`: of one sample,
            (1, ...), for all.

    Raises:
        UsageError: the scheduler, the prediction, or the shape is not known.
    """
    config, prediction = getattr(model, "config", {}), prediction_of(scheduler)
    like = torch.empty(0)
    if isinstance(model, nn.Module):
        like = next(iter(model.eval().parameters()), like)
    return network_of(
        Read(model, prediction, dtype or like.dtype, conditions),
        shape or _shape(config),
        label_dim=config.get("num_class_embeds") or 0,
        sigma_min=prediction.inputs.sigma_min,
        sigma_max=prediction.inputs.sigma_max,
        device=device or like.device,
        dtype=torch.float64,
        version=version,
    )


def _shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of the images that a model takes, by its configuration."""
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None:
        raise UsageError("the model does not say how large its images are: expected a shape=")
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width

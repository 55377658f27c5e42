"""Writes snapshots in the form of the published ones, from any tensors, for tests and benchmarks.

What is pickled are torch's own tensors and containers, and stand-ins for persistent objects whose
`module_src` is a placeholder: the opcodes are the published ones, the source text is not.
"""

import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

BUFFERS = ("resample_filter", "freqs", "u")


@dataclass(frozen=True)
class Form:
    """In what the writers of snapshots differ."""

    protocol: int = 4
    container: type = dict  # of a module's members; OrderedDict until torch 2.0
    numpy: str = "numpy._core.multiarray"  # "numpy.core.multiarray" until numpy 1


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("only named, never called")


def scalar(dtype: np.dtype, octets: bytes) -> None:
    raise AssertionError("only named, never called")


class Persistent:
    """Pickled as persistent objects are; keywords replace entries of its description."""

    def __init__(self, class_name: str, state: dict[str, Any], **changes: Any) -> None:
        source = "# placeholder"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name}
        self.meta = meta | {"state": state} | changes

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,)


class Number:
    """Pickled as numpy's float64 is."""

    def __init__(self, value: float) -> None:
        self.value = np.float64(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return scalar, (self.value.dtype, self.value.tobytes())


def dump(value: Any, file: IO[bytes], form: Form) -> None:
    """Pickle with the published names of the functions above."""
    with _named(_reconstruct_persistent_obj, "torch_utils.persistence"), _named(scalar, form.numpy):
        pickle.Pickler(file, form.protocol).dump(value)


def dump_state(network: Any, path: Path, form: Form) -> None:
    """A training state as EDM's loop writes it: the network, and Adam's state of one step."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    state = {"net": network, "optimizer_state": optimizer.state_dict()}
    with _named(_reconstruct_persistent_obj, "torch_utils.persistence"), _named(scalar, form.numpy):
        torch.save(state, path)


@contextmanager
def _named(function: Any, module_name: str) -> Iterator[None]:
    """Let pickle find `function` in a module of that name."""
    parent, module = module_name.split(".")[0], ModuleType(module_name)
    vars(module).update(vars(sys.modules.get(module_name, module)))
    setattr(module, function.__name__, function)
    found = {parent: sys.modules.get(parent, ModuleType(parent)), module_name: module}
    with patch.dict(sys.modules, found), patch.object(function, "__module__", module_name):
        yield


def snapshot(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    form: Form,
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A whole snapshot, to be dumped.

    Args:
        config: as of `edm.precondition.build`.
        tensors: a state dict.
        attributes: what the network's instance says besides.
    """
    keywords = {k: v for k, v in config.items() if k != "precondition"}
    keywords["dropout"] = Number(keywords.get("dropout", 0.1))
    network = module(config["precondition"], tensors, form, config["model_type"])
    network.meta["state"] |= {"_init_args": (), "_init_kwargs": keywords, **(attributes or {})}
    return {
        "ema": network,
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}),
        "augment_pipe": Persistent("AugmentPipe", {"p": 0.12, "xflip": 100000000.0, "yflip": 1}),
        "dataset_kwargs": {"class_name": "a.B", "path": "a.zip", "max_size": None, "xflip": False},
    }


def class_of(name: str, model_type: str) -> str:
    """The published class of what has this name within a network."""
    known = {
        "model": model_type,
        "enc|dec": "ModuleDict",
        r"norm\d|\w+_norm": "GroupNorm",
        r"affine|map_layer\d|map_label|map_augment": "Linear",
        "map_noise": "FourierEmbedding",
        r"\d+x\d+_(block\d+|in\d|up|down)": "UNetBlock",
    }
    return next((kind for form, kind in known.items() if re.fullmatch(form, name)), "Conv2d")


def module(
    class_name: str, tensors: Mapping[str, Tensor], form: Form, model_type: str = "SongUNet"
) -> Any:
    """A persistent module, or torch's own container, of tensors by their full names."""
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    state = {
        name: form.container(value) if isinstance(value, dict) else value
        for name, value in vars(nn.Module()).items()
    }
    state |= {"training": False, "map_label": None}
    if class_name == "UNetBlock":
        state["skip_scale"] = Number(0.5**0.5 if model_type == "SongUNet" else 1.0)
    for name, tensor in ({"resample_filter": None} | own).items():
        if name in BUFFERS:
            state["_buffers"][name] = tensor
        else:
            state["_parameters"][name] = nn.Parameter(tensor, requires_grad=False)
    for name in dict.fromkeys(name.partition(".")[0] for name in tensors if "." in name):
        inner = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
        state["_modules"][name] = module(class_of(name, model_type), inner, form, model_type)
    if class_name != "ModuleDict":
        return Persistent(class_name, state)
    container = nn.ModuleDict()
    vars(container).update(state)
    return container

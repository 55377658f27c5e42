"""What a published snapshot says of its network beside its tensors: options, layers, source text.

The published loader runs the text that a snapshot carries, on the attributes that it holds. Here
the network is built from its options alone, so another layer, or an attribute with another value,
makes another network, and is refused by name. Another text may make one too: that is said.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from edm.checkpoints.snapshot import Module, Snapshot
from edm.networks.adm import ADM
from edm.networks.block import UNetBlock
from edm.networks.ddpmpp import DDPMpp
from edm.networks.layers import Conv2d, GroupNorm, Linear, PositionalEmbedding, Resample
from edm.networks.unet import UNet
from edm.precondition import PRECONDITIONERS, Preconditioned
from linear_structure.system.unpickle import Malformed, quote

CLASSES: dict[type, str] = {DDPMpp: "SongUNet", ADM: "DhariwalUNet", Resample: "Conv2d"}
SOURCES = ("2294828d5f59", "5db27dcd9667")  # how the SHA-256 of the published networks' text begins
PRECISION = 1e-5  # preconditioners compute their range of noise levels in float32


def config(modules: Mapping[str, Module]) -> dict[str, Any]:
    """Configuration of a published network: its keywords, overruled by what its instance says.

    Raises:
        Malformed: it is none of the published networks.
    """
    network = modules[""]
    if network.class_name == "Precond":
        raise Malformed("it is a network of EDM2 (Karras et al. 2024), which has other layers")
    if network.class_name not in PRECONDITIONERS:
        raise Malformed(f"{quote(network.class_name)} is none of {', '.join(PRECONDITIONERS)}")
    state = network.state or {}
    match state:
        case {"_init_kwargs": dict(keywords), "_modules": {"model": Module(class_name=model)}}:
            pass
        case _:
            raise Malformed(f"{quote(network.class_name)} lacks its keywords or its model")
    if not all(type(name) is str for name in keywords):
        raise Malformed(f"a keyword of {quote(network.class_name)} is no name")
    kind: type[Preconditioned] = PRECONDITIONERS[network.class_name]
    own = {each.name for each in fields(kind.options_type)}
    scalars = {name: value for name, value in state.items() if name in own}
    return keywords | scalars | {"precondition": network.class_name, "model_type": model}


def check(network: nn.Module, modules: Mapping[str, Module]) -> None:
    """Refuse modules that are not those of the network that their options give.

    Args:
        network: built from the options.
        modules: of the snapshot.

    Raises:
        Malformed: one of them is unknown, of another class, or has an attribute of another value.
    """
    built = dict(network.named_modules())
    for prefix, module in modules.items():
        name = prefix.removesuffix(".")
        if name not in built:
            raise Malformed(f"its layer {quote(name)} has no place in a network of its options")
        expected = _class_name(built[name])
        if prefix and module.class_name != expected:
            found = quote(module.class_name)
            raise Malformed(f"its layer {quote(name)} is of class {found}: expected {expected}")
        for attribute, value in attributes(built[name]).items():
            found = (module.state or {}).get(attribute, value)
            if not _same(found, value):
                said = repr(found) if isinstance(found, int | float) else quote(found)
                raise Malformed(
                    f"{prefix + attribute!r} is {said}: in a network of its options it is {value!r}"
                )


def attributes(module: nn.Module) -> dict[str, Any]:
    """What the published layer in the place of one of ours has as plain attributes."""
    match module:
        case UNetBlock(style=style):
            return {
                "in_channels": len(module.norm0.weight),
                "out_channels": module.out_channels,
                "emb_channels": style.embedding_channels,
                "num_heads": module.heads,
                "dropout": style.dropout,
                "skip_scale": style.skip_scale,
                "adaptive_scale": style.scale_and_shift,
            }
        case Conv2d():
            channels = {"in_channels": module.weight.shape[1], "out_channels": module.out_channels}
            return {**channels, **_resampling(module.direction, module.filter_last)}
        case Resample():
            return _resampling(module.direction, False)
        case Linear(weight=weight):
            return {"in_features": weight.shape[1], "out_features": weight.shape[0]}
        case GroupNorm():
            return {"num_groups": module.groups, "eps": module.eps}
        case PositionalEmbedding():
            channels = {"num_channels": 2 * module.count, "max_positions": 10000}
            return {**channels, "endpoint": module.endpoint}
        case UNet(options=options):
            return {"label_dropout": options.label_dropout}
        case Preconditioned():
            return {"sigma_min": module.sigma_min, "sigma_max": module.sigma_max}
    return {}


def _resampling(direction: str | None, filter_last: bool) -> dict[str, bool]:
    return {"up": direction == "up", "down": direction == "down", "fused_resample": filter_last}


def _class_name(module: nn.Module) -> str:
    return CLASSES.get(type(module), type(module).__name__)


def _same(found: Any, expected: float) -> bool:
    try:
        return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=PRECISION)
    except OverflowError:  # a whole number beyond all floats
        return False


def notice(snapshot: Snapshot) -> str:
    """One sentence where the text that the network's classes are in is no published one."""
    others = [each for each in snapshot.sources if not each.startswith(SOURCES)]
    if not others:
        return ""
    return (
        f"carries source text (SHA-256 {others[0][:12]}...) that is neither of the two published "
        "ones, and is not run: if it computes anything else, this is another network"
    )

"""From the words of a command line to a preset and a machine."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from experiments import networks, own, presets
from experiments.networks import Code, File
from experiments.presets import INCEPTION, OWN, Preset
from linear_structure.sampling.ablation import Ablation
from linear_structure.sampling.table import Settings, chosen_settings
from linear_structure.system import download, machine
from linear_structure.system.errors import UsageError
from linear_structure.system.machine import Machine
from linear_structure.system.options import add_arguments, given, table, word

SHOWN = ("steps", "sigma_min", "sigma_max", "rho", "sampler", "skips", "seeds", "block")
FILES = tuple(each.name for each in fields(Preset) if each.metadata.get("file"))
TYPED = tuple(each.name for each in fields(Preset) if each.metadata.get("meaning"))
SETTINGS = tuple(each.name for each in fields(Settings))
RECORDED = (*TYPED, *(f"{name}_sha256" for name in FILES), *SETTINGS, "threads")
DTYPES = torch.float32, torch.bfloat16, torch.float16
THREADS = "the preset's if it says, else all usable cores"


def command(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the preset, an option for each of its values, and the machine."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog="The presets:\n\n" + table(Preset, presets.presets(), SHOWN),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", type=word, nargs="?", default="cifar10", help=named())
    change = parser.add_argument_group("values of the preset that may be changed")
    add_values(change, TYPED)
    add_arguments(parser.add_argument_group("settings of the sampler"), Settings)
    machine.add_options(parser, THREADS)
    return parser


def named() -> str:
    """What a preset may be called, for --help."""
    return f"{', '.join(presets.presets())}, {OWN}, or a name that was given to it"


def add_values(group: Any, names: Sequence[str]) -> None:
    """Options for some values of a preset; a file's digest is one too."""
    for name in names:
        if name not in FILES:
            add_arguments(group, Preset, [name])
            continue
        meaning = next(each.metadata["meaning"] for each in fields(Preset) if each.name == name)
        add = partial(group.add_argument, type=word)
        add(f"--{name}", metavar="FILE", help=f"{meaning}: path or URL")
        add(f"--{name}-sha256", metavar="DIGEST", help="what that file must have")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """What a network may trade for speed."""
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    parser.add_argument("--dtype", choices=dtypes, help="that the network computes in")
    faster = "faster networks on NVIDIA GPUs, 10 bits of mantissa"
    parser.add_argument("--tf32", action="store_true", help=faster)


def chosen_dtype(typed: argparse.Namespace) -> torch.dtype | None:
    """What the network was told to compute in, if anything."""
    return getattr(torch, typed.dtype) if typed.dtype else None


def chosen_preset(typed: argparse.Namespace) -> Preset:
    """The preset with the values that were given in place of its own.

    Raises:
        UsageError: one of them is out of range, or is nothing that the sampler asks for; or as
            `own.joined`.
    """
    known = remembered(typed)
    if known is None:
        return _given(presets.find(typed.preset), typed)
    now, folder = vars(typed), own.path_of(_name(typed)).parent
    before = _parsed(known, None if typed.network else folder)
    base = _own(typed, before)
    if typed.sampler not in (None, before.sampler):
        vars(before).update(dict.fromkeys(SETTINGS))  # of the other one
    told = {name: value for name, value in now.items() if value is not None}
    return _given(base, argparse.Namespace(**{**now, **vars(before), **told}))


def find(name: str) -> Preset:
    """A preset, or what was given under a name of the user's; UsageError for another name."""
    if name in presets.presets() or not (known := own.read(name)):
        return presets.find(name)
    typed = _parsed(known, own.path_of(name).parent)
    typed.preset = name
    return _given(_own(typed, typed), typed)


def remembered(typed: argparse.Namespace) -> own.Typed | None:
    """What was typed for the user's name, now and before; None of another preset.

    Raises:
        UsageError: as `own.joined`; or a name is given to another preset.
    """
    name = getattr(typed, "name", None)
    if typed.preset == OWN and hasattr(typed, "name"):
        return own.joined(OWN if name is None else name, said(typed))
    if name is not None:
        raise UsageError(f"--name would change nothing: {typed.preset} has its own")
    return None if typed.preset in presets.presets() else own.read(typed.preset) or None


def said(typed: argparse.Namespace) -> own.Typed:
    """The values of a preset that were typed, as words that `_parsed` reads."""
    words: own.Typed = {}
    for name, value in given(typed, RECORDED).items():
        listed = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words[name] = value if isinstance(value, bool) else listed
    return words


class _Parser(argparse.ArgumentParser):
    """What was kept and cannot be read is one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{own.RECORD} of this name holds what is no option ({message})")


def _parsed(words: own.Typed, kept: Path | None) -> argparse.Namespace:
    """What `said` tells, as if it were typed, but for the folder that a network is kept in."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_values(parser, TYPED)
    add_arguments(parser, Settings)
    machine.add_options(parser)
    options = []
    for name, value in words.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options.append(f"--{flag}={value}")
    return parser.parse_args(options, argparse.Namespace(kept=kept))


def _name(typed: argparse.Namespace) -> str:
    """The user's name for a preset."""
    return getattr(typed, "name", None) or str(typed.preset)


def _own(typed: argparse.Namespace, known: argparse.Namespace) -> Preset:
    """The user's preset as it is known, before anything else is changed."""
    files = (chosen_file(known, each) for each in ("features", "reference"))
    preset = own.preset_of(_name(typed), known.dataset, chosen_network(known), *files)
    return replace(preset, threads=known.threads)


def _given(preset: Preset, typed: argparse.Namespace) -> Preset:
    """A preset with the values and settings that were typed."""
    preset = changed(preset, typed, TYPED)
    check_rho(typed, preset.ablation)
    return replace(preset, settings=chosen_settings(preset.sampler, given(typed, SETTINGS)))


def changed(preset: Preset, typed: argparse.Namespace, names: Sequence[str]) -> Preset:
    """A preset with those of its values that were typed."""
    check_scale(typed)
    values = given(typed, names)
    if "skips" in names and typed.steps is not None and "skips" not in values:
        values["skips"] = tuple(skip for skip in preset.skips if skip < typed.steps)
    for name in set(names) & set(FILES):
        file = chosen_network(typed) if name == "network" else chosen_file(typed, name)
        values |= {name: file} if file is not None else {}
    return replace(preset, **values)


def chosen_network(typed: argparse.Namespace) -> File | Code | None:
    """The network that was typed, or kept; None: neither. Raises as `networks.given`."""
    text, sha256 = _file(typed, "network")
    return networks.given(text, sha256, getattr(typed, "kept", None)) if text else None


def chosen_file(typed: argparse.Namespace, name: str) -> File | None:
    """The file that was typed for features or a reference; None: nothing was.

    Raises:
        UsageError: as `download.given`, and for a digest without a file.
    """
    text, sha256 = _file(typed, name)
    if name == "features" and text == "inception":
        return INCEPTION
    return download.given(text, sha256) if text else None


def _file(typed: argparse.Namespace, name: str) -> tuple[str | None, str | None]:
    """A path or URL, and the digest that it must have."""
    text, sha256 = getattr(typed, name), getattr(typed, f"{name}_sha256")
    if sha256 and not text:
        raise UsageError(f"--{name}-sha256 goes with --{name}")
    return text, sha256


def check_scale(typed: argparse.Namespace) -> None:
    """Refuse to rescale the eigenvalues of a directory that nobody named (UsageError)."""
    if typed.eigenvalue_scale is not None and typed.parameters is None:
        raise UsageError("--eigenvalue-scale goes with --parameters")


def check_images_count(preset: Preset) -> None:
    """Refuse images (UsageError) that neither the parameters nor the reference come from."""
    named = "dataset" in preset.replaced
    if named and not preset.makes_parameters and preset.reference is not None:
        raise UsageError(
            f"--dataset {preset.dataset} would change nothing: this sweep has its parameters from "
            f"{preset.parameters} and a reference of its own"
        )


def check_rho(typed: argparse.Namespace, chosen: Ablation) -> None:
    """Refuse an exponent that was typed for a grid without one (UsageError)."""
    if chosen.discretization != "edm":
        reason = f"levels are spaced as {chosen.discretization!r}, and only 'edm' has an exponent"
        check_unused(typed, ("rho",), reason)


def check_unused(typed: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse options (UsageError) that would change nothing, for a reason that is told."""
    for name in given(typed, names):
        raise UsageError(f"--{name.replace('_', '-')} would change nothing: {reason}")


def chosen_machine(typed: argparse.Namespace, preset: Preset | None = None) -> Machine:
    """The machine that was asked for; its threads, if nobody said, are the preset's.

    Raises as `Machine.chosen`.
    """
    threads = preset.threads if preset and typed.threads is None else typed.threads
    return Machine.chosen(typed.device, threads, getattr(typed, "tf32", False))

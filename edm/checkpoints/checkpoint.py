"""Networks in files: published snapshots read as data, and safetensors of our own.

A safetensors file carries the network's configuration and provenance as JSON in its metadata. What
a file is, is told by its content. Whatever it holds, nothing of it is executed, and the network is
built without values first, so that names and shapes are compared before anything is assigned.
"""

import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from edm.checkpoints import published, snapshot
from edm.checkpoints.snapshot import NO_OPTIONS, PROGRAM, Module
from edm.precondition import Preconditioned, build
from linear_structure.system.arrays import read_torch
from linear_structure.system.download import given, located
from linear_structure.system.errors import UsageError
from linear_structure.system.files import SEAL, UNREADABLE_ARRAYS, digest_of_state, replacing
from linear_structure.system.kinds import kind_of
from linear_structure.system.machine import rank
from linear_structure.system.unpickle import Malformed, quote

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
LONGEST_VALUE = 64
EDM_STATE = b"optimizer_state"  # what a training state of EDM holds and nothing else does
BELOW = ("state_dict", "model")  # where a state dict may lie
MOST_READ = 1 << 20  # bytes of a foreign pickle, to say what it is
TENSORS_PER_BLOCK = 20  # at least, of one block on either path
ALIGNMENT = snapshot.ALIGNMENT
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Build = Callable[[Mapping[str, Any]], AnyModule]
"""A module of a configuration; UsageError where it gives none."""


def load(source: str | Path, sha256: str | None = None) -> Preconditioned:
    """A network from a published snapshot or from our own safetensors, told apart by content.

    Args:
        source: a path, or an http(s) URL, which is fetched into the cache.
        sha256: what the file's SHA-256 must be (64 hexadecimal digits); compared before it is read.

    Returns:
        The network on the CPU, in float32, in evaluation mode, without gradients.

    Raises:
        UsageError: the file is absent, has another digest, is neither of both, is damaged, holds
            anything that a network does not need, does not fit its own configuration, or has
            weights that are not finite.
        WorkError: the URL cannot be fetched.
    """
    return load_module(source, build, sha256)


def load_module(
    source: str | Path, build: Build[AnyModule], sha256: str | None = None, key: str = "config"
) -> AnyModule:
    """As `load`, of any kind of module.

    Args:
        build: makes the module, all of whose tensors are in its state dict, of its configuration.
        key: names the configuration in the metadata of a safetensors file.
    """
    path = located(given(str(source), sha256))
    with _blaming(path):
        config, tensors, modules = _read(path, key)
        network = _assemble(build, config, tensors)
        published.check(network, modules)
        return network


def load_to_train(source: str | Path) -> Preconditioned:
    """As `load`, and from a training state of EDM, whose network is the one that is not averaged.

    Raises:
        UsageError, WorkError: as `load`.
    """
    path = located(given(str(source)))
    if EDM_STATE not in (_program(path) or b""):
        return load(path)
    with _blaming(path):
        read = snapshot.read_state(path)
        network = _assemble(build, published.config(read.modules), read.tensors)
        published.check(network, read.modules)
        return network


def load_bare(path: str | Path, config: Mapping[str, Any]) -> Preconditioned:
    """A network of a state dict that says nothing of it, under the published names.

    Args:
        path: a safetensors file, or what torch.save wrote: the state dict, alone or below one of
            `BELOW`.
        config: as of `edm.precondition.build`.

    Raises:
        UsageError: it is neither, or its tensors are not those of the configuration.
    """
    path = located(given(str(path)))
    tensors = _bare(path)
    with _blaming(path):
        return _assemble(build, config, tensors)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Name the file that gives no network."""
    try:
        yield
    except (Malformed, UsageError) as error:
        raise UsageError(f"{path} gives no network: {error}") from error


def _bare(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    if is_safetensors(path):
        with _blaming(path), _reading_safetensors(), safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = read_torch(path)
    for key in BELOW:
        found = found.get(key, found) if isinstance(found, dict) else found
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not named or not all(_is_dense(each) for each in found.values()):
        below = " or ".join(BELOW)
        raise UsageError(f"{path} holds no state dict of tensors, neither alone nor below {below}")
    return dict(found)


def _is_dense(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    return dense and value.device.type == "cpu"


def shipped(name: str) -> Path:
    """A file, or a folder, of the shipped weights."""
    return WEIGHTS / name


def save(
    network: nn.Module, path: str | Path, provenance: Mapping[str, Any], key: str = "config"
) -> None:
    """Write a network as safetensors, whole or not at all.

    Args:
        network: any with a `config` in JSON values.
        provenance: where the weights come from, as JSON values.
        key: as in `load_module`.
    """
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    metadata = {key: json.dumps(network.config), "provenance": json.dumps(dict(provenance))}
    metadata[SEAL] = digest_of_state(metadata, tensors)
    with replacing(Path(path)) as beside:
        beside.write_bytes(serialize(tensors, metadata))


@torch.no_grad()
def round_weights(network: nn.Module, dtype: str) -> None:
    """Keep the parameters in a narrower type, for `save`; buffers, which may be levels, stay.

    Raises:
        UsageError: a weight is beyond it.
    """
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
        if not parameter.isfinite().all():
            raise UsageError(f"{name!r} holds weights beyond {dtype}: expected bfloat16 or none")


def is_safetensors(path: Path) -> bool:
    """Whether a file is one, by what it starts with: a length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def provenance(path: str | Path) -> dict[str, Any]:
    """What `save` was told of where the weights come from.

    Raises:
        UsageError: the file is absent, or not of this form.
    """
    try:
        with safe_open(located(given(str(path))), framework="pt") as file:
            return dict(json.loads((file.metadata() or {})["provenance"]))
    except (SafetensorError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} does not say what it was made from: make it anew") from error


def _read(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor], Mapping[str, Module]]:
    """Configuration, tensors and published modules, by what the file starts with."""
    if is_safetensors(path):
        return *_read_safetensors(path, key), {}
    with path.open("rb") as file:
        pickled = file.read(1) == b"\x80"
    if pickled:
        read = snapshot.read(path)
        if (notice := published.notice(read)) and rank() == 0:
            print(f"{path} {notice}", file=sys.stderr)
        return published.config(read.modules), read.tensors, read.modules
    neither = "it is neither a pickle (protocol 2 or later) nor a safetensors file"
    raise UsageError(kind_of(path) or _zipped(path) or neither)


@contextmanager
def _reading_safetensors() -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UsageError(f"it is a damaged safetensors file: {quote(str(error))}") from error


def _read_safetensors(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with _reading_safetensors(), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        seal = metadata.pop(SEAL, None)  # earlier versions wrote none
        if seal is not None and seal != digest_of_state(metadata, tensors):
            raise UsageError(f"it is damaged, or was changed: its values are not of its {SEAL}")
        config = json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise UsageError("its configuration is not JSON") from error
    if not isinstance(config, dict):
        raise UsageError(f"it is a safetensors file without {key!r} in its metadata")
    return config, tensors


def _program(path: Path) -> bytes | None:
    """How the pickle begins that torch.save wrote; None where it did not write the file."""
    with suppress(*UNREADABLE_ARRAYS), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(PROGRAM):
                with archive.open(name) as file:
                    return file.read(MOST_READ)
    return None


def _zipped(path: Path) -> str | None:
    """What torch.save wrote; None where it was something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UNREADABLE_ARRAYS:
        return None
    if not any(name.endswith(PROGRAM) for name in names):
        return "it is a zip of other files"
    if (content := _program(path)) is None:
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is TorchScript, a program"
    if b"images_seen" in content:
        return "it is a training state of this project, whose networks lie beside it"
    if EDM_STATE in content:
        return "it is a training state of EDM, whose averaged network is in network-snapshot-*.pkl"
    return f"it was written by torch.save: {NO_OPTIONS}"


def _assemble(
    build: Build[AnyModule], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> AnyModule:
    """Build a network without values and give it its tensors."""
    options = {name: value for name, value in config.items() if not isinstance(value, dict)}
    for group in (options, *(value for value in config.values() if isinstance(value, dict))):
        _check_values(group)
        _check_extent(group, len(tensors))
    try:
        with torch.device("meta"):
            network = build(config)
    except (RuntimeError, OverflowError) as error:
        raise UsageError("its configuration describes a network too large to exist") from error
    expected, ours = network.state_dict(), "its tensors are not those of its options"
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            raise UsageError(f"all its tensors begin with {prefix!r}: save the network within")
    if missing := [name for name in expected if name not in tensors]:
        raise UsageError(f"{ours}: {len(missing)} are missing, the first of them {missing[0]!r}")
    if extra := [name for name in tensors if name not in expected]:
        raise UsageError(f"{ours}: {len(extra)} are unknown, the first of them {quote(extra[0])}")
    values = {name: _fitted(name, tensors[name], like) for name, like in expected.items()}
    network.load_state_dict(_apart(values), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _apart(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied where they share memory."""
    used, found = set[int](), dict[str, Tensor]()
    for name, value in values.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in used else value
        used.add(place)
    return found


def _check_values(config: Mapping[str, Any]) -> None:
    """All values are numbers, short strings, or short lists of these."""
    for name, value in config.items():
        items = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(item, str | bool | int | float | None) for item in items)
        longest = max(len(name), len(items), *(len(item) for item in items if type(item) is str), 0)
        if not plain or longest > LONGEST_VALUE:
            raise UsageError(f"option {quote(name)} is {quote(value)}: expected something plain")


def _check_extent(config: Mapping[str, Any], count: int) -> None:
    """A small file must not describe a network that takes long to build."""
    levels, blocks = config.get("channel_mult"), config.get("num_blocks")
    if not (isinstance(levels, list | tuple) and isinstance(blocks, int)):
        return
    if len(levels) * blocks * TENSORS_PER_BLOCK > count:
        raise UsageError(f"it has {count} tensors, too few for {len(levels)} times {blocks} blocks")


def _fitted(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in the type that the network wants, of its shape, finite, row after row, aligned.

    Where and how values lie decides how they are multiplied: equal networks give equal bits.
    """
    floats = tensor.is_floating_point() and like.is_floating_point()
    if tensor.shape != like.shape or not (floats or tensor.dtype == like.dtype):
        other = " or another float" if like.is_floating_point() else ""
        raise UsageError(f"{name!r} is {_described(tensor)}: expected {_described(like)}{other}")
    # Of one axis, for the strides of axes of 1.
    flat = tensor.to(like.dtype).reshape(-1).contiguous()
    values = (flat.clone() if flat.data_ptr() % ALIGNMENT else flat).view(like.shape)
    if not values.isfinite().all():
        raise UsageError(f"{name!r} holds NaN or infinity")
    return values


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

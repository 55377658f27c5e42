"""NVIDIA's published snapshots: what their pickles hold, read as data.

A snapshot is a pickled dict whose "ema" is the network. Networks, layers, losses and augmentations
are calls of `_reconstruct_persistent_obj` with one dict: a class name, the attributes of the
instance, and the source text of the class, which the published loader executes. Here that call
makes a `Module`, a name with attributes; the text is never looked at.

A tensor's values are a byte string in the format of torch before 2019: five pickles (magic number,
version, system, a persistent id that tells type and count, the key of the storage), the count
once more in 8 bytes, and the values. Unpickled the usual way, each is a second program; here its
pickles go through the same machine with shorter lists.

All values stay where the file was read to: a tensor is a view, after its values were moved by at
most 63 bytes to an aligned address. So a snapshot takes its own size of memory and little more.
"""

import io
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from linear_structure.system.download import SIZE_LIMIT
from linear_structure.system.unpickle import (
    Buildable,
    Global,
    Malformed,
    StandIn,
    evaluate,
    octets,
    quote,
)

VERSION = 6
LONGEST_NAME = 200
MOST_DIMENSIONS = 8
ALIGNMENT = 64  # bytes, as torch allocates

MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001
HEADER_LIMIT = 1024  # bytes; a header has some 400
COUNT_BYTES = 8
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
    "torch ByteStorage": torch.uint8,
}
NUMPY_FORMATS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}


@dataclass
class Module(Buildable):
    """A persistent object or a torch container: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any] | None = None

    def build(self, state: Any) -> None:
        if self.state is not None or not isinstance(state, dict):
            raise Malformed(f"a {quote(self.class_name)} is given {quote(state)} as its state")
        self.state = state


@dataclass(frozen=True)
class Storage:
    """Values of one type, which fill their bytes from `start` to the end."""

    memory: memoryview
    start: int
    count: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Array:
    """A tensor as its pickle describes it, not yet compared with its storage."""

    storage: Storage
    offset: int
    size: tuple[Any, ...]
    stride: tuple[Any, ...]


@dataclass(frozen=True)
class NumpyType(Buildable):
    """A numpy type, such as "f8"."""

    code: str

    def build(self, state: Any) -> None:
        match state:
            case (int(), "<" | "|", *_):
                return
        raise Malformed("a numpy type is not little-endian")


def read(path: Path) -> tuple[Module, dict[str, Tensor]]:
    """The network of a snapshot as data, and its tensors under the names of its state dict.

    Raises:
        Malformed: the file is not a snapshot, or departs in anything from what one may hold.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= SIZE_LIMIT:
            raise Malformed(f"it has {size:,} bytes: expected 1 to {SIZE_LIMIT:,}")
        memory = mmap.mmap(-1, size)  # a stream and a writable buffer at once
        if file.readinto(memory) != size:
            raise Malformed("it became shorter while it was read")
    owned = dict[int, Any]()
    stand_ins = STAND_INS | {"torch.storage _load_from_bytes": partial(_storage, owned)}
    match evaluate(cast(IO[bytes], memory), memoryview(memory), stand_ins):
        case {"ema": Module() as network} | (Module() as network):
            arrays = dict(_flatten(network, "", owned))
            return network, {name: _decode(name, array) for name, array in arrays.items()}
    raise Malformed("it holds no network under 'ema'")


def _flatten(module: Module, prefix: str, owned: dict[int, Any]) -> Iterator[tuple[str, Array]]:
    """Parameters, persistent buffers, then those of the modules within, with their full names.

    `owned` is what belongs to something already, by id: all parts of a file have one owner, or a
    small file could describe a network without end.
    """
    if len(prefix) > LONGEST_NAME:
        raise Malformed(f"modules lie too deep at {quote(prefix)}")
    _own(module, owned)
    passing = {k for k in _held(module, "_non_persistent_buffers_set", owned) if type(k) is str}
    buffers = {k: v for k, v in _held(module, "_buffers", owned).items() if k not in passing}
    arrays = _held(module, "_parameters", owned) | buffers
    for kind, members in ((Array, arrays), (Module, _held(module, "_modules", owned))):
        for name, value in ((prefix + k, v) for k, v in members.items() if v is not None):
            if not isinstance(value, kind):
                raise Malformed(f"{quote(name)} is {quote(value)}, not {kind.__name__}")
            if isinstance(value, Module):
                yield from _flatten(value, f"{name}.", owned)
            else:
                _own(value.storage, owned)
                yield name, value


def _own(value: object, owned: dict[int, Any]) -> None:
    if id(value) in owned:
        raise Malformed(f"two of its parts share one {type(value).__name__}")
    owned[id(value)] = value


def _held(module: Module, attribute: str, owned: dict[int, Any]) -> Any:
    """One of the containers that every torch module has; a set is a list here."""
    kind = list if attribute.endswith("_set") else dict
    value = (module.state or {}).get(attribute)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise Malformed(f"{attribute} of a {quote(module.class_name)} is {quote(value)}")
    _own(value, owned)
    return value


def _decode(name: str, array: Array) -> Tensor:
    """The whole of its storage, moved down to an aligned address within the storage's bytes."""
    if fault := _fault(array):
        raise Malformed(f"tensor {quote(name)} {fault}")
    memory, start = array.storage.memory, array.storage.start
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr() + start
    aligned = start - address % ALIGNMENT
    values = memory[aligned : aligned + len(memory) - start]
    values[:] = memory[start:]
    return torch.frombuffer(values, dtype=array.storage.dtype).view(array.size)


def _fault(array: Array) -> str | None:
    """Why a tensor is not the whole of its storage, row after row; None if it is."""
    size, stride, count = array.size, array.stride, array.storage.count
    plausible = len(stride) == len(size) <= MOST_DIMENSIONS
    if not plausible or not all(type(n) is int and 0 < n <= count for n in size):
        return f"has a size or strides that do not fit its storage of {count} values"
    if array.offset or math.prod(size) != count:
        return f"is not exactly the {count} values of its storage"
    steps = [math.prod(size[i + 1 :]) for i in range(len(size))]
    if any(n > 1 and have != step for n, have, step in zip(size, stride, steps, strict=True)):
        return "has strides that are not those of a contiguous tensor"
    return None


def _persistent(args: tuple[Any, ...]) -> Module:
    match args:
        case [{"type": "class", "version": version, "module_src": str()}] if version != VERSION:
            raise Malformed(f"a persistent object has not version {VERSION}, the only one known")
        case [
            {"type": "class", "module_src": str(), "class_name": str(name), "state": dict(state)}
        ]:
            return Module(name, state)
    raise Malformed("a persistent object is made from something unexpected")


def _tensor(args: tuple[Any, ...]) -> Array:
    match args:
        case [
            Storage() as storage,
            int(offset),
            tuple(size),
            tuple(stride),
            bool(),
            dict(hooks),
            *metadata,
        ] if not hooks and not any(metadata[:1]) and len(metadata) <= 1:
            return Array(storage, offset, size, stride)
    raise Malformed("a tensor is made from something unexpected")


def _storage(owned: dict[int, Any], args: tuple[Any, ...]) -> Storage:
    """Type and count of a storage's values and where they start, all parts checked."""
    match args:
        case [memoryview() | str() as blob]:
            _own(blob, owned)
        case _:
            raise Malformed("a storage is made from something else than bytes")
    memory = memoryview(bytearray(blob, "latin1")) if isinstance(blob, str) else blob
    stream, nothing = io.BytesIO(memory[:HEADER_LIMIT]), frozenset[str]()
    try:  # of the five pickles, only the fourth names a global, the type
        markers = (nothing, nothing, nothing, frozenset(STORAGES), nothing)
        header = [evaluate(stream, memory, {}, names) for names in markers]
    except Malformed as offence:
        raise Malformed(f"in the header of a storage, {offence}") from offence
    match header:
        case [
            magic,
            version,
            {"little_endian": True},
            ("storage", Global(kind), str(key), str(), int(count), None),
            [again],
        ] if (magic, version, again) == (MAGIC, STORAGE_VERSION, key):
            repeated = int.from_bytes(stream.read(COUNT_BYTES), "little")
            storage = Storage(memory, stream.tell(), count, STORAGES[kind])
        case _:
            raise Malformed("a storage has an unknown header")
    size, item = len(memory) - storage.start, storage.dtype.itemsize
    if repeated != count or size != count * item:
        raise Malformed(f"a storage has {size} bytes for {count} values of {item} bytes each")
    return storage


def _numpy_scalar(args: tuple[Any, ...]) -> bool | int | float:
    match args:
        case [NumpyType(code), memoryview() | str() as blob]:
            if len(blob) == struct.calcsize(form := NUMPY_FORMATS[code]):
                return struct.unpack(form, octets(blob))[0]
    raise Malformed("a numpy number has another type or length than it needs")


def _stand_in(sentence: str, kinds: tuple[type, ...], make: Callable[..., Any]) -> StandIn:
    """Refuses, with the sentence, arguments of other types, or for which `make` gives None."""

    def checked(args: tuple[Any, ...]) -> Any:
        fits = len(args) == len(kinds) and all(map(isinstance, args, kinds))
        value = make(*args) if fits else None
        if value is None:
            raise Malformed(sentence)
        return value

    return checked


_dict = _stand_in("an ordered dict is made from arguments", (), dict)
_set = _stand_in("a set is made from something else than a list", (list,), lambda items: items)
STAND_INS: dict[str, StandIn] = {
    "torch_utils.persistence _reconstruct_persistent_obj": _persistent,
    "torch.nn.modules.container ModuleDict": _stand_in(
        "a torch container is made from arguments", (), lambda: Module("ModuleDict")
    ),
    "torch._utils _rebuild_parameter": _stand_in(
        "a parameter is made from something else than a tensor without hooks",
        (Array, bool, dict),
        lambda tensor, _, hooks: None if hooks else tensor,
    ),
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch Size": _stand_in(
        "a size is made from something else than a tuple", (tuple,), lambda sizes: sizes
    ),
    "collections OrderedDict": _dict,
    "dnnlib.util EasyDict": _dict,
    "builtins set": _set,
    "__builtin__ set": _set,
    "_codecs encode": _stand_in(
        "bytes are made from something else than latin-1 text",
        (str, str),
        lambda text, code: text if code == "latin1" else None,
    ),
    "numpy dtype": _stand_in(
        f"a numpy type is none of {', '.join(NUMPY_FORMATS)}",
        (str, bool, bool),
        lambda code, *_: NumpyType(code) if code in NUMPY_FORMATS else None,
    ),
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}
"""What each global does here; "torch.storage _load_from_bytes", with its memory, is added."""

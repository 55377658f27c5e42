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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from torch import Tensor

from linear_structure.system.download import SIZE_LIMIT
from linear_structure.system.unpickle import Buildable, Global, Malformed, StandIn, evaluate, quote

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

Member = TypeVar("Member")
Blob = memoryview | str
"""A byte string: a view of the file or, in protocol 2, the latin-1 text that carries it."""


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
    memory, owned = _load(path), dict[int, Any]()
    stand_ins = STAND_INS | {"torch.storage _load_from_bytes": partial(_storage, owned)}
    match evaluate(cast(IO[bytes], memory), memoryview(memory), stand_ins):
        case {"ema": Module() as network} | (Module() as network):
            arrays = dict(_flatten(network, "", owned))
            return network, {name: _decode(name, array) for name, array in arrays.items()}
    raise Malformed("it holds no network under 'ema'")


def _load(path: Path) -> mmap.mmap:
    """The bytes of a file in anonymous memory, which is a stream and a writable buffer at once."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= SIZE_LIMIT:
            raise Malformed(f"it has {size:,} bytes: expected 1 to {SIZE_LIMIT:,}")
        memory = mmap.mmap(-1, size)
        if file.readinto(memory) != size:
            raise Malformed("it became shorter while it was read")
    return memory


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
    for name, array in _present(_held(module, "_parameters", owned) | buffers, Array, prefix):
        _own(array.storage, owned)
        yield name, array
    for name, inner in _present(_held(module, "_modules", owned), Module, prefix):
        yield from _flatten(inner, f"{name}.", owned)


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


def _present(
    members: dict[str, Any], kind: type[Member], prefix: str
) -> Iterator[tuple[str, Member]]:
    """Full names and members, without those that are None."""
    for name, value in members.items():
        if value is not None and not isinstance(value, kind):
            raise Malformed(f"{quote(prefix + name)} is {quote(value)}, not {kind.__name__}")
        if value is not None:
            yield prefix + name, value


def _decode(name: str, array: Array) -> Tensor:
    try:
        _check_extent(array)
        return _values(array.storage).view(array.size)
    except Malformed as offence:
        raise Malformed(f"tensor {quote(name)} {offence}") from offence


def _check_extent(array: Array) -> None:
    """A tensor is the whole of its storage, row after row."""
    size, stride, count = array.size, array.stride, array.storage.count
    plausible = len(stride) == len(size) <= MOST_DIMENSIONS
    if not plausible or not all(type(n) is int and 0 < n <= count for n in size):
        raise Malformed(f"has a size or strides that do not fit its storage of {count} values")
    if array.offset or math.prod(size) != count:
        raise Malformed(f"is not exactly the {count} values of its storage")
    steps = [math.prod(size[i + 1 :]) for i in range(len(size))]
    if any(n > 1 and have != step for n, have, step in zip(size, stride, steps, strict=True)):
        raise Malformed("has strides that are not those of a contiguous tensor")


def _values(storage: Storage) -> Tensor:
    """The values, (count,), moved down to an aligned address within their bytes."""
    memory, start = storage.memory, storage.start
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr() + start
    aligned = start - address % ALIGNMENT
    values = memory[aligned : aligned + len(memory) - start]
    values[:] = memory[start:]
    return torch.frombuffer(values, dtype=storage.dtype)


def _octets(blob: Blob) -> bytes:
    return blob.encode("latin1") if isinstance(blob, str) else bytes(blob)


def _persistent(args: tuple[Any, ...]) -> Module:
    match args:
        case [{"type": "class", "version": version, "module_src": str()}] if version != VERSION:
            raise Malformed(f"a persistent object has not version {VERSION}, the only one known")
        case [
            {"type": "class", "module_src": str(), "class_name": str(name), "state": dict(state)}
        ]:
            return Module(name, state)
    raise Malformed("a persistent object is made from something unexpected")


def _container(args: tuple[Any, ...]) -> Module:
    if args:
        raise Malformed("a torch container is made from arguments")
    return Module("ModuleDict")


def _dict(args: tuple[Any, ...]) -> dict[str, Any]:
    if args:
        raise Malformed("an ordered dict is made from arguments")
    return {}


def _set(args: tuple[Any, ...]) -> list[Any]:
    match args:
        case [list(items)]:
            return items
    raise Malformed("a set is made from something else than a list")


def _parameter(args: tuple[Any, ...]) -> Array:
    match args:
        case [Array() as tensor, bool(), dict(hooks)] if not hooks:
            return tensor
    raise Malformed("a parameter is made from something else than a tensor without hooks")


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
    match args:
        case [memoryview() as memory]:
            _own(memory, owned)
            return _decode_storage(memory)
        case [str(text)]:
            _own(text, owned)
            return _decode_storage(memoryview(bytearray(text, "latin1")))
    raise Malformed("a storage is made from something else than bytes")


def _decode_storage(memory: memoryview) -> Storage:
    """Type and count of a storage's values and where they start, all parts checked."""
    stream = io.BytesIO(memory[:HEADER_LIMIT])
    match _header(stream, memory):
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


def _header(stream: io.BytesIO, memory: memoryview) -> list[Any]:
    """The five pickles of a storage; only the fourth names a global, the type."""
    nothing, types = frozenset[str](), frozenset(STORAGES)
    try:
        return [
            evaluate(stream, memory, {}, markers)
            for markers in (nothing, nothing, nothing, types, nothing)
        ]
    except Malformed as offence:
        raise Malformed(f"in the header of a storage, {offence}") from offence


def _encoded(args: tuple[Any, ...]) -> Blob:
    match args:
        case [str(text), "latin1"]:
            return text
    raise Malformed("bytes are made from something else than latin-1 text")


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    match args:
        case [tuple(sizes)]:
            return sizes
    raise Malformed("a size is made from something else than a tuple")


def _numpy_type(args: tuple[Any, ...]) -> NumpyType:
    match args:
        case [str(code), bool(), bool()] if code in NUMPY_FORMATS:
            return NumpyType(code)
    raise Malformed(f"a numpy type is none of {', '.join(NUMPY_FORMATS)}")


def _numpy_scalar(args: tuple[Any, ...]) -> bool | int | float:
    match args:
        case [NumpyType(code), memoryview() | str() as blob]:
            form = NUMPY_FORMATS[code]
            if len(blob) == struct.calcsize(form):
                return struct.unpack(form, _octets(blob))[0]
    raise Malformed("a numpy number has another type or length than it needs")


STAND_INS: dict[str, StandIn] = {
    "torch_utils.persistence _reconstruct_persistent_obj": _persistent,
    "torch.nn.modules.container ModuleDict": _container,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch Size": _size,
    "collections OrderedDict": _dict,
    "dnnlib.util EasyDict": _dict,
    "builtins set": _set,
    "__builtin__ set": _set,
    "_codecs encode": _encoded,
    "numpy dtype": _numpy_type,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}
"""What each global does here; "torch.storage _load_from_bytes", with its memory, is added."""

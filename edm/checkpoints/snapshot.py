"""NVIDIA's published snapshots: what their pickles hold, read as data.

A snapshot is a pickled dict whose "ema" is the network. Networks, layers, losses and augmentations
are calls of `_reconstruct_persistent_obj` with one dict: a class name, the attributes of the
instance, and the source text of the class, which the published loader executes. Here that call
makes a `Module`, a name with attributes; of the text no more is taken than its SHA-256. What lies
beside the network (options, paths, arrays) is read past: plain data of Python, numpy and torch.

A tensor's values are a byte string in the format of torch before 2019: five pickles (magic number,
version, system, a persistent id that tells type and count, the key of the storage), the count
once more in 8 bytes, and the values. Unpickled the usual way, each is a second program; here its
pickles go through the same machine with shorter lists.

All values stay where the file was read to: a tensor is a view, after its values were moved by at
most 63 bytes to an aligned address. So a snapshot takes its own size of memory and little more,
but for tensors that share a storage: all but the first are copied.

A training state of theirs is a zip that torch.save wrote: the same pickle, under "net" the network
as the optimizer left it, in whose storages' places are persistent ids that name members.
"""

import hashlib
import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from linear_structure.system.download import SIZE_LIMIT
from linear_structure.system.files import UNREADABLE_ARRAYS
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
SHARING = 4  # times the bytes of its file that tensors may have, since some share theirs

NO_OPTIONS = (
    "it does not say which network its tensors are of; convert it by scripts/convert_checkpoint.py "
    "with --options, or load them into that network, and give it to edm.network_of"
)

PROGRAM = "/data.pkl"  # of a zip that torch.save wrote
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
NUMPY_FORMATS = {
    **{"f8": "<d", "f4": "<f", "f2": "<e", "b1": "<?"},
    **{"i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b"},
    **{"u8": "<Q", "u4": "<I", "u2": "<H", "u1": "<B"},
}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
BESIDE = (
    *(f"{module} {name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"torch {name}" for name in (*_DTYPES, "device", "Tensor")),
    *(f"datetime {name}" for name in ("date", "datetime", "timedelta", "timezone")),
    *(
        f"{module} {name}"
        for module in ("builtins", "__builtin__")
        for name in ("complex", "slice")
    ),
    *("numpy ndarray", "argparse Namespace", "types SimpleNamespace"),
    *("numpy._core.multiarray _reconstruct", "numpy.core.multiarray _reconstruct"),
    *("numpy._core.numeric _frombuffer", "numpy.core.numeric _frombuffer"),
)
"""Names of plain data that users keep beside a network; what is made by them is never looked at."""


@dataclass
class Module(Buildable):
    """A persistent object or a torch container: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any] | None = None
    source: str | None = None  # text of its class, of a persistent object

    def build(self, state: Any) -> None:
        if self.state is not None or not isinstance(state, dict):
            raise Malformed(f"a {quote(self.class_name)} is given {quote(state)} as its state")
        self.state = state


class Inert(Buildable):
    """What a network has no part in: it is not even named."""

    def build(self, state: Any) -> None:
        """Whatever it is, it means nothing here."""


@dataclass(frozen=True)
class Storage:
    """Values of one type, which fill their bytes from `start` to the end."""

    memory: memoryview
    start: int
    count: int
    dtype: torch.dtype

    @cached_property
    def values(self) -> Tensor:
        """(count,), moved down to an aligned address within the storage's bytes."""
        address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr() + self.start
        aligned = self.start - address % ALIGNMENT
        moved = self.memory[aligned : aligned + len(self.memory) - self.start]
        moved[:] = self.memory[self.start :]
        return torch.frombuffer(moved, dtype=self.dtype)


@dataclass(frozen=True)
class Member:
    """Values of one type in a zip, read when they are asked for."""

    archive: zipfile.ZipFile
    name: str
    count: int
    dtype: torch.dtype

    @cached_property
    def values(self) -> Tensor:
        """(count,), at an aligned address."""
        size = self.count * self.dtype.itemsize
        with self.archive.open(self.name) as file:
            content = file.read(size + 1)
        if len(content) != size:
            raise Malformed(f"{quote(self.name)} in it has not the {size} bytes that its type asks")
        return torch.frombuffer(bytearray(content), dtype=self.dtype).clone()


@dataclass(frozen=True)
class Array:
    """A tensor as its pickle describes it, not yet compared with its storage."""

    storage: Storage | Member
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


@dataclass(frozen=True)
class Snapshot:
    """A published network as data.

    Attributes:
        modules: by what the names of their tensors begin with: "" is the network itself.
        tensors: under the names of its state dict.
    """

    modules: dict[str, Module]
    tensors: dict[str, Tensor]

    @property
    def sources(self) -> set[str]:
        """SHA-256 of each text that the classes of its modules are in."""
        texts = {module.source for module in self.modules.values() if module.source is not None}
        return {hashlib.sha256(text.encode()).hexdigest() for text in texts}


def read(path: Path) -> Snapshot:
    """The network of a snapshot.

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
            return _snapshot(network, owned, SHARING * size)
        case other:
            raise Malformed(_described(other))


def read_state(path: Path) -> Snapshot:
    """The network that is trained, not averaged, of a training state that EDM wrote.

    Raises:
        Malformed: the file is none, or departs in anything from what one may hold.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            match _evaluated(archive):
                case {"net": Module() as network}:
                    return _snapshot(network, {}, SHARING * path.stat().st_size)
    except (*UNREADABLE_ARRAYS, LookupError) as error:
        raise Malformed(f"it is a damaged training state: {quote(str(error))}") from error
    raise Malformed("it holds no network under 'net'")


def _evaluated(archive: zipfile.ZipFile) -> Any:
    """What torch.save wrote, with tensors that are not read yet."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise Malformed("its files are compressed: expected a zip as torch.save writes it")
    program = next((name for name in archive.namelist() if name.endswith(PROGRAM)), "")
    content, root = archive.read(program), program.removesuffix(PROGRAM)
    rebuild = partial(_member_tensor, archive, root, dict[str, Member]())
    stand_ins = STAND_INS | {"torch._utils _rebuild_tensor_v2": rebuild}
    return evaluate(io.BytesIO(content), memoryview(content), stand_ins, STORAGES.keys())


def _snapshot(network: Module, owned: dict[int, Any], limit: int) -> Snapshot:
    """What a network holds, in so many bytes at most; `owned` as in `_walk`."""
    modules = dict(_walk(network, "", owned))
    arrays = {name: array for prefix in modules for name, array in _arrays(modules[prefix], prefix)}
    return Snapshot(modules, _decode(arrays, limit))


def _described(value: Any) -> str:
    """What a pickle without a network holds, and what would help."""
    match value:
        case {"G_ema": _}:
            return "it is the snapshot of a GAN: its 'G_ema' generates, but does not denoise"
        case {"state_dict": dict(tensors)} | {"model": dict(tensors)} | dict(tensors) if any(
            isinstance(each, Array) for each in tensors.values()
        ):
            return f"it is a bare state dict of {len(tensors)} entries: {NO_OPTIONS}"
        case int() if value == MAGIC:
            return f"it was written by an early torch.save: {NO_OPTIONS}"
    return "it holds no network under 'ema'"


def _walk(module: Module, prefix: str, owned: dict[int, Any]) -> Iterator[tuple[str, Module]]:
    """A module, then those within, with what the names of their tensors begin with.

    `owned` is what belongs to something already, by id: all parts of a file have one owner, or a
    small file could describe a network without end.
    """
    if len(prefix) > LONGEST_NAME:
        raise Malformed(f"modules lie too deep at {quote(prefix)}")
    _own(module, owned)
    yield prefix, module
    for name, value in _members(module, prefix, "_modules", Module):
        yield from _walk(value, f"{name}.", owned)


def _arrays(module: Module, prefix: str) -> Iterator[tuple[str, Array]]:
    """Parameters and persistent buffers of a module itself, with their full names."""
    passing = {f"{prefix}{key}" for key in _held(module, "_non_persistent_buffers_set", list)}
    yield from _members(module, prefix, "_parameters", Array)
    for name, value in _members(module, prefix, "_buffers", Array):
        if name not in passing:
            yield name, value


def _members(
    module: Module, prefix: str, attribute: str, kind: type[Any]
) -> Iterator[tuple[str, Any]]:
    """What one of a module's dicts holds of a kind, with full names."""
    for name, value in ((prefix + k, v) for k, v in _held(module, attribute).items()):
        if isinstance(value, kind):
            yield name, value
        elif value is not None:
            raise Malformed(f"{quote(name)} is {quote(value)}, not {kind.__name__}")


def _own(value: object, owned: dict[int, Any]) -> None:
    if id(value) in owned:
        raise Malformed(f"two of its parts share one {type(value).__name__}")
    owned[id(value)] = value


def _held(module: Module, attribute: str, kind: type[Any] = dict) -> Any:
    """One of the containers that every torch module has; a set is a list here."""
    value = (module.state or {}).get(attribute)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise Malformed(f"{attribute} of a {quote(module.class_name)} is {quote(value)}")
    if not all(type(key) is str for key in value):
        raise Malformed(f"a key of a dict, {attribute} of a {quote(module.class_name)}, is no name")
    return value


def _decode(arrays: dict[str, Array], limit: int) -> dict[str, Tensor]:
    """Tensors that share no memory, of so many bytes in all at most."""
    tensors, used, size = dict[str, Tensor](), set[int](), 0
    for name, array in arrays.items():
        if fault := _fault(array):
            raise Malformed(f"tensor {quote(name)} {fault}")
        storage = array.storage
        if (size := size + math.prod(array.size) * storage.dtype.itemsize) > limit:
            raise Malformed(f"its tensors have more than {limit:,} bytes, {SHARING} times its own")
        view = storage.values.as_strided(array.size, array.stride, array.offset)
        tensors[name] = view.clone() if id(storage) in used else view
        used.add(id(storage))
    return tensors


def _fault(array: Array) -> str | None:
    """Why a tensor cannot lie within its storage; None if it does."""
    size, stride, count = array.size, array.stride, array.storage.count
    numbers = (array.offset, *size, *stride)
    plausible = len(stride) == len(size) <= MOST_DIMENSIONS and 0 not in size
    if plausible and all(type(n) is int and 0 <= n <= count for n in numbers):
        last = array.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) <= count and last < count:
            return None
    return f"has a size or strides that do not fit its storage of {count} values"


def _persistent(args: tuple[Any, ...]) -> Module:
    match args:
        case [{"type": "class", "version": version, "module_src": str()}] if version != VERSION:
            raise Malformed(f"a persistent object has not version {VERSION}, the only one known")
        case [
            {
                "type": "class",
                "module_src": str(source),
                "class_name": str(name),
                "state": dict(state),
            }
        ]:
            return Module(name, state, source)
    raise Malformed("a persistent object is made from something unexpected")


def _tensor(args: tuple[Any, ...]) -> Array:
    match args:
        case [
            (Storage() | Member()) as storage,
            int(offset),
            tuple(size),
            tuple(stride),
            bool(),
            dict(hooks),
            *metadata,
        ] if not hooks and not any(metadata[:1]) and len(metadata) <= 1:
            return Array(storage, offset, size, stride)
    raise Malformed("a tensor is made from something unexpected")


def _member_tensor(
    archive: zipfile.ZipFile, root: str, known: dict[str, Member], args: tuple[Any, ...]
) -> Array:
    """A tensor whose storage is a member of a zip; one that comes again is the same."""
    match args:
        case [("storage", Global(kind), str(key), str(), int(count)), *rest] if kind in STORAGES:
            member = Member(archive, f"{root}/data/{key}", count, STORAGES[kind])
            return _tensor((known.setdefault(key, member), *rest))
    raise Malformed("a tensor is made from something unexpected")


def _of_type(args: tuple[Any, ...]) -> Array:
    """A tensor that has attributes; they mean nothing here."""
    match args:
        case [Global("torch._utils _rebuild_tensor_v2"), Global("torch Tensor"), tuple(inner), _]:
            return _tensor(inner)
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


_PARAMETER = "a parameter is made from something else than a tensor without hooks"
_parameter = _stand_in(
    _PARAMETER, (Array, bool, dict), lambda tensor, _, hooks: None if hooks else tensor
)
_dict = _stand_in("an ordered dict is made from arguments", (), dict)
_set = _stand_in("a set is made from something else than a list", (list,), lambda items: items)
STAND_INS: dict[str, StandIn] = {
    **dict.fromkeys(BESIDE, lambda args: Inert()),
    "torch_utils.persistence _reconstruct_persistent_obj": _persistent,
    "torch.nn.modules.container ModuleDict": _stand_in(
        "a torch container is made from arguments", (), lambda: Module("ModuleDict")
    ),
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": lambda args: _parameter(args[:3]),
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._tensor _rebuild_from_type_v2": _of_type,
    "torch Size": _stand_in(
        "a size is made from something else than a tuple", (tuple,), lambda sizes: sizes
    ),
    "collections OrderedDict": _dict,
    "dnnlib.util EasyDict": _dict,
    **dict.fromkeys(("builtins set", "builtins frozenset"), _set),
    **dict.fromkeys(("__builtin__ set", "__builtin__ frozenset"), _set),
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

"""Files that are damaged or mean harm are refused in one sentence, and nothing in them runs.

Three canaries: a folder that the payload of a pickle would make; an attribute that it would set on
a function of torch; and Python's audit events, which would tell of any import, execution, process
or file written while a file is read. For each payload a control shows that the folder or attribute
does appear when `pickle` itself reads it.
"""

import copyreg
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickletools import genops
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edm.checkpoints.checkpoint import load, save
from edm.checkpoints.snapshot import SIZE_LIMIT, STAND_INS
from edm.precondition import Preconditioned, build
from linear_structure.system.errors import UsageError
from linear_structure.system.unpickle import Malformed, evaluate

CONFIG = tiny.config(img_resolution=4, img_channels=1, model_channels=4)
WEIGHT = "model.map_layer0.weight"
EXTENSION = 217  # in the range that copyreg leaves to applications
MEGABYTE = 1 << 20
SUSPECT = (
    "import",
    "exec",
    "compile",
    "pickle.",
    "subprocess",
    "socket",
    "ctypes",
    "shutil",
    "os.",
)
EVENTS: list[str] = []
WATCHING: list[bool] = []


def audit(event: str, args: tuple[Any, ...]) -> None:
    """Note what no reading of a file needs; opening a file to read it is all that is allowed."""
    if not WATCHING:
        return
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event.startswith(SUSPECT):
        EVENTS.append(f"{event} {args}")


@contextmanager
def watched() -> Iterator[None]:
    """Fail if anything is imported, executed or written inside."""
    EVENTS.clear()
    WATCHING.append(True)
    try:
        yield
    finally:
        WATCHING.clear()
    assert EVENTS == []


@pytest.fixture(scope="module")
def network(published: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Preconditioned:
    """A small network; it was loaded once, so that all that torch imports late is there."""
    torch.manual_seed(0)
    made = build(CONFIG).eval()
    path = tmp_path_factory.mktemp("warm") / "a.pkl"
    path.write_bytes(whole(published, made))
    load(path)
    sys.addaudithook(audit)
    return made


def whole(published: ModuleType, network: Preconditioned, protocol: int = 4, **parts: Any) -> bytes:
    """A valid snapshot, but for `parts` under further keys."""
    form, file = published.Form(protocol), io.BytesIO()
    snapshot = published.snapshot(network.config, network.state_dict(), form)
    published.dump(snapshot | parts, file, form)
    return file.getvalue()


def beside(published: ModuleType, network: Preconditioned, fragment: bytes) -> bytes:
    """A valid network, and opcodes that make any value, as two entries of a pickled dict."""
    form, file = published.Form(protocol=3), io.BytesIO()
    snapshot = published.snapshot(network.config, network.state_dict(), form)
    published.dump(snapshot["ema"], file, form)
    body = file.getvalue()[2:-1]
    return b"\x80\x03}(" + text("ema") + body + text("other") + fragment + b"u."


def refusal(path: Path, data: bytes) -> str:
    """The one sentence with which a file of `data` is refused."""
    path.write_bytes(data)
    with watched(), pytest.raises(UsageError) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert len(sentence) < len(str(path)) + 300
    return sentence


# Opcodes, as an attacker writes them


def text(value: str) -> bytes:
    octets = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(octets)) + octets


def octets(value: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def call(function: str, *args: bytes) -> bytes:
    """A global, "module name", called with arguments that are opcodes too."""
    return named(function) + b"(" + b"".join(args) + b"tR"


def named(function: str) -> bytes:
    return b"c" + function.replace(" ", "\n").encode() + b"\n"


PAYLOADS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a call": (lambda c: call(f"{os.name} mkdir", text(str(c))), "mkdir"),
    "a call by names on the stack": (
        lambda c: text(os.name) + text("mkdir") + b"\x93" + text(str(c)) + b"\x85R",
        "mkdir",
    ),
    "eval": (lambda c: call("builtins eval", text(f"__import__('os').mkdir({str(c)!r})")), "eval"),
    "exec": (lambda c: call("builtins exec", text(f"import os; os.mkdir({str(c)!r})")), "exec"),
    "a constructor": (
        lambda c: call("subprocess Popen", b"(" + text("mkdir") + text(str(c)) + b"t"),
        "subprocess Popen",
    ),
    "attributes in a name": (
        lambda c: text("tempfile") + text("_os.mkdir") + b"\x93" + text(str(c)) + b"\x85R",
        "tempfile _os.mkdir",
    ),
    "INST": (lambda c: b"(" + text(str(c)) + b"i" + os.name.encode() + b"\nmkdir\n", "INST"),
    "OBJ": (lambda c: b"(" + named(f"{os.name} mkdir") + text(str(c)) + b"o", "mkdir"),
    "OBJ by an extension": (lambda c: b"(\x82" + bytes([EXTENSION]) + text(str(c)) + b"o", "EXT1"),
    "EXT1": (lambda c: b"\x82" + bytes([EXTENSION]) + text(str(c)) + b"\x85R", "EXT1"),
    "EXT2": (lambda c: b"\x83" + bytes([EXTENSION, 0]) + text(str(c)) + b"\x85R", "EXT2"),
    "EXT4": (lambda c: b"\x84" + bytes([EXTENSION, 0, 0, 0]) + text(str(c)) + b"\x85R", "EXT4"),
    "a partial": (
        lambda c: call("functools partial", named(f"{os.name} mkdir"), text(str(c))) + b")R",
        "functools partial",
    ),
    "a call after POP": (lambda c: call(f"{os.name} mkdir", text(str(c))) + b"0N", "mkdir"),
}


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension(os.name, "mkdir", EXTENSION)
    yield
    copyreg.remove_extension(os.name, "mkdir", EXTENSION)


def unpickle(data: bytes) -> Any:
    """What the canaries are checked against: the unpickler that runs everything."""
    return pickle.Unpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_is_refused_and_not_executed(
    published: ModuleType,
    network: Preconditioned,
    tmp_path: Path,
    extension: None,
    name: str,
) -> None:
    canary = tmp_path / "executed"
    make, offence = PAYLOADS[name]
    assert offence in refusal(tmp_path / "a.pkl", beside(published, network, make(canary)))
    assert offence in refusal(tmp_path / "b.pkl", bomb(make(canary)))
    assert not canary.exists()
    result = unpickle(bomb(make(canary)))
    if hasattr(result, "wait"):
        result.wait()
    assert canary.exists()


@pytest.mark.parametrize(
    "state", [b"}" + text("canary") + b"\x88s", b"N}" + text("canary") + b"\x88s\x86"]
)
@pytest.mark.parametrize(
    "function", ["torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"]
)
def test_attributes_are_not_set_on_functions(
    published: ModuleType, network: Preconditioned, tmp_path: Path, function: str, state: bytes
) -> None:
    fragment = named(function) + state + b"b"
    assert "sets the state of" in refusal(tmp_path / "a.pkl", beside(published, network, fragment))
    real = getattr(torch._utils, function.split()[1])
    assert not hasattr(real, "canary")
    unpickle(b"\x80\x03" + fragment + b".")
    assert real.canary
    del real.canary


@pytest.mark.parametrize("position", range(5))
def test_payload_within_the_bytes_of_a_tensor_is_not_executed(
    published: ModuleType, network: Preconditioned, tmp_path: Path, position: int
) -> None:
    canary = tmp_path / "executed"
    payload = b"\x80\x02" + call(f"{os.name} mkdir", text(str(canary))) + b"."
    stream = storage_stream(16, bytes(64), **{f"part{position}": payload})
    data = tampered(published, network, Storage(stream))
    assert "mkdir" in refusal(tmp_path / "a.pkl", data)
    elsewhere = whole(published, network, other=Storage(stream))
    assert "mkdir" in refusal(tmp_path / "b.pkl", elsewhere)
    assert not canary.exists()
    with suppress(Exception):
        torch.storage._load_from_bytes(stream)
    assert canary.exists()


# Storages and tensors


class Storage:
    """Pickled as a storage is, with bytes of our choice."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.stream,)


class Tensorlike:
    """Pickled as a tensor is; made of anything."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.args


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


def storage_stream(
    count: Any,
    values: bytes,
    repeated: int | None = None,
    kind: Any = torch.FloatStorage,
    **parts: bytes,
) -> bytes:
    """torch's stream of a storage; `parts` replace whole pickles, `part0` to `part4`."""
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    marker = ("storage", kind, "7", "cpu", count, None)
    file = io.BytesIO()
    for i, part in enumerate((0x1950A86A20F9469CFC6C, 1001, system, marker, ["7"])):
        if f"part{i}" in parts:
            file.write(parts[f"part{i}"])
        else:
            Pickler(file, 2).dump(part)
    return file.getvalue() + struct.pack("<q", count if repeated is None else repeated) + values


def tampered(published: ModuleType, network: Preconditioned, storage: Any, *rest: Any) -> bytes:
    """A snapshot whose tensor `WEIGHT` is made of other arguments."""
    shape = tuple(network.state_dict()[WEIGHT].shape)
    stride = (shape[1], 1)
    arguments = (storage, *(rest or (0, shape, stride)), False, OrderedDict())
    form, file = published.Form(), io.BytesIO()
    snapshot = published.snapshot(network.config, network.state_dict(), form)
    layer = members(members(snapshot["ema"])["model"])["map_layer0"]
    layer.meta["state"]["_parameters"]["weight"] = Tensorlike(*arguments)
    published.dump(snapshot, file, form)
    return file.getvalue()


def members(module: Any) -> dict[str, Any]:
    return module.meta["state"]["_modules"]


SIZE = 4 * 16  # of WEIGHT, (16, 4)
VALUES = bytes(4 * SIZE)
TENSORS: dict[str, tuple[tuple[Any, ...], str]] = {
    "fewer bytes than its count": ((storage_stream(SIZE, VALUES[:-4]),), "252 bytes for 64 values"),
    "more bytes than its count": ((storage_stream(SIZE, VALUES + b"\0"),), "257 bytes"),
    "two counts": ((storage_stream(SIZE, VALUES, repeated=SIZE + 1),), "256 bytes for 64"),
    "an immense count": ((storage_stream(1 << 60, VALUES),), "256 bytes for"),
    "a count beyond 64 bits": (
        (storage_stream(1 << 80, VALUES, repeated=0),),
        "values of 4 bytes",
    ),
    "a negative count": ((storage_stream(-SIZE, VALUES),), "256 bytes for -64"),
    "no values": ((storage_stream(0, b""),), "size or strides"),
    "an unknown type": (
        (storage_stream(SIZE, VALUES, kind=torch.CharStorage),),
        "torch CharStorage",
    ),
    "no type": ((storage_stream(SIZE, VALUES, kind="FloatStorage"),), "unknown header"),
    "another magic number": (
        (storage_stream(SIZE, VALUES, part0=b"\x80\x02K\x07."),),
        "unknown header",
    ),
    "a persistent id too early": (
        (storage_stream(SIZE, VALUES, part2=b"\x80\x02K\x07Q."),),
        "persistent id",
    ),
    "an endless header": (
        (storage_stream(SIZE, VALUES, part2=b"\x80\x02(" + b"K\x07" * 9999 + b"l."),),
        "in the header of a storage, it is cut short",
    ),
    "a header cut short": ((storage_stream(SIZE, VALUES)[:100],), "damaged"),
    "text": (("x" * 900,), "in the header of a storage, opcode b'x'"),
    "an offset": (
        (storage_stream(SIZE, VALUES), 4, (16, 4), (4, 1)),
        "do not fit its storage of 64 values",
    ),
    "more than its storage": (
        (storage_stream(SIZE, VALUES), 0, (16, 5), (5, 1)),
        "do not fit its storage of 64 values",
    ),
    "strides of zero": (
        (storage_stream(SIZE, VALUES), 0, (64, 64), (0, 0)),
        "do not fit its storage of 64 values",
    ),
    "strides beyond its storage": (
        (storage_stream(SIZE, VALUES), 0, (16, 4), (1 << 40, 1)),
        "strides",
    ),
    "negative strides": ((storage_stream(SIZE, VALUES), 0, (16, 4), (-4, 1)), "strides"),
    "transposed strides beyond its storage": (
        (storage_stream(SIZE, VALUES), 1, (16, 4), (1, 16)),
        "do not fit its storage of 64 values",
    ),
    "strides of another length": ((storage_stream(SIZE, VALUES), 0, (16, 4), (1,)), "strides"),
    "a negative size": ((storage_stream(SIZE, VALUES), 0, (-16, -4), (4, 1)), "size"),
    "an immense size": ((storage_stream(SIZE, VALUES), 0, (1 << 62, 1 << 62), (4, 1)), "size"),
    "many dimensions": ((storage_stream(SIZE, VALUES), 0, (64,) + (1,) * 99, (1,) * 100), "size"),
    "a size of words": ((storage_stream(SIZE, VALUES), 0, ("16", 4), (4, 1)), "size"),
    "another shape": ((storage_stream(SIZE, VALUES), 0, (4, 16), (16, 1)), "expected (16, 4)"),
    "whole numbers": (
        (storage_stream(SIZE, VALUES * 2, kind=torch.LongStorage),),
        "is (16, 4) int64",
    ),
    "not a number": (
        (storage_stream(SIZE, struct.pack("<f", float("nan")) + VALUES[4:]),),
        f"'{WEIGHT}' holds NaN",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_that_is_not_whole_and_plain_is_refused(
    published: ModuleType, network: Preconditioned, tmp_path: Path, name: str
) -> None:
    (stream, *rest), offence = TENSORS[name]
    data = tampered(published, network, Storage(stream), *rest)
    assert offence in refusal(tmp_path / "a.pkl", data)


def test_tensors_of_these_helpers_are_read_if_nothing_is_wrong(
    published: ModuleType, network: Preconditioned, tmp_path: Path
) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(tampered(published, network, Storage(storage_stream(SIZE, VALUES))))
    assert not load(path).state_dict()[WEIGHT].any()


def test_bytes_of_two_storages_are_refused(
    published: ModuleType, network: Preconditioned, tmp_path: Path
) -> None:
    """A storage's values are moved within its bytes: they cannot be another's too."""
    form, stream = published.Form(), storage_stream(16, bytes(64))
    snapshot = published.snapshot(network.config, network.state_dict(), form)
    for name in ("map_layer0", "map_layer1"):
        shared = Tensorlike(Storage(stream), 0, (16,), (1,), False, OrderedDict())
        layer = members(members(snapshot["ema"])["model"])[name]
        layer.meta["state"]["_parameters"]["bias"] = shared
    file = io.BytesIO()
    published.dump(snapshot, file, form)
    assert "share one" in refusal(tmp_path / "a.pkl", file.getvalue())


def test_tensors_that_share_a_storage_are_no_larger_than_some_files(
    published: ModuleType, network: Preconditioned, tmp_path: Path
) -> None:
    count = 1 << 20
    storage = Storage(storage_stream(count, bytes(4 * count)))
    many = {f"b{i}": Tensorlike(storage, 0, (count,), (1,), False, OrderedDict()) for i in range(5)}
    data = changed(published, network, layer(lambda s: s["_parameters"].update(many)))
    assert "4 times its own" in refusal(tmp_path / "a.pkl", data)


# Networks that are not what they say


def changed(published: ModuleType, network: Preconditioned, change: Callable[[Any], None]) -> bytes:
    """A snapshot whose description of the network was changed."""
    form, file = published.Form(), io.BytesIO()
    snapshot = published.snapshot(network.config, network.state_dict(), form)
    change(snapshot["ema"].meta)
    published.dump(snapshot, file, form)
    return file.getvalue()


def keyword(**values: Any) -> Callable[[Any], None]:
    return lambda meta: meta["state"]["_init_kwargs"].update(values)


def layer(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    return lambda meta: change(
        members(meta["state"]["_modules"]["model"])["map_layer0"].meta["state"]
    )


NETWORKS: dict[str, tuple[Callable[[Any], None], str]] = {
    "another version": (lambda meta: meta.update(version=5), "version 6"),
    "another type": (lambda meta: meta.update(type="function"), "persistent object"),
    "no source": (lambda meta: meta.pop("module_src"), "persistent object"),
    "no state": (lambda meta: meta.pop("state"), "persistent object"),
    "an unknown class": (lambda meta: meta.update(class_name="Evil"), "'Evil'"),
    "an unknown model": (
        lambda meta: meta["state"]["_modules"]["model"].meta.update(class_name="Evil"),
        "'Evil'",
    ),
    "no model": (lambda meta: meta["state"]["_modules"].pop("model"), "its model"),
    "no keywords": (lambda meta: meta["state"].pop("_init_kwargs"), "its keywords"),
    "an unknown keyword": (keyword(evil=1), "'evil'"),
    "a keyword of another type": (keyword(dropout="much"), "'dropout'"),
    "a keyword out of range": (keyword(img_resolution=-4), "'img_resolution'"),
    "an immense width": (keyword(model_channels=1 << 62), "'model_channels'"),
    "an immense list": (keyword(channel_mult=[1] * 10**5), "'channel_mult'"),
    "many blocks": (keyword(num_blocks=64, channel_mult=[1] * 12, img_resolution=4096), "too few"),
    "a nested list": (keyword(channel_mult=[[1]]), "'channel_mult'"),
    "another network's size": (keyword(model_channels=8), "expected"),
    "a missing tensor": (layer(lambda s: s["_parameters"].pop("bias")), "map_layer0.bias"),
    "an extra tensor": (
        layer(lambda s: s["_parameters"].update(evil=nn.Parameter(torch.zeros(2)))),
        "map_layer0.evil",
    ),
    "parameters in a list": (layer(lambda s: s.update(_parameters=[1])), "_parameters"),
    "a number as a parameter": (layer(lambda s: s["_parameters"].update(bias=1)), "is int"),
    "a number as a module": (layer(lambda s: s["_modules"].update(evil=1)), "is int"),
    "a name without end": (
        layer(lambda s: s["_parameters"].update({"x" * 10**6: nn.Parameter(torch.zeros(2))})),
        "unknown",
    ),
    "a key that is no string": (layer(lambda s: s["_buffers"].update({1: None})), "key of a dict"),
    "hooks": (
        layer(lambda s: s["_parameters"].update(bias=Hooked())),
        "tensor without hooks",
    ),
}


class Hooked:
    def __reduce__(self) -> tuple[Any, ...]:
        hooks = OrderedDict({"a": "b"})
        return torch._utils._rebuild_parameter, (torch.zeros(16), False, hooks)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_that_is_not_what_it_says_is_refused(
    published: ModuleType, network: Preconditioned, tmp_path: Path, name: str
) -> None:
    change, offence = NETWORKS[name]
    assert offence in refusal(tmp_path / "a.pkl", changed(published, network, change))


def test_module_within_itself_is_refused(
    published: ModuleType, network: Preconditioned, tmp_path: Path
) -> None:
    cycle = nn.ModuleDict()
    vars(cycle)["_modules"] = {"again": cycle}
    data = changed(published, network, layer(lambda s: s["_modules"].update(evil=cycle)))
    assert "share one Module" in refusal(tmp_path / "a.pkl", data)


# Streams that ask for more than they hold


def bomb(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


BOMBS: dict[str, tuple[bytes, str]] = {
    "a memo index": (bomb(b"Nr", struct.pack("<I", 0x7FFFFFFF)), "memo index"),
    "an absent memo index": (bomb(b"j", struct.pack("<I", 0x7FFFFFFF)), "memo index"),
    "the length of bytes": (bomb(b"\x8e", struct.pack("<Q", 1 << 60)), "damaged"),
    "the length of short bytes": (bomb(b"B", struct.pack("<I", 0xFFFFFFFF), b"x"), "damaged"),
    "the length of text": (bomb(b"X", struct.pack("<I", 0xFFFFFFFF), b"x"), "damaged"),
    "the length of a number": (bomb(b"\x8b", struct.pack("<i", 0x7FFFFFFF), b"x"), "LONG4"),
    "a number of a million digits": (bomb(b"L", b"9" * 10**6, b"L\n"), "opcode LONG "),
    "a number that is cut short": (bomb(b"\x8a\xff", b"x"), "damaged"),
    "OBJ": (bomb(b"(", named("collections OrderedDict"), b"o"), "OBJ"),
    "a frame": (bomb(b"\x95", struct.pack("<Q", 1 << 62), b"N"), "no network"),
    "a key without end": (bomb(b"}", b")", b"\x85" * 60_000, b"Ns"), "key of a dict"),
    "a key of doubled tuples": (
        bomb(b"}", b")\x94", b"".join(b"h%c\x86\x94" % i for i in range(60)), b"Ns"),
        "key of a dict",
    ),
    "countless sets": (bomb(b"(", b"\x8f" * 210_000, b"t"), "more than"),
    "countless marks": (bomb(b"(" * 210_000), "more than"),
    "nested lists": (bomb(b"]" * 60_000, b"a" * 59_999), "no network"),
    "out-of-band buffers": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "read-only buffers": (b"\x80\x05C\x01x\x98.", "READONLY_BUFFER"),
    "bytes that can be written": (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x.", "no network"),
    "the length of bytes that can be written": (
        bomb(b"\x96", struct.pack("<Q", 1 << 60)),
        "damaged",
    ),
    "an immense key": (bomb(b"}", b"\x8a\x05", bytes(4), b"\x01", b"Ns"), "key of a dict"),
    "a persistent id": (bomb(b"K\x07Q"), "persistent id"),
    "a persistent id in text": (bomb(b"Pevil\n"), "PERSID"),
    "NEWOBJ_EX": (bomb(named("collections OrderedDict"), b")}\x92"), "NEWOBJ_EX"),
    "an empty stack": (bomb(b"R"), "stack runs empty"),
    "no mark": (bomb(b"t"), "mark is missing"),
    "two results": (bomb(b"NN"), "does not end with one value"),
    "no end": (b"\x80\x04N", "cut short"),
    "an unknown opcode": (bomb(b"\xff"), "opcode b'\\xff'"),
    "text that is not UTF-8": (bomb(b"X", struct.pack("<I", 2), b"\xff\xfe"), "damaged"),
    "a call of text": (bomb(text("os.mkdir"), b")R"), "calls 'os.mkdir'"),
    "a state for a dict": (bomb(b"}}b"), "sets the state of dict"),
    "a state for a set": (bomb(call("collections OrderedDict"), b"}b"), "sets the state of dict"),
    "a second state": (
        bomb(named("torch.nn.modules.container ModuleDict"), b")\x81}b}b"),
        "is given dict as its state",
    ),
    "items for a number": (bomb(b"K\x07Na"), "appended to int"),
    "a missing value": (bomb(b"}(", text("a"), b"u"), "value is missing"),
    "a global by numbers": (bomb(b"K\x07K\x08\x93"), "two strings"),
    "arguments for a dict": (bomb(call("collections OrderedDict", b"]")), "from arguments"),
    "a numpy object": (bomb(call("numpy dtype", text("O8"), b"\x89\x88")), "numpy type is none of"),
    "a numpy number of the wrong length": (
        bomb(
            call(
                "numpy.core.multiarray scalar",
                call("numpy dtype", text("f8"), b"\x89\x88"),
                octets(b"x" * 7),
            )
        ),
        "numpy number",
    ),
    "a big-endian number": (
        bomb(call("numpy dtype", text("f8"), b"\x89\x88"), b"(K\x03", text(">"), b"tb"),
        "little-endian",
    ),
    "bytes in another code": (bomb(call("_codecs encode", text("x"), text("rot13"))), "latin-1"),
    "the training state's format": (b"PK\x03\x04" + bytes(99), "neither a pickle"),
    "protocol 0": (b"cos\nmkdir\n(S'x'\ntR.", "neither a pickle"),
    "a web page": (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    "an error in XML": (b"\n <?xml version='1.0'?><Error/>", "web page"),
    "nothing": (b"", "it is empty"),
    "only zeros": (bytes(4096), "neither a pickle"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_stream_is_refused_within_bounded_memory(
    network: Preconditioned, tmp_path: Path, name: str
) -> None:
    data, offence = BOMBS[name]
    tracemalloc.start()
    try:
        assert offence in refusal(tmp_path / "a.pkl", data)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 80 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_modules_that_double_are_refused(
    published: ModuleType, network: Preconditioned, tmp_path: Path
) -> None:
    inner = nn.ModuleDict()
    for _ in range(60):
        outer = nn.ModuleDict()
        vars(outer)["_modules"] = {"a": inner, "b": inner}
        inner = outer
    data = changed(published, network, layer(lambda s: s["_modules"].update(evil=inner)))
    assert "share one Module" in refusal(tmp_path / "a.pkl", data)


def test_modules_that_are_nested_without_end_are_refused(
    network: Preconditioned, tmp_path: Path
) -> None:
    levels, fresh = 10_000, named("torch.nn.modules.container ModuleDict") + b")\x81"
    opened = b"".join(fresh + b"}" + text("_modules") + b"}" + text("") for _ in range(levels))
    data = bomb(b"}", text("ema"), opened, fresh, b"}b", b"ssb" * levels, b"s")
    assert "too deep" in refusal(tmp_path / "a.pkl", data)


def test_file_beyond_any_network_is_refused_unread(network: Preconditioned, tmp_path: Path) -> None:
    with (tmp_path / "a.pkl").open("wb") as file:
        file.write(b"\x80\x04")
        file.truncate(SIZE_LIMIT + 1)
    with watched(), pytest.raises(UsageError, match="expected 1 to"):
        load(tmp_path / "a.pkl")


# Damage


def test_truncated_snapshot_is_refused(
    published: ModuleType, network: Preconditioned, tmp_path: Path
) -> None:
    data = whole(published, network)
    for length in np.linspace(1, len(data) - 1, 20).astype(int):
        refusal(tmp_path / "a.pkl", data[:length])


def test_truncated_safetensors_is_refused(network: Preconditioned, tmp_path: Path) -> None:
    save(network, tmp_path / "a.safetensors", {})
    data = (tmp_path / "a.safetensors").read_bytes()
    for length in np.linspace(1, len(data) - 1, 20).astype(int):
        refusal(tmp_path / "b.safetensors", data[:length])


def mutations(data: bytes, places: list[int], count: int, seed: int) -> Iterator[bytes]:
    """Change one byte at a place drawn at random, or change, remove, repeat or insert several."""
    random = np.random.default_rng(seed)
    for i in range(count):
        place, length = int(random.choice(places)), 1 if i % 2 else int(random.integers(1, 9))
        old, new = data[place : place + length], random.bytes(length)
        other = new if i % 2 else [new, b"", old * 2, new + old][random.integers(4)]
        yield data[:place] + other + data[place + length :]


def structure(data: bytes) -> list[int]:
    """Where the opcodes of a snapshot lie, and the headers of its storages."""
    stream, places = io.BytesIO(data), list[int]()
    for _, arg, start in genops(stream):
        end = stream.tell()
        long = isinstance(arg, bytes | str) and len(arg) > 400
        places += range(start, end - len(arg) + 400 if long else end)
    return places


def network_or_sentence(path: Path, data: bytes, canary: Path) -> None:
    path.write_bytes(data)
    with watched(), suppress(UsageError):
        assert isinstance(load(path), Preconditioned)
    assert not canary.exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", [2, 4])
def test_any_damage_gives_a_network_or_a_sentence(
    published: ModuleType, network: Preconditioned, tmp_path: Path, protocol: int
) -> None:
    data = whole(published, network, protocol)
    for mutated in mutations(data, structure(data), 150, seed=protocol):
        network_or_sentence(tmp_path / "a.pkl", mutated, tmp_path / "executed")


@pytest.mark.timeout(120)
def test_any_damage_to_safetensors_gives_a_network_or_a_sentence(
    network: Preconditioned, tmp_path: Path
) -> None:
    save(network, tmp_path / "a.safetensors", {"source": "here"})
    data = (tmp_path / "a.safetensors").read_bytes()
    header = list(range(8 + int.from_bytes(data[:8], "little")))
    for mutated in mutations(data, header, 250, seed=0):
        network_or_sentence(tmp_path / "b.safetensors", mutated, tmp_path / "executed")


PIECES = [bytes([code]) for code in b"}](N)\x8f\x88\x89tsuabeR\x81\x85\x86\x87\x94\x93Q0."] + [
    *(named(name) for name in (*STAND_INS, "torch.storage _load_from_bytes")),
    *(text(word) for word in ("ema", "state", "_modules", "f8", "latin1", "")),
    *(b"K" + bytes([n]) for n in range(4)),
    *(b"h" + bytes([n]) for n in range(4)),
    octets(b"12345678"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
@settings(max_examples=500, deadline=None)
def test_any_program_gives_a_value_or_a_sentence(program: bytes) -> None:
    data = b"\x80\x04" + program + b"."
    with suppress(Malformed):
        evaluate(io.BytesIO(data), memoryview(data), STAND_INS)


def test_safetensors_with_an_evil_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    evil = {"precondition": ["EDMPrecond"], "img_channels": {"a": 1}, "__class__": "os.system"}
    for name, value in evil.items():
        save_file({"a": torch.zeros(1)}, path, {"config": json.dumps(CONFIG | {name: value})})
        refusal(path, path.read_bytes())

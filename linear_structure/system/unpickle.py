"""Pickles evaluated as data: nothing is imported, nothing is called but the stand-ins given.

A pickle is a program for a stack machine. This machine knows the opcodes that build plain data,
and looks each global up in a table of stand-ins; whatever else a stream holds is refused. Only
the reading of opcodes and their arguments is `pickletools`'.

An allow-list on `pickle.Unpickler` would not do, even behind a scan of the opcodes: it hashes any
key (2 MB of nested tuples overflow the C stack and end the process, 60 doubled ones never end), it
lets BUILD set attributes on any object, and it allocates what a memo index or a frame claims. Here
keys are strings or small numbers, BUILD reaches stand-ins made for it, memo indices count up, and
frames are skipped. A byte string stays a view of the stream's memory, so that reading costs little
beside it.
"""

from collections.abc import Callable, Container, Mapping, Set
from dataclasses import dataclass
from pickletools import opcodes as all_opcodes
from typing import IO, Any

OPCODE_LIMIT = 200_000  # a published network takes some 50,000
LONGEST_QUOTE = 80
KEY_LIMIT = 1 << 31  # of whole numbers as keys: larger ones can be chosen to collide

StandIn = Callable[[tuple[Any, ...]], Any]
"""What a global does instead: takes the arguments of REDUCE or NEWOBJ and checks them."""


class Malformed(Exception):
    """The stream departs from the expected form; the message says how, not in which file."""


class Buildable:
    """A stand-in that BUILD may hand a state."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


def quote(text: Any) -> str:
    """At most 80 characters of what a stream says, escaped."""
    shown = repr(text) if isinstance(text, str) else type(text).__name__
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}..."


def octets(value: memoryview | str) -> memoryview | bytes:
    """The bytes of a byte string: a view, or the latin-1 text that carries it."""
    return value.encode("latin1") if isinstance(value, str) else value


def evaluate(
    stream: IO[bytes],
    memory: memoryview,
    stand_ins: Mapping[str, StandIn],
    markers: Set[str] = frozenset(),
    python2: bool = False,
    limit: int = OPCODE_LIMIT,
) -> Any:
    """Evaluate one pickle from the stream's position, and leave the stream behind it.

    Args:
        stream: reads from `memory`; at position 0 it is at the start of it.
        memory: what byte strings become views of.
        stand_ins: by "module name", what each global does that may be called.
        markers: globals that may be named but not called. If there are any, a persistent id
            is taken for the value it is made of; otherwise it is refused.
        python2: whether byte strings of Python 2 may occur; they become latin-1 text.
        limit: of the number of opcodes.

    Returns:
        Numbers, strings, views, tuples, lists (also for sets), dicts whose keys are strings, whole
        numbers below 2^31 or None, and what the stand-ins return.

    Raises:
        Malformed: the stream is damaged or holds anything else.
    """
    machine, opcodes = _Machine(stand_ins, markers), PYTHON2 if python2 else OPCODES
    try:
        for _ in range(limit):
            name, arg = _next(stream, memory, opcodes)
            if name == "STOP":
                return machine.result()
            opcodes[name](machine, arg)
    except ValueError as error:
        raise Malformed(f"it is damaged: {quote(str(error))}") from error
    raise Malformed(f"it has more than {limit:,} opcodes")


def _next(stream: IO[bytes], memory: memoryview, known: Container[str]) -> tuple[str, Any]:
    """Name and argument of the next opcode; one that is not known is refused before it is read."""
    code = stream.read(1)
    if not code:
        raise Malformed("it is cut short")
    opcode = CODES.get(code)
    if opcode is None or opcode.name not in known:
        raise Malformed(f"opcode {opcode.name if opcode else repr(code)} has no place in it")
    arg = opcode.arg.reader(stream) if opcode.arg else None
    if isinstance(arg, bytes | bytearray):
        arg = memory[stream.tell() - len(arg) : stream.tell()]
    return opcode.name, arg


def _is_key(value: Any) -> bool:
    small = isinstance(value, int) and abs(value) < KEY_LIMIT
    return small or value is None or type(value) is str


@dataclass(frozen=True)
class Global:
    """A global that a stream names, "module name": the name and nothing more."""

    name: str


class _Machine:
    """Stack, stacks below the open marks, and memo; a method for each thing that opcodes do."""

    def __init__(self, stand_ins: Mapping[str, StandIn], markers: Set[str]) -> None:
        self.stand_ins, self.markers = stand_ins, markers
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: list[Any] = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Malformed("its stack runs empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise Malformed("a mark is missing")
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def top(self) -> Any:
        if not self.stack:
            raise Malformed("its stack runs empty")
        return self.stack[-1]

    def remember(self, index: int | None) -> None:
        if index not in (None, len(self.memo)):
            raise Malformed(f"memo index {index} follows {len(self.memo)} entries")
        self.memo.append(self.top())

    def remember_from_one(self, index: int) -> None:
        """As `remember`, but the first index may be 1, as Python 2 writes it."""
        if not self.memo and index == 1:
            self.memo.append(None)
        self.remember(index)

    def recall(self, index: int) -> None:
        if index >= len(self.memo):
            raise Malformed(f"memo index {index} is asked for among {len(self.memo)} entries")
        self.push(self.memo[index])

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.top(), list):
            raise Malformed(f"items are appended to {quote(self.top())}")
        self.top().extend(items)

    def update(self, items: list[Any]) -> None:
        """Set keys and values, which alternate; other keys may not be hashed in no time."""
        keys, values = items[::2], items[1::2]
        if not isinstance(self.top(), dict) or len(keys) != len(values):
            raise Malformed(f"items are set in {quote(self.top())}, or a value is missing")
        if not all(map(_is_key, keys)):
            raise Malformed("a key of a dict is neither a string nor a small whole number")
        self.top().update(zip(keys, values, strict=True))

    def find(self, name: str) -> None:
        if name not in self.stand_ins and name not in self.markers:
            raise Malformed(f"it names the global {quote(name)}, which is not allowed")
        self.push(Global(name))

    def find_pair(self) -> None:
        module, name = self.pop(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed("a global is named by something else than two strings")
        self.find(f"{module} {name}")

    def call(self, callee: Any, args: Any) -> None:
        if not (isinstance(callee, Global) and isinstance(args, tuple)):
            raise Malformed(f"it calls {quote(callee)} with {quote(args)}")
        if callee.name not in self.stand_ins:
            raise Malformed(f"it calls {quote(callee.name)}, which is only a name here")
        self.push(self.stand_ins[callee.name](args))

    def build(self, state: Any) -> None:
        if not isinstance(self.top(), Buildable):
            raise Malformed(f"it sets the state of {quote(self.top())}")
        self.top().build(state)

    def persist(self) -> None:
        if not self.markers:
            raise Malformed("it holds a persistent id")

    def result(self) -> Any:
        if self.below or len(self.stack) != 1:
            raise Malformed("it does not end with one value")
        return self.stack[0]


CODES = {opcode.code.encode("latin1"): opcode for opcode in all_opcodes}
LITERALS = (
    *("NONE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE"),
    *("BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(LITERALS, _Machine.push),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.call(*machine.pop(2))),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine.push([])),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.pop_mark())),
    "FROZENSET": lambda machine, _: machine.push(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": lambda machine, _: machine.find_pair(),
    "BUILD": lambda machine, _: machine.build(*machine.pop(1)),
    "BINPERSID": lambda machine, _: machine.persist(),
}
"""Every opcode that is known, and what it does."""
PYTHON2 = {
    **OPCODES,
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), _Machine.push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember_from_one),
}

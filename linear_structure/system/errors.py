"""What a person did wrong, or what work failed, in one sentence; and how a command ends."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import Any

ECHO = 1.0  # seconds in which a launcher may hand on a signal that its processes got, too


def printable(text: str) -> str:
    """A text in one line: of names that others chose, what steers a terminal is escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


class _Told(Exception):
    """One sentence, in one line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(_Told):
    """The input is wrong; the message says what, where, and what would be right (exit code 2)."""


class WorkError(_Told):
    """The work could not be done although the input was right (exit code 1)."""


@contextmanager
def importing() -> Iterator[None]:
    """Within, and after `leave_at_once` until `run_command`, Ctrl-C ends the process in silence.

    Exit code 130. Nothing is begun yet; and in C++ that imports, an exception would abort instead.
    """
    leave_at_once()
    yield
    _interruptible()


def leave_at_once() -> None:
    """What a command does first, before it imports what takes seconds: see `importing`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _leave)


def _interruptible() -> None:
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(130)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which else would end the process and leave its temporary files behind."""


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back in a loop; yield a call that says whether one came.

    The first is said on standard error, and takes effect where the block ends: it never ends as if
    all were done. An error of the block comes before it. One that follows takes effect at once.
    """
    came: list[tuple[int, float]] = []

    def _hold(number: int, frame: FrameType | None) -> None:
        if not came:
            came.append((number, time.monotonic()))
            with suppress(OSError):  # print would fail within another print
                os.write(2, b"\nstopping after this step; once more to stop at once\n")
        elif time.monotonic() - came[0][1] > ECHO:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    with _handling((signal.SIGINT, signal.SIGTERM), _hold) as before:
        yield lambda: bool(came)
    if came:
        signal.raise_signal(came[0][0])
        raise KeyboardInterrupt


@contextmanager
def abrupt() -> Iterator[None]:
    """SIGINT and SIGTERM end the process in the block, which may be C++ that never looks at them.

    In silence, and without cleaning up.
    """
    with _handling((signal.SIGINT, signal.SIGTERM), signal.SIG_DFL):
        yield


@contextmanager
def _handling(
    numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], None] | signal.Handlers
) -> Iterator[dict[int, Any]]:
    """Other handlers of signals in the block, which only the main thread may set; yield the former.

    What is ignored, as in a shell's background, stays so.
    """
    known = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is not threading.main_thread():
        known = {}
    before = {n: found for n, found in known.items() if found not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def run_command(main: Callable[[], None]) -> int:
    """Run a command's `main` and return its exit code.

    It is 0, 2 for misuse, 1 for failed work, 130 and 143 for SIGINT and SIGTERM. Mistakes and
    failed files are one sentence on standard error; a bug keeps its traceback. What the terminal
    cannot encode, such as odd names of folders, is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _interruptible()
        with _handling((signal.SIGTERM,), _terminate):
            main()
    except (UsageError, WorkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(printable(f"error: {error.strerror or error}{where}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(
            "interrupted: the same command continues from what it has kept, if anything",
            file=sys.stderr,
        )
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    return 0

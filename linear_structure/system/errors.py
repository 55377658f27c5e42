"""What a person did wrong, or what work failed, in one sentence; and how a command ends."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper


class UsageError(Exception):
    """The input is wrong; the message says what, where, and what would be right (exit code 2)."""


class WorkError(Exception):
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


def run_command(main: Callable[[], None]) -> int:
    """Run a command's `main` and return its exit code: 0, 2 misuse, 1 failed work, 130 interrupted.

    Mistakes and failed files are one sentence on standard error; a bug keeps its traceback. What
    the terminal cannot encode, such as odd names of folders, is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _interruptible()
        main()
    except (UsageError, WorkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept; the same command continues", file=sys.stderr)
        return 130
    return 0

"""Whose code a name may run: what was typed here, by this user, for this folder of results.

A folder of results can come from anybody, with an `own.json` that names code. So what allows code
to be imported lies outside of it, in the cache, under the user and the place where the folder lies.
A cache may be shared: what another user has written there allows nothing.
"""

import os
import sys
from pathlib import Path

from linear_structure.system.download import cache_dir
from linear_structure.system.files import digest_of, read_json, write_json


def give(folder: Path, code: str) -> None:
    """Let the name with results in a folder run some code, `module:function`, that was typed.

    Where the cache cannot be written, a note says that it has to be typed each time.
    """
    try:
        write_json(_path(folder), {"folder": str(folder.absolute()), "code": code})
    except OSError as error:
        print(f"note: type --network {code} each time: {error}", file=sys.stderr)


def given(folder: Path, code: str) -> bool:
    """Whether exactly this code was typed for a folder at this place."""
    path = _path(folder)
    try:
        kept, owner = read_json(path), path.stat().st_uid
    except (OSError, ValueError):
        return False
    return owner == _user() and bool(kept == {"folder": str(folder.absolute()), "code": code})


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0  # which Windows says of all files


def _path(folder: Path) -> Path:
    return cache_dir() / "code" / f"{digest_of([_user(), str(folder.absolute())])}.json"

"""Resumable, verified downloads: a file is in the cache whole, or not at all.

A download grows in `NAME.part` and becomes `NAME` when its length and digests are right. After a
cut only the rest is asked for, by `Range` (206: append; 200: start over; 416: nothing is missing,
verify), first from the same mirror and then from the next. Where no digest is pinned nothing would
tell that two files were glued: then a mirror continues only what it began itself, under `If-Range`
with the ETag or time that the file had (kept in `NAME.part.json`), and starts over without these.
`NAME.json` records the SHA-256 together with the size and the time of the file that it was computed
from: a file that did not change is hashed once, and where nobody states a digest the first one seen
holds from then on.

Nothing that is fetched is executed or unpacked here.
"""

import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from queue import Empty, Queue
from typing import TypeVar
from urllib.parse import urlparse

import requests
import urllib3
from tqdm import tqdm

from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import (
    alone,
    digest_of,
    digest_of_file,
    keep,
    read_json,
    write_json,
)

SIZE_LIMIT = 4 << 30  # bytes, of what somebody names; the largest published file has 1.2e9
CHUNK = 1 << 16  # bytes, the most that a cut connection loses
TIMEOUTS = (10.0, 60.0)  # seconds to connect, and between two pieces
SLOWEST = 60.0  # seconds for an answer, and for each CHUNK after it
ATTEMPTS = 4  # in a row that bring nothing new, for each mirror
PAUSE = 0.5  # seconds after the first such attempt; doubled after each further one
REPLACED = {  # what a file of sources may say of each, and of what type
    "urls": list,
    "sha256": str | None,
    "md5": str | None,
    "size_limit": int,
}


@dataclass(frozen=True)
class Source:
    """One file and where it is published."""

    urls: tuple[str, ...]  # mirrors of the same bytes, in the order to be tried
    name: str  # path within the cache, with forward slashes
    sha256: str | None  # None: the first one seen is remembered
    size_limit: int  # bytes, refused beyond
    md5: str | None = None  # where the publisher states only this one

    @property
    def pinned(self) -> bool:
        """Whether a digest is known before the file is fetched."""
        return bool(self.sha256 or self.md5)


def cache_dir() -> Path:
    """`$LINEAR_STRUCTURE_CACHE`, by default `linear_structure` in the user's cache directory."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get("LINEAR_STRUCTURE_CACHE") or f"{caches}/linear_structure"
    return Path(chosen).expanduser()


def fetch(source: Source, folder: Path | None = None) -> Path:
    """The verified file of `source` in `folder` (by default the cache), downloaded if it is absent.

    A file that is there is used without the network. Any number of processes may ask at once: one
    of them downloads. With `LINEAR_STRUCTURE_OFFLINE=1` nothing is downloaded.

    Raises:
        WorkError: the file cannot be had, or the one that is there has another digest.
        UsageError: `$LINEAR_STRUCTURE_SOURCES` is no such file.
    """
    source = _redirected(source)
    path = (folder or cache_dir()) / source.name
    if not path.exists():
        if os.environ.get("LINEAR_STRUCTURE_OFFLINE", "0") not in ("", "0"):
            places = public(" or ".join(source.urls))
            raise WorkError(
                f"{source.name} is missing and LINEAR_STRUCTURE_OFFLINE is set: "
                f"fetch {places} elsewhere and put it at {path}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(Path(f"{path}.lock"), f"fetches {path.name}"):
            if not path.exists():
                _download(source, path)
    _verify(source, path)
    return path


def _redirected(source: Source) -> Source:
    """The source, or what the user's file `$LINEAR_STRUCTURE_SOURCES` puts in its place.

    That file is JSON: `{"NAME": {"urls": [...], "sha256": ..., "size_limit": ...}}`, where NAME is
    the last part of a source's name; a digest that is left out is unknown, not the publisher's.
    """
    chosen = os.environ.get("LINEAR_STRUCTURE_SOURCES")
    if not chosen:
        return source
    try:
        entry = read_json(Path(chosen)).get(Path(source.name).name)
        if entry is None:
            return source
        wrong = [name for name, value in entry.items() if not isinstance(value, REPLACED[name])]
        if wrong or not all(isinstance(url, str) for url in entry["urls"]):
            raise TypeError(f"of another type: {', '.join(wrong or ['urls'])}")
        given = {**entry, "urls": tuple(entry["urls"])}
        return replace(source, **{"sha256": None, "md5": None, **given})
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"LINEAR_STRUCTURE_SOURCES={chosen} does not map file names to urls, sha256 and "
            f"size_limit as JSON ({error})"
        ) from error


def given(text: str, sha256: str | None = None) -> Source | Path:
    """What somebody typed: a path, or an http(s) URL, whose place in the cache follows from it.

    Raises:
        UsageError: the file at a path has another digest than `sha256` (64 hexadecimal digits), or
            a URL is none.
    """
    if text.startswith(("http://", "https://")):
        try:
            place = urlparse(text).path
        except ValueError as error:
            raise UsageError(f"{public(text)} is no URL: {error}") from error
        stem = re.sub(r"[^\w.-]", "_", Path(place).name).strip(".")
        name = f"given/{digest_of(text)[:16]}/{stem[-100:] or 'file'}"
        return Source((text,), name, sha256, SIZE_LIMIT)
    path = Path(text)
    if sha256 is not None and path.is_file() and (actual := digest_of_file(path)) != sha256.lower():
        raise UsageError(f"{path} has the SHA-256 {actual}, not the {sha256} that was asked for")
    return path


def located(file: Source | Path) -> Path:
    """The path of a file, fetched where it is a `Source`; a UsageError where there is none."""
    if isinstance(file, Source):
        return fetch(file)
    if not file.is_file():
        raise UsageError(f"{public(str(file))} is not a file: expected a path to one, or a URL")
    return file


def public(text: str) -> str:
    """A text without the names and passwords in its URLs."""
    return re.sub(r"://[^/?#\s]*@", "://", text)


@dataclass(frozen=True)
class _Record:
    """The digests of a file, and its size and times when they were computed."""

    sha256: str
    md5: str
    size: int
    modified_ns: int
    changed_ns: int = 0  # unlike the other, not set by who copies a file over it

    @classmethod
    def of(cls, path: Path) -> "_Record":
        """Read and hash the whole file."""
        times = _times(path.stat())
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        return cls(digest_of_file(path), md5, *times)


def _times(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True)
class _Origin:
    """Which file a partial one is the beginning of."""

    url: str  # without a password
    validator: str | None  # its strong ETag, else the time of its last change
    total: int | None  # its bytes, if the server states them

    @classmethod
    def of(cls, url: str, response: requests.Response, total: int | None) -> "_Origin":
        etag = response.headers.get("ETag", "")
        strong = etag if etag.startswith('"') else None  # If-Range takes no weak one
        return cls(public(url), strong or response.headers.get("Last-Modified"), total)


Noted = TypeVar("Noted", _Record, _Origin)


def _note(path: Path) -> Path:
    """What lies beside a file and tells of it."""
    return path.with_name(f"{path.name}.json")


def _recall(kind: type[Noted], path: Path) -> Noted | None:
    try:
        return kind(**read_json(_note(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _difference(source: Source, found: _Record, first: _Record | None) -> str | None:
    """Which digest is not the pinned one (or, where none is pinned, the first seen); else None."""
    sha256 = source.sha256 if source.pinned or first is None else first.sha256
    digests = (("SHA-256", sha256, found.sha256), ("MD5", source.md5, found.md5))
    for kind, expected, actual in digests:
        if expected and expected.lower() != actual:
            return f"its {kind} is {actual} instead of {expected}"
    return None


def _verify(source: Source, path: Path) -> None:
    """Hash the file if it is new or was touched since, and compare."""
    first = _recall(_Record, path)
    known = first and (first.size, first.modified_ns, first.changed_ns) == _times(path.stat())
    record = first if first and known else _Record.of(path)
    if difference := _difference(source, record, first):
        remedy = "move it elsewhere and it is fetched again, or put the right file in its place"
        if not source.pinned:
            remedy += f", or remove {_note(path).name} beside it if it is right as it is"
        raise WorkError(f"{path} is damaged or another file: {difference}; {remedy}")
    if record != first and os.access(path.parent, os.W_OK):
        write_json(_note(path), asdict(record))


class _Cut(Exception):
    """The answer ended early or never came: the same URL may give the rest."""


class _Slow(_Cut):
    """The answer came, but too slowly."""


class _Refused(Exception):
    """This URL does not give the file."""


def _download(source: Source, path: Path) -> None:
    """Try the mirrors in order until one has completed the file."""
    partial = path.with_name(f"{path.name}.part")
    failures = []
    with tqdm(desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        for url in source.urls:
            try:
                return _obtain(url, source, path, partial, bar)
            except _Refused as refusal:
                failures.append(public(f"{url}: {refusal}"))
    kept = f"; {_size(partial)} bytes are kept in {partial}" if _size(partial) else ""
    raise WorkError(
        f"cannot fetch {source.name} ({'; '.join(failures)}){kept}; the same command tries again, "
        f"and uses the file if you put it at {path}"
    )


def _obtain(url: str, source: Source, path: Path, partial: Path, bar: tqdm) -> None:
    """Complete the file from one URL; if that fails on an old beginning, once more from nothing."""
    while True:
        old = _size(partial)
        _persist(url, source, partial, bar)
        record = _Record.of(partial)
        with partial.open("rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
        fault = "an HTML page" if page else _difference(source, record, _recall(_Record, path))
        if fault is None:
            keep(partial, path)
            _note(partial).unlink(missing_ok=True)
            moved = replace(record, changed_ns=path.stat().st_ctime_ns)
            return write_json(_note(path), asdict(moved))
        _discard(partial)
        if not old:
            raise _Refused(f"it gives another file, {fault}")


def _persist(url: str, source: Source, partial: Path, bar: tqdm) -> None:
    """Ask for the rest until nothing is missing, or until several attempts bring nothing new.

    Of a slow server, so much in its time is nothing.
    """
    longest, idle = _size(partial), 0
    while True:
        try:
            return _continue(url, source, partial, bar)
        except _Cut as cut:
            least = CHUNK if isinstance(cut, _Slow) else 1
            idle = 0 if _size(partial) >= longest + least else idle + 1
            longest = max(longest, _size(partial))
            if idle == ATTEMPTS:
                raise _Refused(str(cut)) from cut
            time.sleep(PAUSE * 2 ** max(idle - 1, 0))


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _discard(partial: Path) -> None:
    partial.unlink()
    _note(partial).unlink(missing_ok=True)


def _conditions(url: str, source: Source, partial: Path) -> dict[str, str]:
    """Headers that ask for the rest; none if `partial` may be the beginning of another file."""
    if not _size(partial):
        return {}
    rest = {"Range": f"bytes={_size(partial)}-"}
    if source.pinned:
        return rest
    origin = _recall(_Origin, partial)
    if origin is None or origin.url != public(url) or origin.validator is None:
        return {}
    return rest | {"If-Range": origin.validator}


def _continue(url: str, source: Source, partial: Path, bar: tqdm) -> None:
    """Ask once for what `partial` lacks, and append it as it arrives."""
    conditions = _conditions(url, source, partial)
    kept = _size(partial) if conditions else 0
    # Without "identity" a server may compress, and offsets and lengths mean something else.
    headers = {"Accept-Encoding": "identity"} | conditions
    try:
        with _answer(url, headers) as response:
            if response.status_code == 416 and kept:
                return _settle(url, response, source, partial)
            start, total = _extent(response, source, kept)
            origin = _Origin.of(url, response, total)
            if start:
                _refuse_changed(origin, source, partial)
            _append(response, partial, start, origin, source.size_limit, bar)
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        reason = type(error).__name__
        raise _Cut(f"the connection failed at byte {_size(partial)}, {reason}") from error
    except (requests.RequestException, ValueError) as error:  # the second of what is malformed
        raise _Refused(str(error)) from error


def _answer(url: str, headers: dict[str, str]) -> requests.Response:
    """The head of an answer. The time limits of `requests` start again with each byte."""
    answers: Queue[requests.Response | Exception] = Queue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS))
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=SLOWEST)
    except Empty:
        raise _Cut(f"no answer within {SLOWEST:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives; the connection is cut where CHUNK bytes take longer than SLOWEST."""
    late, received, due = threading.Event(), 0, 0

    def cut() -> None:
        late.set()
        with suppress(OSError), socket.socket(fileno=os.dup(response.raw.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)

    try:
        with ExitStack() as timers:
            for piece in chain([b""], response.raw.stream(CHUNK, decode_content=False)):
                received += len(piece)
                if received >= due:
                    timers.close()
                    timer = threading.Timer(SLOWEST, cut)
                    timer.daemon, due = True, received + CHUNK
                    timers.callback(timer.cancel)
                    timer.start()
                yield piece
    finally:
        if late.is_set():
            raise _Slow(f"it gives less than {CHUNK} bytes in {SLOWEST:g} seconds")


def _refuse_changed(now: _Origin, source: Source, partial: Path) -> None:
    """Some servers ignore If-Range and give the rest of another file."""
    before = _recall(_Origin, partial)
    same = before and (  # as far as the answer says
        before.validator == (now.validator or before.validator)
        and (None in (before.total, now.total) or before.total == now.total)
    )
    if not source.pinned and not same:
        _discard(partial)
        raise _Cut("the file there changed since its beginning was fetched")


def _settle(url: str, response: requests.Response, source: Source, partial: Path) -> None:
    """Nothing lies beyond `partial`: it is whole, to be verified, or no part of this file."""
    total = response.headers.get("Content-Range", "").removeprefix("bytes */")
    if total != str(_size(partial)) and not (source.pinned and total in ("", "*")):
        _discard(partial)
        raise _Cut("what was kept of it does not fit the file there")
    _refuse_changed(_Origin.of(url, response, _size(partial)), source, partial)


def _extent(response: requests.Response, source: Source, kept: int) -> tuple[int, int | None]:
    """Where the body starts in the file, and the length of the file if the server states it."""
    status, headers = response.status_code, response.headers
    if status == 429 or status >= 500:
        raise _Cut(f"HTTP status {status}")
    if status not in (200, 206):
        raise _Refused(f"HTTP status {status}")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise _Refused("it gives an HTML page instead of the file")
    start, total = 0, headers.get("Content-Length", "")
    if status == 206:
        span = headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", span)
        if match is None:
            raise _Refused(f"it answers with a malformed Content-Range {span[:80]!r}")
        start, total = int(match[1]), match[2]
    length = int(total) if re.fullmatch("[0-9]{1,18}", total) else None
    if start not in (0, kept):
        raise _Refused(f"asked for what follows byte {kept}, it gives what follows byte {start}")
    if length is None and not source.pinned and not response.raw.chunked:
        raise _Refused("no length is stated and no digest is known: a part could pass for the file")
    return start, length


def _append(
    response: requests.Response, partial: Path, start: int, origin: _Origin, limit: int, bar: tqdm
) -> None:
    """Write the body from byte `start` on; what was there is another file's if `start` is 0."""
    size, total = start, origin.total
    too_large = f"it is larger than the limit of {limit} bytes"
    if total is not None and total > limit:
        raise _Refused(too_large)
    bar.reset(total)
    bar.n = bar.initial = start
    try:
        with partial.open("ab" if start else "wb") as file:
            if not start:  # only now that `partial` is empty: it never has another file's origin
                write_json(_note(partial), asdict(origin))
            for chunk in _pieces(response):
                size += len(chunk)
                if size > limit:
                    raise _Refused(too_large)
                file.write(chunk)
                bar.update(len(chunk))
    except OSError as error:  # such as a full disk
        raise WorkError(
            f"cannot write {partial}: {error.strerror}; what was fetched is kept there "
            "and the same command continues"
        ) from error
    if total is not None and size != total:
        raise _Cut(f"the connection ended at byte {size} of {total}")

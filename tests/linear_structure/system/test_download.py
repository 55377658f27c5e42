"""Whatever a server does, `fetch` gives the published bytes, or one sentence and no file."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from linear_structure.system import download
from linear_structure.system.download import CHUNK, Source, cache_dir, fetch
from linear_structure.system.errors import UsageError, WorkError

CONTENT = np.random.default_rng(0).bytes(5 * CHUNK + 321)
OTHER = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
NEXT = CONTENT[::-1]  # what a server has there later
DIGEST = hashlib.sha256(CONTENT).hexdigest()

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the next behaviour of the server's plan, honestly when there is none left."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        self.server.conditions.append(self.headers["If-Range"])
        self.close_connection = True
        plan = self.server.plan
        (plan.pop(0) if plan else honest())(self)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in (self.server.validators | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def start(self) -> int:
        """First byte that is asked for."""
        wanted = self.headers["Range"]
        return int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0

    def log_message(self, *_: object) -> None:
        pass


def honest(content: bytes = CONTENT, sends: int | None = None, pause: float = 0) -> Behaviour:
    """Answer Range rightly; `sends` bytes only before the connection is cut."""

    def answer(handler: Handler) -> None:
        start = handler.start()
        if start >= len(content):
            handler.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return
        body = content[start:]
        span = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        handler.head(206 if start else 200, Content_Length=len(body), **(span if start else {}))
        for first in range(0, len(body[:sends]), CHUNK):
            handler.wfile.write(body[:sends][first : first + CHUNK])
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def ignoring_range(content: bytes = CONTENT, sends: int | None = None) -> Behaviour:
    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(content))
        handler.wfile.write(content[:sends])

    return answer


def chunked(content: bytes = CONTENT, sends: int | None = None) -> Behaviour:
    """State no length; the last chunk says whether all was sent."""

    def answer(handler: Handler) -> None:
        handler.head(200, Transfer_Encoding="chunked")
        for first in range(0, len(content[:sends]), 10_000):
            piece = content[:sends][first : first + 10_000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if sends is None:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def unstated(content: bytes = CONTENT) -> Behaviour:
    """State no length; the end of the connection is the end of the file."""

    def answer(handler: Handler) -> None:
        handler.head(200)
        handler.wfile.write(content)

    return answer


def status(code: int) -> Behaviour:
    return lambda handler: handler.head(code, Content_Length=0)


def page(**headers: object) -> Behaviour:
    body = b"<!DOCTYPE html><html>please log in</html>"

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(body), **headers)
        handler.wfile.write(body)

    return answer


def in_pieces(handler: Handler) -> None:
    """Give at most one chunk of what is asked for, as some caches do."""
    start, total = handler.start(), len(CONTENT)
    body = CONTENT[start:][:CHUNK]
    span = f"bytes {start}-{start + len(body) - 1}/{total}"
    handler.head(206, Content_Range=span, Content_Length=len(body))
    handler.wfile.write(body)


def compressing(handler: Handler) -> None:
    """Compress for a client that accepts it."""
    encoding = "gzip" if "gzip" in handler.headers["Accept-Encoding"] else "identity"
    body = gzip.compress(CONTENT) if encoding == "gzip" else CONTENT
    handler.head(200, Content_Length=len(body), Content_Encoding=encoding)
    handler.wfile.write(body)


def wrong_range(handler: Handler) -> None:
    handler.head(206, Content_Range=f"bytes 7-9/{len(CONTENT)}", Content_Length=3)
    handler.wfile.write(b"abc")


def silence(handler: Handler) -> None:
    time.sleep(0.6)


def raw(answer: bytes) -> Behaviour:
    return lambda handler: handler.wfile.write(answer)


def dripping(head: bytes, drop: bytes = b"x") -> Behaviour:
    """A byte or so now and then, without end."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + head)
        for _ in range(1000):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.02)

    return answer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[Behaviour] = []
        self.ranges: list[str | None] = []
        self.conditions: list[str | None] = []
        self.validators = {"ETag": '"first"'}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    def source(self, **changes: object) -> Source:
        return replace(Source((self.url,), "file.bin", DIGEST, 10 * len(CONTENT)), **changes)

    def handle_error(self, *_: object) -> None:
        """A client that goes away is expected here."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("LINEAR_STRUCTURE_OFFLINE", raising=False)
    monkeypatch.delenv("LINEAR_STRUCTURE_SOURCES", raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def part(folder: Path, content: bytes, **origin: object) -> Path:
    """What an earlier, interrupted run left, and perhaps what it knew of the file."""
    folder.mkdir(exist_ok=True)
    path = folder / "file.bin.part"
    path.write_bytes(content)
    if origin:
        known = {"url": None, "validator": '"first"', "total": len(CONTENT)} | origin
        (folder / "file.bin.part.json").write_text(json.dumps(known))
    return path


def failure(source: Source) -> str:
    with pytest.raises(WorkError) as caught:
        fetch(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_fetched_once(server: Server, folder: Path) -> None:
    path = fetch(server.source())
    assert path == folder / "file.bin"
    assert fetch(server.source()).read_bytes() == CONTENT
    assert server.ranges == [None]
    assert not (folder / "file.bin.part").exists()


def test_a_folder_takes_the_place_of_the_cache(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    nested = server.source(name="set/raw/file.bin")
    assert fetch(nested, tmp_path / "mine") == tmp_path / "mine/set/raw/file.bin"
    assert not folder.exists()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", "~/here")
    assert cache_dir() == Path.home() / "here"
    monkeypatch.delenv("LINEAR_STRUCTURE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    assert cache_dir() == Path("elsewhere/linear_structure")


@pytest.mark.parametrize("cut", [honest, chunked], ids=["stated length", "chunked"])
def test_a_cut_connection_is_continued(server: Server, folder: Path, cut: Callable) -> None:
    server.plan = [cut(sends=2 * CHUNK + 5)]
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT
    first, second = server.ranges
    assert first is None and int(second.removeprefix("bytes=").removesuffix("-")) >= CHUNK


def test_an_interrupted_run_is_continued(server: Server, folder: Path) -> None:
    part(folder, CONTENT[:CHUNK])
    assert fetch(server.source()).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={CHUNK}-"]


def test_a_server_that_ignores_range_starts_over(server: Server, folder: Path) -> None:
    server.plan = [honest(sends=3 * CHUNK), ignoring_range()]
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT


def test_a_server_that_gives_the_rest_in_pieces(server: Server, folder: Path) -> None:
    part(folder, CONTENT[:CHUNK], url=server.url)
    server.plan = [in_pieces] * 5
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT
    assert len(server.ranges) == 5


def changed(conditional: bool = True) -> Behaviour:
    """A server that has another file of the same length; it may not know If-Range."""

    def answer(handler: Handler) -> None:
        handler.server.validators = {"ETag": '"second"'}
        answer = ignoring_range if conditional else honest
        answer(NEXT)(handler)

    return answer


@pytest.mark.parametrize("conditional", [True, False], ids=["If-Range", "no If-Range"])
@pytest.mark.parametrize("sends", [2 * CHUNK, len(CONTENT) - 1])
def test_two_files_are_never_glued(
    server: Server, folder: Path, conditional: bool, sends: int
) -> None:
    server.plan = [honest(sends=sends), changed(conditional), honest(NEXT)]
    assert fetch(server.source(sha256=None)).read_bytes() == NEXT
    assert server.conditions[:2] == [None, '"first"']


def test_a_file_that_shrank_to_what_was_kept_is_not_taken_for_the_whole(
    server: Server, folder: Path
) -> None:
    kept = part(folder, NEXT[:CHUNK], url=server.url)
    server.plan = [honest(CONTENT[:CHUNK])] * 2
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT[:CHUNK]
    assert not kept.exists()


@pytest.mark.parametrize(
    "validators, condition",
    [
        ({"ETag": '"a"', "Last-Modified": "Thu, 01 Jan 2015 00:00:00 GMT"}, '"a"'),
        ({"ETag": 'W/"a"', "Last-Modified": "Thu, 01 Jan 2015 00:00:00 GMT"}, "Thu, 01 Jan 2015"),
        ({"ETag": 'W/"a"'}, None),
        ({}, None),
    ],
)
def test_without_a_validator_or_digest_a_download_starts_over(
    server: Server, folder: Path, validators: dict[str, str], condition: str | None
) -> None:
    server.validators = validators
    server.plan = [honest(sends=2 * CHUNK)]
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT
    assert (server.ranges[1] is None) == (condition is None)
    assert (server.conditions[1] or "").startswith(condition or "")


@pytest.mark.parametrize(
    "origin", [{}, {"url": "http://elsewhere/"}, {"validator": None}, {"more": 1}]
)
def test_an_unknown_beginning_is_not_continued_without_a_digest(
    server: Server, folder: Path, origin: dict[str, object]
) -> None:
    part(folder, NEXT[:CHUNK], **({"url": server.url} | origin if origin else {}))
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_server_that_likes_to_compress(server: Server, folder: Path) -> None:
    server.plan = [compressing]
    assert fetch(server.source()).read_bytes() == CONTENT


@pytest.mark.parametrize("digest", [DIGEST, None], ids=["pinned", "unpinned"])
def test_a_part_that_is_already_whole_is_taken(
    server: Server, folder: Path, digest: str | None
) -> None:
    part(folder, CONTENT, url=server.url)
    assert fetch(server.source(sha256=digest)).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    assert not list(folder.glob("*.part*"))


@pytest.mark.parametrize("old", [OTHER, OTHER[:CHUNK], b"x" * CHUNK, CONTENT + b"more"])
def test_a_part_of_something_else_is_discarded(server: Server, folder: Path, old: bytes) -> None:
    part(folder, old)
    assert fetch(server.source()).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_discarded_without_a_digest_too(
    server: Server, folder: Path
) -> None:
    part(folder, CONTENT + b"more", url=server.url)
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_another_file_is_refused_and_not_kept(server: Server, folder: Path) -> None:
    server.plan = [honest(OTHER)]
    message = failure(server.source())
    assert server.url in message and DIGEST in message
    assert not list(folder.glob("file.bin*[!k]"))  # the lock may stay


@pytest.mark.parametrize("bad", [honest(OTHER), page(), status(404), wrong_range, unstated(OTHER)])
def test_the_next_mirror_is_asked(server: Server, folder: Path, bad: Behaviour) -> None:
    part(folder, CONTENT[:CHUNK])
    server.plan = [bad] * (2 if bad is not wrong_range else 1)
    assert fetch(server.source(urls=(server.url,) * 3)).read_bytes() == CONTENT


def test_the_next_mirror_continues_what_the_first_began(server: Server, folder: Path) -> None:
    server.plan = [honest(sends=2 * CHUNK), *[status(503)] * download.ATTEMPTS]
    assert fetch(server.source(urls=(server.url, server.url))).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={2 * CHUNK}-"


def test_without_a_digest_the_next_mirror_begins_anew(server: Server, folder: Path) -> None:
    server.plan = [honest(sends=2 * CHUNK), *[status(503)] * download.ATTEMPTS]
    urls = (server.url, f"{server.url}?mirror")
    assert fetch(server.source(urls=urls, sha256=None)).read_bytes() == CONTENT
    assert server.ranges[-2:] == [f"bytes={2 * CHUNK}-", None]


def test_what_one_mirror_gave_outlives_another_that_has_nothing(
    server: Server, folder: Path
) -> None:
    kept = part(folder, CONTENT[:CHUNK], url=server.url)
    server.plan = [status(404), status(404)]
    failure(server.source(urls=(f"{server.url}?mirror", server.url), sha256=None))
    assert kept.read_bytes() == CONTENT[:CHUNK]
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={CHUNK}-"


def test_a_missing_file_is_not_asked_for_again_but_a_busy_server_is(
    server: Server, folder: Path
) -> None:
    server.plan = [status(404), status(503), status(429)]
    assert fetch(server.source(urls=(server.url, server.url))).read_bytes() == CONTENT
    assert len(server.ranges) == 4


def test_a_page_instead_of_the_file_leaves_the_part_alone(server: Server, folder: Path) -> None:
    kept = part(folder, CONTENT[:CHUNK])
    server.plan = [page(Content_Type="text/html; charset=utf-8")]
    assert "HTML" in failure(server.source())
    assert kept.read_bytes() == CONTENT[:CHUNK]


def test_an_undeclared_page_is_recognised(server: Server, folder: Path) -> None:
    server.plan = [page()]
    assert "HTML" in failure(server.source(sha256=None))


def test_a_stated_length_beyond_the_limit_is_refused_before_a_byte(
    server: Server, folder: Path
) -> None:
    assert "larger than the limit" in failure(server.source(size_limit=len(CONTENT) - 1))
    assert not (folder / "file.bin.part").exists()


def test_an_unstated_length_beyond_the_limit_is_stopped(server: Server, folder: Path) -> None:
    server.plan = [chunked()]
    assert "larger than the limit" in failure(server.source(size_limit=2 * CHUNK))
    assert (folder / "file.bin.part").stat().st_size <= 2 * CHUNK


def test_without_length_and_digest_nothing_is_taken(server: Server, folder: Path) -> None:
    server.plan = [unstated()]
    assert "no length" in failure(server.source(sha256=None))
    server.plan = [unstated()]
    assert fetch(server.source()).read_bytes() == CONTENT


def test_a_server_that_always_lies_about_the_length(server: Server, folder: Path) -> None:
    server.plan = [honest(sends=CHUNK), *[honest(sends=0)] * download.ATTEMPTS]
    message = failure(server.source())
    assert f"{CHUNK} bytes are kept" in message
    assert fetch(server.source()).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={CHUNK}-"


def test_a_range_that_was_not_asked_for_is_refused(server: Server, folder: Path) -> None:
    kept = part(folder, CONTENT[:CHUNK])
    server.plan = [wrong_range]
    assert "follows byte 7" in failure(server.source())
    assert kept.read_bytes() == CONTENT[:CHUNK]


def test_a_silent_server_is_given_up(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUTS", (0.1, 0.1))
    server.plan = [silence] * download.ATTEMPTS
    assert "Timeout" in failure(server.source())


def test_all_mirrors_are_named_when_none_answers(server: Server, folder: Path) -> None:
    urls = ("http://127.0.0.1:9/a", "file:///b", "nonsense")
    message = failure(server.source(urls=urls))
    assert all(url in message for url in urls)


FULL = Path(os.devnull).with_name("full")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "file.bin.part").symlink_to(FULL)
    assert "No space left" in failure(server.source())


def test_the_first_digest_seen_holds(server: Server, folder: Path) -> None:
    path = fetch(server.source(sha256=None))
    path.unlink()
    server.plan = [honest(OTHER)]
    assert DIGEST in failure(server.source(sha256=None))
    assert not path.exists()
    assert fetch(server.source(sha256=None)).read_bytes() == CONTENT


@pytest.mark.parametrize("digest", [DIGEST, None], ids=["pinned", "unpinned"])
def test_a_file_that_changed_is_refused_but_not_removed(
    server: Server, folder: Path, digest: str | None
) -> None:
    path = fetch(server.source(sha256=digest))
    path.write_bytes(OTHER)
    os.utime(path, ns=(0, 0))
    said = failure(server.source(sha256=digest))
    assert "damaged or another file" in said
    assert (f"or remove {path.name}.json beside it" in said) == (digest is None)
    assert path.read_bytes() == OTHER


def test_a_file_of_equal_size_and_times_is_not_taken_for_the_one_before(
    server: Server, folder: Path
) -> None:
    """As `cp -p` and `touch -r` leave it."""
    path = fetch(server.source())
    before = path.stat()
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "damaged or another file" in failure(server.source())


def test_a_file_that_did_not_change_is_hashed_once(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(server.source())
    hashed: list[Path] = []
    original = download._Record.of
    monkeypatch.setattr(download._Record, "of", lambda p: hashed.append(p) or original(p))
    fetch(server.source())
    assert hashed == []
    os.utime(path)
    fetch(server.source())
    fetch(server.source())
    assert hashed == [path]


def test_a_later_pin_is_compared_too(server: Server, folder: Path) -> None:
    fetch(server.source(sha256=None))
    assert "MD5" in failure(server.source(sha256=None, md5="0" * 32))
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert fetch(server.source(md5=md5)).read_bytes() == CONTENT


def test_a_damaged_record_is_made_again(server: Server, folder: Path) -> None:
    path = fetch(server.source())
    for text in ("", "[]", '{"sha256": 1}', "{", "[" * 100_000):
        (folder / "file.bin.json").write_text(text)
        assert fetch(server.source()) == path


def test_offline_names_the_url_and_the_place(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEAR_STRUCTURE_OFFLINE", "1")
    message = failure(server.source())
    assert server.url in message and str(folder / "file.bin") in message
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    assert fetch(server.source()).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_file_of_sources_puts_other_urls_and_digests_in_place(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "sources.json"
    monkeypatch.setenv("LINEAR_STRUCTURE_SOURCES", str(elsewhere))
    elsewhere.write_text(json.dumps({"file.bin": {"urls": [server.url]}}))
    published = server.source(urls=("http://127.0.0.1:9/",), sha256="0" * 64, name="a/file.bin")
    assert fetch(published).read_bytes() == CONTENT
    odd = ({}, {"urls": 3}, {"urls": "http://a"}, {"urls": [3]}, {"urls": [], "size_limit": "9"})
    odd = (*odd, {"urls": [], "sha256": 5}, {"urls": [], "name": "b"})
    nested = "[" * 100_000
    for text in ("{", "[]", nested, *(json.dumps({"file.bin": entry}) for entry in odd)):
        elsewhere.write_text(text)
        with pytest.raises(UsageError, match="LINEAR_STRUCTURE_SOURCES"):
            fetch(published)


def test_a_file_in_a_folder_that_cannot_be_written_is_used(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    folder.chmod(0o555)
    try:
        assert fetch(server.source()).read_bytes() == CONTENT
    finally:
        folder.chmod(0o755)


def test_a_url_has_one_place_in_the_cache(tmp_path: Path) -> None:
    first = download.given("https://a.org/net work.pkl?x=1", DIGEST)
    assert isinstance(first, Source)
    assert (first.urls, first.sha256, first.size_limit) == (
        ("https://a.org/net work.pkl?x=1",),
        DIGEST,
        download.SIZE_LIMIT,
    )
    assert Path(first.name).name == "net_work.pkl"
    others = ("https://a.org/..", "https://a.org", "https://a.org/net work.pkl?x=2", "http://b/a")
    names = [download.given(url).name for url in (*others, others[0] + "x" * 300)]
    assert len({first.name, *names}) == 6
    for name in names:
        place = tmp_path / name
        assert ".." not in place.parts and len(place.name) <= 100
        assert place.parent.parent == tmp_path / "given"


def test_a_path_must_have_the_digest_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    assert download.given(str(path), DIGEST) == path
    path.write_bytes(CONTENT)
    assert download.given(str(path), DIGEST.upper()) == path
    path.write_bytes(OTHER)
    with pytest.raises(UsageError, match=f"not the {DIGEST}"):
        download.given(str(path), DIGEST)
    assert download.given(str(path)) == path


misbehaviours = st.one_of(
    st.integers(0, len(CONTENT)).map(lambda n: honest(sends=n)),
    st.integers(0, len(CONTENT)).map(lambda n: ignoring_range(sends=n)),
    st.integers(0, len(CONTENT)).map(lambda n: chunked(sends=n)),
    st.sampled_from([status(503), ignoring_range(), chunked()]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=st.lists(misbehaviours, max_size=download.ATTEMPTS - 1), pinned=st.booleans())
def test_no_sequence_of_cuts_changes_the_file(
    server: Server, folder: Path, plan: list[Behaviour], pinned: bool
) -> None:
    for path in folder.glob("*"):
        path.unlink()
    server.plan = list(plan)
    assert fetch(server.source(sha256=DIGEST if pinned else None)).read_bytes() == CONTENT


@pytest.fixture
def other(server: Server, folder: Path) -> Iterator[subprocess.Popen]:
    """Another process that has begun to fetch the same file from a slow server."""
    server.plan = [honest(pause=0.3)]
    fetch = f"from linear_structure.system.download import *\nfetch({server.source()!r})"
    code = f"{fetch}\nprint('whole')"
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    while not (folder / "file.bin.part").exists():
        assert process.poll() is None
        time.sleep(0.01)
    with process:
        yield process
        process.kill()


def test_of_two_processes_one_downloads(
    server: Server, other: subprocess.Popen, capsys: pytest.CaptureFixture
) -> None:
    assert fetch(server.source()).read_bytes() == CONTENT
    assert other.stdout.read() == b"whole\n"
    assert server.ranges == [None]
    assert "waiting for another process" in capsys.readouterr().err


def test_a_killed_process_is_continued(
    server: Server, folder: Path, other: subprocess.Popen
) -> None:
    while not (size := (folder / "file.bin.part").stat().st_size):
        time.sleep(0.01)
    other.kill()
    other.wait()
    assert not (folder / "file.bin").exists()
    assert fetch(server.source()).read_bytes() == CONTENT
    first, second = server.ranges
    assert first is None and int(second.removeprefix("bytes=").removesuffix("-")) >= size


@pytest.mark.parametrize(
    "answer",
    [
        b"200 OK\r\nContent-Length: \xb2\xb3\r\n\r\nhello",  # superscripts are digits to Python
        b"200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\nhello",
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"206 OK\r\nContent-Range: bytes 0-4/" + b"9" * 5000 + b"\r\n\r\nhello",
        b"302 Found\r\nLocation: http://127.0.0.1/\xe9\xff\r\nContent-Length: 0\r\n\r\n",
        b"302 Found\r\nLocation: http://[::1/x\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("digest", [DIGEST, None], ids=["pinned", "unpinned"])
def test_a_malformed_answer_is_one_sentence(
    server: Server, folder: Path, answer: bytes, digest: str | None
) -> None:
    server.plan = [raw(b"HTTP/1.1 " + answer)] * 20
    assert "cannot fetch file.bin" in failure(server.source(sha256=digest))
    assert not (folder / "file.bin").exists()


@pytest.mark.parametrize("url", ["http://[::1/x", "http://me:secret@[::1/x"])
def test_what_is_no_url_is_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match=r"^http://\[::1/x is no URL"):
        download.given(url)


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"Content-Length: 100000\r\n\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"\r\n", b"x"),
        (b"X-Long: ", b"x"),
    ],
    ids=["body", "chunks", "no length", "head"],
)
def test_a_server_that_drips_is_left_in_the_end(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, drop: bytes
) -> None:
    """Every byte starts the time limits of a socket again."""
    monkeypatch.setattr(download, "SLOWEST", 0.2)
    server.plan = [dripping(head, drop)] * 20
    said = failure(server.source())
    assert "no answer within 0.2 s" in said or f"less than {CHUNK} bytes in 0.2 seconds" in said
    assert 16 <= len(server.plan) < 20


def test_passwords_in_urls_are_not_said_or_kept(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url.replace("//", "//me:secret@")
    server.plan = [honest(sends=CHUNK), *[status(503)] * 5]
    assert f"({server.url}: HTTP status 503)" in failure(server.source(urls=(url,), sha256=None))
    assert json.loads((folder / "file.bin.part.json").read_text())["url"] == server.url
    assert fetch(server.source(urls=(url,), sha256=None)).read_bytes() == CONTENT
    assert server.ranges[-1] is not None  # it was continued
    monkeypatch.setenv("LINEAR_STRUCTURE_OFFLINE", "1")
    assert "secret" not in failure(server.source(urls=(url,), name="other"))
    assert download.public("see https://a:b@c@host/x@y and http://host/") == (
        "see https://host/x@y and http://host/"
    )

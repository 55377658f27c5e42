"""Files and folders that appear whole or not at all, and fingerprints."""

import errno
import hashlib
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import builders
import pytest

from linear_structure.data import datasets, preparation
from linear_structure.system import arrays, files
from linear_structure.system.errors import UsageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with files.replacing(path) as beside:
        beside.write_text("whole")
        assert not path.exists()
        assert beside.suffix == ".txt"
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(stop), files.replacing(path) as beside:
        beside.write_text("half")
        raise stop
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.txt").write_text("old")
    for name, target in (("link.txt", "there/file.txt"), ("new.txt", "there/other.txt")):
        (tmp_path / name).symlink_to(target)
        files.write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_text() == "new"
    assert names(tmp_path) == ["link.txt", "new.txt", "there"]


def test_what_is_written_to_standard_output_is_printed_in_its_place(tmp_path, capfd):
    """Also where it is a file, as here: one that took its place would hide what was printed.

    The link is as /dev/stdout, which a fault would replace where root runs this.
    """
    (tmp_path / "stdout").symlink_to(Path(os.sep, "proc", "self", "fd", "1"))
    os.write(1, b"before\n")
    files.write_json(tmp_path / "stdout", [1])
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "before\n[\n 1\n]\nafter\n"


def test_pipes_and_devices_are_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        files.write_text(tmp_path / "pipe", "text")
        assert read.result(timeout=10) == "text"
    assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["pipe"]
    near, far = os.openpty()  # a device in whose folder nobody can make a file
    files.write_text(Path(os.ttyname(far)), "text")
    assert os.read(near, 100) == b"text"
    os.close(near)
    os.close(far)


def test_folders_and_sockets_are_no_files_to_write(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder is a folder: expected the name of a file"):
        files.write_text(tmp_path / "folder", "text")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(UsageError, match="socket is a disk or a socket"):
            files.write_text(tmp_path / "socket", "text")
    assert names(tmp_path) == ["folder", "socket"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_files_cannot_be_locked_work_goes_on_with_a_sentence(
    tmp_path, monkeypatch, capsys, number
):
    def refuse(descriptor, operation):
        raise OSError(number, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.alone(tmp_path / "x.lock", "works"):
        said = capsys.readouterr().err
    assert said.startswith(f"files in {tmp_path} cannot be locked: work goes on")
    assert said.count("\n") == 1


def test_another_fault_of_a_lock_is_not_taken_for_a_lack_of_locks(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match="Input/output"), files.alone(tmp_path / "x.lock", "works"):
        pass


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(sorted(tmp_path.rglob("*"))))
    files.write_text(tmp_path / "a", "text")
    with files.replacing_folder(tmp_path / "b") as beside:
        (beside / "c").write_text("text")
    assert len(done) == 2
    assert not any({tmp_path / "a", tmp_path / "b"} <= set(seen) for seen in done)
    assert (tmp_path / "a") not in done[0] and (tmp_path / "b") not in done[1]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with files.replacing_folder(path) as beside:
            (beside / content).write_text(content)
        assert names(path) == [content]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path, stop):
    path = tmp_path / "folder"
    with files.replacing_folder(path) as beside:
        (beside / "old").write_text("old")
    with pytest.raises(stop), files.replacing_folder(path) as beside:
        (beside / "new").write_text("half")
        raise stop
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_what_a_killed_process_left_beside_a_folder_is_not_taken_over(tmp_path):
    path = tmp_path / "folder"
    for leftover in (".folder.part", ".folder.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "stale").touch()
    with files.replacing_folder(path) as beside:
        (beside / "new").touch()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path):
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old" / "good").touch()
    with pytest.raises(ValueError), files.replacing_folder(tmp_path / "folder"):
        raise ValueError
    assert names(tmp_path / "folder") == ["good"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_takes_no_file_is_found_before_the_work(tmp_path):
    files.check_writable(tmp_path / "not" / "yet")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for wanted in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="file is a file: expected a folder"):
            files.check_writable(wanted)


@pytest.fixture
def impatient():
    """A test that waits fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_neither_file_nor_folder_is_not_waited_for(tmp_path, monkeypatch, kind):
    """In any place where a file, a dataset or a record is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(builders.deep_png(0, 1))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("odd")
        if kind != "socket":
            (tmp_path / "odd").unlink()
            os.mkfifo("odd") if kind == "pipe" else Path("odd").symlink_to(Path(os.sep, "dev/null"))
        for end in ("zip", "npy", "npz", "json", "pt", "png"):
            Path(f"o.{end}").symlink_to("odd")
        Path("train-images-idx3-ubyte").symlink_to("odd")
        for read, name in (
            *((datasets.load, f"o.{end}") for end in ("zip", "npy", "npz", "png")),
            (datasets.load, "train-images-idx3-ubyte"),
            (lambda path: preparation.Material.at(str(path), tmp_path / "new.zip"), "o.zip"),
            (files.read_json, "o.json"),
            (files.read_sealed, "o.json"),
            (arrays.read_torch, "o.pt"),
            (arrays.names_in, "o.npz"),
            (arrays.read_npz, "o.npz"),
            (arrays.map_npy, "o.npy"),
        ):
            with pytest.raises(UsageError, match=f"{name} is a pipe, a socket or a device: exp"):
                read(Path(name))
        with pytest.raises(UsageError, match=r"new file|a disk or a socket"):
            preparation.check_target("pics", Path("o.zip"))


def test_a_folder_is_named_that_takes_no_file(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/tmp1234")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        files.check_writable(tmp_path / "new")
    assert caught.value.filename == str(tmp_path)


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    """By another spelling, by links of both kinds, and within a folder of images, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for name in ("a.npz", "other.npz", "pics/1.png", "pics/own.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.npz").symlink_to("a.npz")
    (tmp_path / "hard.npz").hardlink_to("a.npz")
    (tmp_path / "there").symlink_to("pics")
    read = ("a.npz", None, "there", "https://host/" + "long" * 99)
    for name in ("a.npz", "pics/../a.npz", "link.npz", "hard.npz", "pics/1.png", "there/1.png"):
        with pytest.raises(
            UsageError, match=r"(npz|png) is what is read, or a part of it: name an"
        ):
            files.check_output(Path(name), *read)
    for name in ("other.npz", "pics/own.json", "pics/new", "new/a.npz"):
        files.check_output(Path(name), *read)
    for name in ("pics", "there/new", tmp_path / "pics"):
        with pytest.raises(UsageError, match="is what is read, or lies within it: name another"):
            files.check_apart(Path(name), *read)
    for name in (".", "new", "pics2"):
        files.check_apart(Path(name), *read)
    assert not (tmp_path / "new").exists()


def test_the_current_folder_can_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with files.replacing_folder(files.Path(".")) as beside:
        (beside / "new").touch()
    assert names(tmp_path / "here") == ["new"]


@pytest.mark.parametrize("writer", [files.replacing, files.replacing_folder])
def test_a_full_disk_names_the_path(tmp_path, writer):
    path = tmp_path / "out"
    with pytest.raises(OSError) as caught, writer(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)


def test_an_error_that_names_its_file_keeps_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, files.replacing(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")


def test_equal_values_are_equal_bytes(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": [1.5, "ü"]})
    files.write_json(tmp_path / "b", {"a": [1.5, "ü"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"a": [1.5, "ü"], "b": 1}


def test_text_is_utf8_in_every_locale(tmp_path):
    files.write_text(tmp_path / "text", "σ → 0\n")
    assert (tmp_path / "text").read_bytes() == "σ → 0\n".encode()


def test_digests_know_values_from_one_another():
    assert files.digest_of({"a": 1, "b": 2}) == files.digest_of({"b": 2, "a": 1})
    digests = {files.digest_of(value) for value in ({}, [], "", None, 0, {"a": 1}, {"a": 2})}
    assert len(digests) == 7


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert files.digest_of_file(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()

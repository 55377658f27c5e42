"""Blocks on disk: made once, and again when damaged or gone; old ones are taken as they are."""

import errno
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from linear_structure.system import store
from linear_structure.system.store import Block, folder_of, kept, read_kept

VALUES = torch.arange(12, dtype=torch.float32).reshape(4, 3)


@pytest.fixture
def block(tmp_path):
    return Block(tmp_path / "sub" / "000000.npy", (4, 3))


def counted():
    calls = []

    def make():
        calls.append(1)
        return VALUES

    return make, calls


def test_a_block_is_made_once(block):
    make, calls = counted()
    assert not block.is_whole and block.read() is None
    for _ in range(2):
        assert torch.equal(block.obtain(make), VALUES)
    assert block.is_whole and len(calls) == 1


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: flipped(content, -2),  # a value that is another
        lambda content: flipped(content, 140),
        lambda content: content.replace(b"(4, 3)", b"(3, 4)"),
        lambda content: content[:10] + b"B" + content[11:],  # numpy reads the header as Python
        None,
    ],
)
def test_a_damaged_or_vanished_block_is_made_again(block, damage):
    make, calls = counted()
    block.obtain(make)
    whole = block.path.read_bytes()
    if damage is None:
        block.path.unlink()
    else:
        block.path.write_bytes(damage(whole))
    assert torch.equal(block.obtain(make), VALUES)
    assert len(calls) == 2 and block.path.read_bytes() == whole


def test_a_block_without_a_checksum_is_taken_once_and_given_one(block):
    block.path.parent.mkdir()
    np.save(block.path, VALUES.numpy())
    make, calls = counted()
    assert torch.equal(block.obtain(make), VALUES)
    block.path.write_bytes(flipped(block.path.read_bytes(), -2))
    block.obtain(make)
    assert len(calls) == 1


def read_only(*_):
    raise OSError(errno.EROFS, "Read-only file system")


def test_nothing_is_made_where_it_cannot_be_kept(block, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: read_only())
    for obtain in (block.obtain, lambda make: kept(tmp_path / "new" / "kept.json", {}, make)):
        with pytest.raises(OSError, match="Read-only") as caught:
            obtain(lambda: pytest.fail("it was made"))
        assert caught.value.filename == str(tmp_path)


def test_a_block_without_a_checksum_is_read_where_nothing_can_be_written(block, monkeypatch):
    block.path.parent.mkdir()
    np.save(block.path, VALUES.numpy())
    monkeypatch.setattr(store, "write_text", read_only)
    assert torch.equal(block.read(), VALUES)
    assert list(block.path.parent.iterdir()) == [block.path]


@pytest.mark.parametrize("values", [VALUES.double(), VALUES[:3]])
def test_a_block_of_another_type_or_shape_is_made_again(block, values):
    block.write(values)
    make, calls = counted()
    assert torch.equal(block.obtain(make), VALUES)
    assert len(calls) == 1


def test_the_block_of_another_process_is_waited_for(block):
    def other():
        time.sleep(0.3)
        block.write(VALUES)

    thread = threading.Thread(target=other)
    thread.start()
    assert torch.equal(block.obtain(pytest.fail, mine=False), VALUES)
    thread.join()


def test_the_vanished_block_of_another_process_that_ended_is_made_in_the_end(block):
    make, calls = counted()
    began = time.monotonic()
    assert torch.equal(block.obtain(make, mine=False, until=began + 0.3), VALUES)
    assert len(calls) == 1 and time.monotonic() - began > 0.3


def test_the_damaged_block_of_another_process_is_made_at_once(block):
    """It is not waited for: the other may have ended. What both make is the same."""
    block.write(VALUES)
    whole = block.path.read_bytes()
    block.path.write_bytes(whole[:-1])
    make, calls = counted()
    assert torch.equal(block.obtain(make, mine=False), VALUES)
    block.write(VALUES)
    assert len(calls) == 1 and block.path.read_bytes() == whole


@pytest.mark.parametrize("name", ["write_text", "write_array"])
def test_a_damaged_block_is_never_taken_while_another_process_makes_it(block, monkeypatch, name):
    block.write(VALUES)
    block.path.write_bytes(flipped(block.path.read_bytes(), -2))
    written, found = getattr(store, name), []

    def beside(*arguments):
        found.append(block.read())
        written(*arguments)
        found.append(block.read())

    monkeypatch.setattr(store, name, beside)
    block.write(VALUES)
    assert all(values is None or torch.equal(values, VALUES) for values in found)
    assert torch.equal(block.read(), VALUES)


class Going(type(Path())):
    """A path whose checksum, of this class alone, is gone once it was seen to exist."""

    def exists(self, **options):
        there = super().exists(**options)
        if there and self.suffix == ".sha256":
            self.unlink()
        return there


def test_a_checksum_that_goes_as_it_is_looked_for_is_no_error(block):
    going = replace(block, path=Going(block.path))
    going.write(VALUES)
    assert torch.equal(going.read(), VALUES)


def test_other_inputs_lie_in_another_folder(tmp_path):
    folders = {folder_of(tmp_path, {"a": a, "b": 2}) for a in (1, 2)}
    assert len(folders) == 2
    assert folder_of(tmp_path, {"b": 2, "a": 1}) in folders


def test_what_is_kept_is_made_again_where_a_value_was_changed(tmp_path):
    path, made = tmp_path / "kept.json", []

    def make():
        made.append(1)
        return {"levels": 21, "share": [0.5, 0.25]}

    first = kept(path, {"n": 1}, make)
    assert kept(path, {"n": 1}, make)["levels"] == first["levels"] and len(made) == 1
    path.write_text(path.read_text().replace("21", "-3"))
    assert kept(path, {"n": 1}, make)["levels"] == 21 and len(made) == 2
    content = json.loads(path.read_text())
    del content["digest"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    kept(path, {"n": 1}, make)
    assert len(made) == 2
    path.write_text(path.read_text().replace("21", "-3"))  # it was given one
    assert kept(path, {"n": 1}, make)["levels"] == 21 and len(made) == 3


def test_what_is_kept_of_other_settings_is_put_aside_and_said(tmp_path, capsys):
    path = tmp_path / "scales.json"
    kept(path, {"n": 1}, lambda: {"levels": 21})
    kept(path, {"n": 2}, lambda: {"levels": 22})
    (aside,) = set(tmp_path.iterdir()) - {path}
    assert f"scales.json is of other settings: it is kept as {aside}" in capsys.readouterr().err
    assert read_kept(aside)["outputs"] == {"levels": 21}
    path.write_text(path.read_text().replace("22", "23"))  # damaged: worth nothing
    assert kept(path, {"n": 2}, lambda: {"levels": 22}) == {"levels": 22}
    assert set(tmp_path.iterdir()) == {path, aside}


def test_what_is_kept_without_a_digest_is_taken_where_nothing_can_be_written(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"inputs": {"n": 1}, "outputs": {"levels": 21}}))
    monkeypatch.setattr(store, "write_json", read_only)
    assert kept(path, {"n": 1}, pytest.fail) == {"levels": 21}
    assert list(tmp_path.iterdir()) == [path] and not capsys.readouterr().err

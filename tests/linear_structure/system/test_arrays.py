"""Arrays and tensors of anybody's files: what would fill the memory is refused beforehand."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from linear_structure.system import arrays
from linear_structure.system.arrays import read_npz, read_torch
from linear_structure.system.errors import UsageError

BLANK = np.zeros(1 << 20, np.uint8)


def npz(path: Path) -> None:
    np.savez_compressed(path, images=BLANK)


def tensors(path: Path) -> None:
    """As torch.save writes them, and compressed."""
    content = io.BytesIO()
    torch.save(torch.from_numpy(BLANK), content)
    deflated = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(content) as stored, deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))


@pytest.mark.parametrize(
    ("write", "read"), [(npz, read_npz), (tensors, read_torch)], ids=["npz", "tensors"]
)
def test_what_unpacks_to_far_more_than_it_is_is_refused_above_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write, read
) -> None:
    path = tmp_path / "blank.npz"
    write(path)
    read(path)
    monkeypatch.setattr(arrays, "UNPACKED", len(BLANK) // 2)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("something is unpacked"))
    with pytest.raises(UsageError, match=r"blank.npz, of .* bytes, .* unpacked it has 1,0"):
        read(path)


def test_what_is_as_large_unpacked_may_be_of_any_size(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(arrays, "UNPACKED", 0)
    np.savez(tmp_path / "plain.npz", images=BLANK)
    assert np.array_equal(read_npz(tmp_path / "plain.npz")["images"], BLANK)

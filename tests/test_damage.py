"""Whatever happens to a file: its values, or one sentence; never values that its checksum denies.

Each format is damaged at seeded places: bits flipped, bytes changed, removed, repeated, inserted,
blanked, and the file cut.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import builders
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

from edm.checkpoints import checkpoint
from edm.evaluation import features, fid
from edm.training.state import State, read_state
from linear_structure import parameters
from linear_structure.data import archives, datasets
from linear_structure.gaussian import Gaussian
from linear_structure.points import PointCloud
from linear_structure.spectral import Spectral
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import digest_of_parts, digest_of_state
from linear_structure.system.store import Block, kept

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
IDX = {
    "images-idx3": b"\0\0\x08\x03" + struct.pack(">3I", 9, 4, 4) + PIXELS.tobytes(),
    "labels-idx1": b"\0\0\x08\x01" + struct.pack(">I", 9) + bytes(range(9)),
}
STORY = parameters.Story("noise", "0" * 64, 9, (1, 4, 4), 0.5)
NETWORK = tiny.config(img_resolution=4, img_channels=1, model_channels=4)


@dataclass(frozen=True)
class Case:
    """A file, what reads it, and how many damaged copies are tried.

    Attributes:
        read: a text or number that tells the values from others.
        sealed: a checksum in or beside the file covers all values.
    """

    path: Path
    read: Callable[[], Any]
    count: int
    sealed: bool = True


def told(dataset: datasets.Dataset) -> str:
    labels = dataset.labels()
    return digest_of_parts([dataset.images(), "" if labels is None else labels])


def pngs() -> dict[str, bytes]:
    content = {}
    for i, image in enumerate(PIXELS[:3]):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        content[f"{i}.png"] = file.getvalue()
    rows = [[name, i] for i, name in enumerate(content)]
    return {**content, "dataset.json": json.dumps({"labels": rows}).encode()}


def snapshot(folder: Path, published: ModuleType) -> Case:
    source = tiny.network(**NETWORK)
    written = published.snapshot(source.config, source.state_dict(), published.Form())
    with (folder / "a.pkl").open("wb") as file:
        published.dump(written, file, published.Form())
    return Case(file := folder / "a.pkl", lambda: checkpoint.load(file).digest, 100, sealed=False)


def trained_by_edm(folder: Path, published: ModuleType) -> Case:
    source, form = tiny.network(**NETWORK), published.Form()
    written = published.snapshot(source.config, source.state_dict(), form)["ema"]
    published.dump_state(written, path := folder / "a.pt", form)
    return Case(path, lambda: checkpoint.load_to_train(path).digest, 100)


def safetensors(folder: Path, _: ModuleType) -> Case:
    checkpoint.save(tiny.network(**NETWORK), path := folder / "a.safetensors", {"seed": 0})
    return Case(path, lambda: checkpoint.load(path).digest, 100)


def npy(folder: Path, _: ModuleType) -> Case:
    np.save(path := folder / "a.npy", PIXELS)
    return Case(path, lambda: told(datasets.load(path)), 200, sealed=False)


def npz(folder: Path, _: ModuleType) -> Case:
    np.savez(path := folder / "a.npz", images=PIXELS, labels=np.arange(9))
    return Case(path, lambda: told(datasets.load(path)), 300)


def deflated(folder: Path, _: ModuleType) -> Case:
    np.savez_compressed(path := folder / "a.npz", images=np.tile(PIXELS, (300, 1, 1)))
    return Case(path, lambda: told(datasets.load(path)), 150)


def statistics(folder: Path, _: ModuleType) -> Case:
    measured = fid.measure([torch.randn(9, 3, generator=torch.Generator().manual_seed(0))], "a")
    fid.write(path := folder / "a.npz", measured)

    def read() -> tuple[Any, ...]:
        found = fid.read(path)
        return found.digest, found.count, found.features

    return Case(path, read, 200)


def zipped(folder: Path, _: ModuleType) -> Case:
    (path := folder / "a.zip").write_bytes(builders.zip_of(**pngs()))
    return Case(path, lambda: told(datasets.load(path)), 300)


def stated(folder: Path, _: ModuleType) -> Case:
    for name, content in pngs().items():
        (folder / name).write_bytes(content)
    return Case(folder / "dataset.json", lambda: told(datasets.load(folder)), 200, sealed=False)


def compressed(folder: Path, _: ModuleType) -> Case:
    path, labels = folder / "images.gz", folder / "labels.gz"
    path.write_bytes(gzip.compress(IDX["images-idx3"]))
    labels.write_bytes(gzip.compress(IDX["labels-idx1"]))
    return Case(path, lambda: digest_of_parts(archives.read_mnist(path, labels)), 200)


def idx(part: str, zipped: bool) -> Callable[[Path, ModuleType], Case]:
    def make(folder: Path, _: ModuleType) -> Case:
        for name, content in IDX.items():
            path = folder / f"train-{name}-ubyte"
            path.write_bytes(gzip.compress(content) if zipped else content)
        path = folder / f"train-{part}-ubyte"
        return Case(path, lambda: told(datasets.load(folder)), 150, sealed=zipped)

    return make


def cifar(folder: Path, _: ModuleType) -> Case:
    rows = np.random.default_rng(0).integers(0, 4, (2, 3072), np.uint8)
    data = pickle.dumps({"data": rows, "labels": [3, 5]}, 2)
    info = tarfile.TarInfo("cifar/one")
    info.size = len(data)
    with tarfile.open(path := folder / "a.tar.gz", "w:gz") as archive:
        archive.addfile(info, io.BytesIO(data))
    return Case(path, lambda: digest_of_parts(archives.read_cifar(path, ("one",), "labels")), 200)


def gaussian() -> Gaussian:
    samples = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    return Gaussian.from_samples(samples)


def spectral() -> Spectral:
    return Spectral.from_samples(torch.from_numpy(PIXELS)[:, None] / 127.5 - 1, 2)


def cloud() -> PointCloud:
    return PointCloud(torch.from_numpy(PIXELS))


def directory(
    name: str, model: Callable[[], parameters.Model] = gaussian
) -> Callable[[Path, ModuleType], Case]:
    def make(folder: Path, _: ModuleType) -> Case:
        parameters.save(folder / "p", model(), STORY)
        known = parameters.read_story(folder / "p").keys()  # a checksum's damaged name is none

        def read() -> tuple[Any, ...]:
            found = parameters.load(folder / "p")
            return found.digest, {name: found.story.get(name) for name in known}

        return Case(folder / "p" / name, read, 80)

    return make


def bare(folder: Path, _: ModuleType) -> Case:
    for name, value in gaussian().tensors().items():
        torch.save(value, folder / f"{name}.pt")
    return Case(folder / "U.pt", lambda: parameters.load(folder).digest, 200)


def weights(folder: Path, _: ModuleType) -> Case:
    values = {"a": torch.arange(9.0), "b": torch.ones(2, 2)}
    torch.save(values, path := folder / "a.pth")
    return Case(path, lambda: digest_of_state({}, features._state_dict(path)), 200)


def training(folder: Path, _: ModuleType) -> Case:
    state = State.start(tiny.network(**NETWORK).requires_grad_(True))
    state.write(path := folder / "training-state.pt", {"seed": 0})

    def read() -> str:
        found = read_state(path, torch.device("cpu"))
        tensors = {k: v for k, v in found["average"].items() if isinstance(v, Tensor)}
        return digest_of_state([found["identity"], found["images_seen"]], tensors)

    return Case(path, read, 150)


def block(name: str) -> Callable[[Path, ModuleType], Case]:
    def make(folder: Path, _: ModuleType) -> Case:
        rows = torch.arange(12.0).view(3, 4)
        stored = Block(folder / "0.npy", (3, 4))
        stored.write(rows)
        return Case(folder / name, lambda: digest_of_parts([stored.obtain(lambda: rows)]), 150)

    return make


def result(folder: Path, _: ModuleType) -> Case:
    outputs = {"distance": 0.1328, "count": 3000}
    kept(path := folder / "a.json", {"seed": 0}, lambda: outputs)
    return Case(path, lambda: kept(path, {"seed": 0}, lambda: outputs), 100)


FORMATS: dict[str, Callable[[Path, ModuleType], Case]] = {
    "pickle": snapshot,
    "training state of EDM": trained_by_edm,
    "pickle of CIFAR": cifar,
    "safetensors": safetensors,
    "npy": npy,
    "npz": npz,
    "deflated npz": deflated,
    "npz of statistics": statistics,
    "zip": zipped,
    "gzip": compressed,
    **{f"IDX: {part}": idx(part, zipped=False) for part in IDX},
    **{f"gzipped IDX: {part}": idx(part, zipped=True) for part in IDX},
    "JSON of labels": stated,
    "JSON of results": result,
    **{f"parameters: {n}": directory(n) for n in ("mu.pt", "U.pt", parameters.STORY)},
    **{f"spectral: {n}": directory(n, spectral) for n in ("low.pt", "rest.pt")},
    "points": directory("points.npy", cloud),
    "bare parameters": bare,
    "state dict": weights,
    "training state": training,
    **{f"block: {name}": block(name) for name in ("0.npy", "0.sha256")},
}


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies with one thing changed each; headers and ends, which steer, as often as the rest."""
    random = np.random.default_rng(seed)
    for i in range(count):
        within = (len(data), min(len(data), 200))[i % 2]
        place = int(random.integers(within))
        if i % 4 == 3:
            place = len(data) - 1 - place
        length = int(random.integers(1, 9))
        old, new = data[place : place + length], random.bytes(length)
        flipped = bytes([data[place] ^ 1 << int(random.integers(8))]) + old[1:]
        changes = (flipped, flipped, flipped, new, b"", old * 2, new + old, bytes(len(old)))
        change = changes[int(random.integers(len(changes)))]
        cut = not i % 10
        yield data[:place] + (b"" if cut else change + data[place + length :])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Reading `.np[yz]`")
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_any_damage_is_the_same_values_or_one_sentence(
    published: ModuleType, tmp_path: Path, name: str
) -> None:
    case = FORMATS[name](tmp_path, published)
    data, before = case.path.read_bytes(), case.read()
    refused = 0
    for seed, copy in enumerate(damaged(data, case.count, seed=len(name))):
        case.path.write_bytes(copy)
        try:
            found = case.read()
        except (UsageError, WorkError) as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found == before or not case.sealed, f"copy {seed} gives other values"
    assert refused or name.startswith(("block", "JSON of results"))

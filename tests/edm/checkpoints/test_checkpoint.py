"""Networks read from published snapshots and from safetensors are the networks written."""

import argparse
import datetime
import errno
import io
import json
import pickle
import re
import runpy
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import builders
import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edm.checkpoints import checkpoint
from edm.checkpoints.checkpoint import WEIGHTS, load, load_module, save
from edm.precondition import Preconditioned
from linear_structure.system.download import Source, given, located
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_file, digest_of_state

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"channel_mult": [1, 2], "attn_resolutions": [4], "augment_dim": 9, "dropout": 0.13}
FORMS = [
    (protocol, container, numpy)
    for protocol in (2, 4)
    for container in (dict, OrderedDict)
    for numpy in ("numpy.core.multiarray", "numpy._core.multiarray")
]
OTHER_FORMS = [(3, dict, "numpy._core.multiarray"), (5, dict, "numpy._core.multiarray")]


def network(**options: Any) -> Preconditioned:
    return tiny.network(None, **OPTIONS | options)


def written(
    published: ModuleType,
    path: Path,
    source: Preconditioned,
    attributes: dict[str, Any] | None = None,
    form: tuple[Any, ...] = (),
    tensors: dict[str, Tensor] | None = None,
) -> Path:
    """`source` in a snapshot, from keywords alone or with `attributes` of the instance."""
    form = published.Form(*form)
    tensors = tensors or source.state_dict()
    snapshot = published.snapshot(source.config, tensors, form, attributes)
    with path.open("wb") as file:
        published.dump(snapshot, file, form)
    return path


def outputs(denoise: Preconditioned) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.eye(10)[[3, 7]] if denoise.label_dim else None
    return denoise(x, torch.tensor([0.5, 20.0]), labels)


def same(a: Preconditioned, b: Preconditioned) -> bool:
    tensors = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return list(a.state_dict()) == list(b.state_dict()) and all(
        torch.equal(x, y) for x, y in tensors
    )


# Published snapshots


@pytest.mark.parametrize("form", FORMS + OTHER_FORMS)
def test_snapshot_of_every_writer_is_the_network(
    published: ModuleType, tmp_path: Path, form: tuple[Any, ...]
) -> None:
    source = network()
    read = load(written(published, tmp_path / "a.pkl", source, form=form))
    assert same(read, source)
    assert read.config == source.config
    assert torch.equal(outputs(read), outputs(source))


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize(
    ("precondition", "attributes"),
    [
        ("EDMPrecond", {"sigma_min": 0.01, "sigma_max": 70.0, "sigma_data": 0.7}),
        ("VPPrecond", {"beta_d": 18.0, "beta_min": 0.2, "M": 500, "epsilon_t": 1e-4}),
        ("VEPrecond", {"sigma_min": 0.03, "sigma_max": 90.0}),
        ("iDDPMPrecond", {"C_1": 0.002, "C_2": 0.009, "M": 300}),
    ],
)
def test_scalars_of_the_instance_overrule_its_keywords(
    published: ModuleType,
    tmp_path: Path,
    precondition: str,
    attributes: dict[str, Any],
    model_type: str,
) -> None:
    kind = {"precondition": precondition, "model_type": model_type, "label_dim": 10}
    source, default = network(**kind, **attributes), network(**kind)
    path = tmp_path / "a.pkl"
    form = published.Form()
    snapshot = published.snapshot(default.config, source.state_dict(), form, attributes)
    with path.open("wb") as file:
        published.dump(snapshot, file, form)
    read = load(path)
    assert read.config == source.config
    assert (read.sigma_min, read.sigma_max) == (source.sigma_min, source.sigma_max)
    assert torch.equal(outputs(read), outputs(source))


@pytest.mark.parametrize("depth", ["only the network", "no dict at all"])
def test_other_parts_of_a_snapshot_are_not_needed(
    published: ModuleType, tmp_path: Path, depth: str
) -> None:
    source, form = network(), published.Form()
    part = published.snapshot(source.config, source.state_dict(), form)["ema"]
    with (tmp_path / "a.pkl").open("wb") as file:
        published.dump(part if depth == "no dict at all" else {"ema": part}, file, form)
    assert same(load(tmp_path / "a.pkl"), source)


def test_buffers_that_are_not_persistent_are_left_out(
    published: ModuleType, tmp_path: Path
) -> None:
    source, form = network(), published.Form(protocol=2)
    snapshot = published.snapshot(source.config, source.state_dict(), form)
    state = snapshot["ema"].meta["state"]
    state["_buffers"]["passing"] = torch.zeros(3)
    state["_non_persistent_buffers_set"].add("passing")
    with (tmp_path / "a.pkl").open("wb") as file:
        published.dump(snapshot, file, form)
    assert same(load(tmp_path / "a.pkl"), source)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_types_become_float32(
    published: ModuleType, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = network().to(dtype)
    read = load(written(published, tmp_path / "a.pkl", source))
    assert {tensor.dtype for tensor in read.state_dict().values()} == {torch.float32}
    assert same(read, source.to(torch.float32))


def test_network_is_ready_to_sample(published: ModuleType, tmp_path: Path) -> None:
    read = load(written(published, tmp_path / "a.pkl", network()))
    assert not any(module.training for module in read.modules())
    assert not any(parameter.requires_grad for parameter in read.parameters())


def test_tensors_are_aligned_views_of_one_copy_of_the_file(
    published: ModuleType, tmp_path: Path
) -> None:
    path = written(published, tmp_path / "a.pkl", network())
    addresses = [tensor.data_ptr() for tensor in load(path).state_dict().values()]
    assert all(address % 64 == 0 for address in addresses)
    assert max(addresses) - min(addresses) < path.stat().st_size


def test_loaded_weights_can_be_written_to(published: ModuleType, tmp_path: Path) -> None:
    path = written(published, tmp_path / "a.pkl", network())
    before, read = path.read_bytes(), load(path)
    for parameter in read.parameters():
        parameter.zero_()
    assert not any(parameter.any() for parameter in read.parameters())
    assert path.read_bytes() == before


# Good networks, however their tensors lie and whatever lies beside them


def flat_views(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    flat = torch.cat([torch.zeros(3), *(tensor.flatten() for tensor in tensors.values())])
    sizes = [tensor.numel() for tensor in tensors.values()]
    parts = flat.split([3, *sizes])[1:]
    return {
        name: part.view(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def with_attribute(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for tensor in tensors.values():
        tensor.learning_rate = 0.1
    return tensors


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "channels last": lambda tensors: {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    },
    "transposed": lambda tensors: {
        name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    },
    "views of one storage": flat_views,
    "every second value": lambda tensors: {
        name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in tensors.items()
    },
    "attributes": with_attribute,
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_read_however_they_lie(
    published: ModuleType, tmp_path: Path, layout: str, protocol: int
) -> None:
    source = network()
    tensors = LAYOUTS[layout]({k: v.clone() for k, v in source.state_dict().items()})
    read = load(written(published, tmp_path / "a.pkl", source, form=(protocol,), tensors=tensors))
    assert read.digest == source.digest
    assert torch.equal(outputs(read), outputs(source))
    states = read.state_dict().values()
    assert all(each.is_contiguous() and each.data_ptr() % 64 == 0 for each in states)


def test_an_attribute_on_a_parameter_is_read_past(published: ModuleType, tmp_path: Path) -> None:
    source, form = network(), published.Form()
    snapshot = published.snapshot(source.config, source.state_dict(), form)
    model = snapshot["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]
    held = model["map_layer0"].meta["state"]["_parameters"]
    held["weight"].tag = {"step": 3}
    with (tmp_path / "a.pkl").open("wb") as file:
        published.dump(snapshot, file, form)
    assert b"_rebuild_parameter_with_state" in (tmp_path / "a.pkl").read_bytes()
    assert same(load(tmp_path / "a.pkl"), source)


def test_tied_parameters_are_read_and_share_nothing(published: ModuleType, tmp_path: Path) -> None:
    source, form = network(), published.Form()
    snapshot = published.snapshot(source.config, source.state_dict(), form)
    model = snapshot["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]
    layer = model["map_layer1"].meta["state"]["_parameters"]
    layer["bias"] = model["map_layer0"].meta["state"]["_parameters"]["bias"]
    with (tmp_path / "a.pkl").open("wb") as file:
        published.dump(snapshot, file, form)
    read = load(tmp_path / "a.pkl")
    assert torch.equal(read.model.map_layer1.bias, source.model.map_layer0.bias)
    read.model.map_layer1.bias.zero_()
    assert torch.equal(read.model.map_layer0.bias, source.model.map_layer0.bias)


NEIGHBOURS: dict[str, Any] = {
    "an array": np.arange(6.0).reshape(2, 3),
    "an array of bytes": np.zeros((2, 2), np.uint8),
    "a path": Path("runs/00000"),
    "a path of Windows": PureWindowsPath("C:/runs"),
    "whole numbers as keys": {0: 0.5, -7: [1], None: 2},
    "a set": {"a", "b"},
    "a frozen set": frozenset({1, 2}),
    "a type": torch.bfloat16,
    "a device": torch.device("cuda", 1),
    "options": argparse.Namespace(steps=18),
    "a time": datetime.datetime(2022, 6, 1, 12),
    "a tensor with an attribute": with_attribute({"a": torch.zeros(2)}),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_plain_data_beside_the_network_is_read_past(
    published: ModuleType, tmp_path: Path, neighbour: str, protocol: int
) -> None:
    source, form = network(), published.Form(protocol)
    snapshot = published.snapshot(source.config, source.state_dict(), form)
    for place in ({"ema": snapshot["ema"], "other": NEIGHBOURS[neighbour]}, snapshot):
        snapshot["dataset_kwargs"]["note"] = NEIGHBOURS[neighbour]
        with (tmp_path / "a.pkl").open("wb") as file:
            published.dump(place, file, form)
        assert same(load(tmp_path / "a.pkl"), source)


def test_buffers_of_any_protocol_that_are_not_persistent_are_left_out(
    published: ModuleType, tmp_path: Path
) -> None:
    source, form = network(), published.Form()
    snapshot = published.snapshot(source.config, source.state_dict(), form)
    state = snapshot["ema"].meta["state"]
    state["_buffers"] |= {"passing": torch.zeros(3), "other": torch.zeros(2)}
    state["_non_persistent_buffers_set"] |= {"passing", "other"}
    with (tmp_path / "a.pkl").open("wb") as file:
        published.dump(snapshot, file, form)
    assert same(load(tmp_path / "a.pkl"), source)


# Our own files


def test_safetensors_give_the_network_back(tmp_path: Path) -> None:
    source = network(label_dim=10, sigma_data=0.7)
    save(source, tmp_path / "a.safetensors", {"source": "here"})
    read = load(tmp_path / "a.safetensors")
    assert same(read, source)
    assert read.config == source.config
    assert not read.training
    assert torch.equal(outputs(read), outputs(source))


def test_safetensors_carry_configuration_and_provenance(tmp_path: Path) -> None:
    source = network()
    save(source, tmp_path / "a.safetensors", {"source": "here", "images": 5})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == source.config
    assert json.loads(metadata["provenance"]) == {"source": "here", "images": 5}


def test_what_a_file_is_is_told_by_content(published: ModuleType, tmp_path: Path) -> None:
    source = network()
    save(source, tmp_path / "a.pkl", {})
    written(published, tmp_path / "a.safetensors", source)
    assert same(load(tmp_path / "a.pkl"), load(tmp_path / "a.safetensors"))


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = tmp_path / "a.safetensors", network()
    save(source, path, {})
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        save(network(sigma_data=0.7), path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_digest_is_that_of_the_network_and_not_of_its_file(
    published: ModuleType, tmp_path: Path
) -> None:
    source = network()
    save(source, tmp_path / "a.safetensors", {"source": "here"})
    paths = [written(published, tmp_path / "a.pkl", source), tmp_path / "a.safetensors"]
    assert {load(path).digest for path in paths} == {source.digest}


def test_digest_sees_every_bit_and_option() -> None:
    digests = {network().digest, network(sigma_data=0.6).digest}
    nudged = network()
    weight = nudged.model.map_layer0.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert len(digests | {nudged.digest}) == 3


@pytest.mark.parametrize("length", range(0, 64, 12))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_digests_are_equal_bits_wherever_a_header_leaves_the_values(
    tmp_path: Path, length: int, dtype: torch.dtype
) -> None:
    """Safetensors are padded to 8 bytes alone: products read at other addresses round otherwise."""
    source = load(WEIGHTS / "digits-denoiser.safetensors")
    tensors = {name: value.to(dtype) for name, value in source.state_dict().items()}
    metadata = {"config": json.dumps(source.config), "provenance": "x" * length}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    read = load(tmp_path / "a.safetensors")
    assert read.digest == source.digest
    assert not any(tensor.data_ptr() % 64 for tensor in read.state_dict().values())
    x = 3 * torch.randn(4, *source.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(x, torch.tensor(3.0)), source(x, torch.tensor(3.0)))


def test_a_changed_bit_of_what_we_wrote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(network(), path, {"seed": 5})
    whole = path.read_bytes()
    for place in (whole.index(b"sigma_data") + 14, whole.index(b"seed") + 9, -3):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"a\.safetensors gives no network: it is damaged"):
            load(path)


# Paths, URLs and digests


def test_digest_is_compared_before_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"anything")
    assert located(given(str(path), digest_of_file(path).upper())) == path
    with pytest.raises(UsageError, match="SHA-256"):
        load(path, "0" * 64)


def test_absent_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(UsageError, match="is not a file") as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_url_is_fetched_with_its_digest(
    published: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sources = network(), []
    path = written(published, tmp_path / "a.pkl", source)
    monkeypatch.setattr(
        "linear_structure.system.download.fetch", lambda source: sources.append(source) or path
    )
    urls = ["https://a.example/x/net.pkl?v=1", "https://b.example/x/net.pkl"]
    assert all(same(load(url, "ab" * 32), source) for url in urls)
    assert [each.urls for each in sources] == [(url,) for url in urls]
    assert {each.sha256 for each in sources} == {"ab" * 32}
    assert len({each.name for each in sources}) == 2
    assert all(each.name.endswith("net.pkl") for each in sources)
    assert isinstance(sources[0], Source)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    published: ModuleType, tmp_path: Path, value: float
) -> None:
    source = network()
    source.model.enc["8x8_conv"].bias[2] = value
    save(source, tmp_path / "a.safetensors", {})
    for path in (written(published, tmp_path / "a.pkl", source), tmp_path / "a.safetensors"):
        with pytest.raises(UsageError, match=r"'model\.enc\.8x8_conv\.bias' holds NaN or inf"):
            load(path)


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(UsageError, match="without 'config'"):
        load(path)
    for config in ("{", "[" * 100_000, "[1]", "9" * 5000):
        save_file({"a": torch.zeros(3)}, path, {"config": config})
        with pytest.raises(UsageError, match="config"):
            load(path)


# What is something else


def torch_zip(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


STATE = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty: copy or download it again"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "gunzip"),
    "bzip2": (b"BZh9" + bytes(60), "bunzip2"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
        "git lfs pull",
    ),
    "a web page": (b"\n<!doctype html>", "web page"),
    "a state dict of torch.save": (torch_zip(STATE), "torch.save: it does not say which network"),
    "an early torch.save": (
        torch_zip(STATE, _use_new_zipfile_serialization=False),
        "early torch.save: it does not say which network",
    ),
    "a pickled state dict": (pickle.dumps(STATE), "a bare state dict of 2 entries"),
    "one below a name": (pickle.dumps({"state_dict": STATE, "epoch": 3}), "a bare state dict of 2"),
    "a GAN": (
        pickle.dumps({"G": None, "D": None, "G_ema": None}),
        "snapshot of a GAN: its 'G_ema'",
    ),
    "a training state of EDM": (
        torch_zip({"net": STATE, "optimizer_state": {}}),
        "network-snapshot-",
    ),
    "a training state of ours": (
        torch_zip({"identity": "{}", "network": STATE, "images_seen": 3}),
        "a training state of this project",
    ),
    "TorchScript": (builders.zip_of(**{"a/data.pkl": b"", "a/constants.pkl": b""}), "TorchScript"),
    "images": (builders.zip_of(**{"00000/img00000000.png": b""}), "zip of other files"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_network_is_named_and_nothing_is_to_be_removed(
    tmp_path: Path, name: str
) -> None:
    data, told = OTHERS[name]
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(UsageError, match=re.escape(told)) as caught:
        load(tmp_path / "a.pkl")
    assert "remove" not in str(caught.value) and "\n" not in str(caught.value)


def test_little_of_a_foreign_pickle_is_unpacked_to_name_it(tmp_path: Path) -> None:
    path, size = tmp_path / "a.pkl", 1 << 26
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"images_seen" + bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="a training state of this project"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < size // 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_a_wrapper_are_told(tmp_path: Path, prefix: str) -> None:
    source = network()
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors", {"config": json.dumps(source.config)})
    with pytest.raises(UsageError, match=f"begin with '{prefix}': save the network within"):
        load(tmp_path / "a.safetensors")


def test_equal_digests_give_equal_bits_wherever_a_header_leaves_the_values(tmp_path: Path) -> None:
    source, found = network(), set()
    for length in range(0, 64, 9):
        save(source, tmp_path / "a.safetensors", {"padding": "x" * length})
        read = load(tmp_path / "a.safetensors")
        states = read.state_dict().values()
        assert {tensor.data_ptr() % 64 for tensor in states} == {0}
        found.add(outputs(read).numpy().tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(
    ("precondition", "option", "values"),
    [
        ("EDMPrecond", "sigma_data", (0.0, float("inf"), 1e-30, 1e30)),
        ("EDMPrecond", "sigma_min", (float("inf"), 3.0)),
        ("VEPrecond", "sigma_max", (0.0, 0.01)),
        ("VPPrecond", "beta_d", (0.0, float("inf"))),
        ("VPPrecond", "beta_min", (float("inf"),)),
        ("iDDPMPrecond", "C_2", (float("inf"),)),
        ("iDDPMPrecond", "C_1", (float("inf"), 2.0)),
    ],
)
def test_options_that_make_no_denoiser_are_refused(
    tmp_path: Path, precondition: str, option: str, values: tuple[float, ...]
) -> None:
    kind = {"precondition": precondition, "model_type": "SongUNet"}
    source = network(**kind)
    limits = {"sigma_max": 2.0} if option == "sigma_min" else {}
    for value in values:
        config = source.config | limits | {option: value}
        save_file(source.state_dict(), tmp_path / "a.safetensors", {"config": json.dumps(config)})
        with pytest.raises(UsageError, match=rf"option '({option}|sigma_min)' is .*: expected"):
            load(tmp_path / "a.safetensors")


class Linear(nn.Linear):
    """A module of another kind, one of whose tensors is an integer."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)
        self.config = {"width": width}
        self.register_buffer("steps", torch.tensor(7))


def linear(config: Mapping[str, Any]) -> Linear:
    if config.keys() != {"width"}:
        raise UsageError(f"its options are {', '.join(config)}: expected width")
    return Linear(**config)


def test_a_module_of_any_kind_is_given_back(tmp_path: Path) -> None:
    source, path = Linear(3), tmp_path / "a.safetensors"
    save(source, path, {}, key="layer")
    read = load_module(path, linear, key="layer")
    assert isinstance(read, Linear)
    assert same(read, source)
    assert read.config == source.config
    assert not read.training
    digests = {digest_of_state(each.config, each.state_dict()) for each in (read, source)}
    assert len(digests) == 1


def test_a_module_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(Linear(3), path, {})
    with pytest.raises(UsageError, match="gives no network: unknown precondition None"):
        load(path)
    with pytest.raises(UsageError, match="without 'layer' in its metadata"):
        load_module(path, linear, key="layer")
    save(network(), path, {})
    with pytest.raises(UsageError, match="gives no network: its options are precondition, model_t"):
        load_module(path, linear)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"steps": torch.tensor(7.0)}, "'steps' is .* float32: expected .* int64"),
        ({"steps": torch.tensor(7, dtype=torch.int32)}, "'steps' is .* int32: expected .* int64$"),
        ({"bias": torch.tensor([1, 2])}, "'bias' is .* int64: expected .* or another float"),
        ({"bias": torch.zeros(3)}, r"'bias' is \(3,\) float32: expected \(2,\) float32"),
        ({"more": torch.zeros(3)}, "1 are unknown, the first of them 'more'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], complaint: str
) -> None:
    path, source = tmp_path / "a.safetensors", Linear(3)
    save_file({**source.state_dict(), **tensors}, path, {"config": json.dumps(source.config)})
    with pytest.raises(UsageError, match=complaint):
        load_module(path, linear)


def test_conversion_keeps_the_network(
    published: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = network(), tmp_path / "new" / "b.safetensors"
    path = written(published, tmp_path / "a.pkl", source)
    digest = digest_of_file(path)
    arguments = ["convert_checkpoint.py", str(path), str(target), "--sha256", digest]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"))["main"]()
    assert same(load(target), source)
    with safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["provenance"])["sha256"] == digest


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversion_to_half_precision_is_half_the_size_and_one_rounding(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says so, and keeps what it said of its training."""
    source, path, target = network(), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(source, path, {"images_seen": 7})
    monkeypatch.setattr(sys, "argv", ["convert", str(path), str(target), "--dtype", dtype])
    convert = runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"))["main"]
    convert()
    found = load(target)
    assert found.digest in capsys.readouterr().out
    told = checkpoint.provenance(target)
    assert (told["images_seen"], told["dtype"]) == (7, dtype)
    assert target.stat().st_size < 0.6 * path.stat().st_size
    for name, parameter in source.named_parameters():
        rounded = parameter.to(getattr(torch, dtype)).float()
        assert torch.equal(found.get_parameter(name), rounded)
    for name, buffer in source.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer)
    if dtype == "float16":
        next(source.parameters()).fill_(1e5)
        save(source, path, {})
        with pytest.raises(UsageError, match="beyond float16: expected bfloat16"):
            convert()

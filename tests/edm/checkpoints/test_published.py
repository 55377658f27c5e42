"""A snapshot whose layers, options or source text say something else is another network."""

import hashlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from edm.checkpoints import published as reader
from edm.checkpoints.checkpoint import load
from edm.precondition import Preconditioned
from linear_structure.system.errors import UsageError

SONG = {
    "channel_mult": [1, 2],
    "attn_resolutions": [4],
    "label_dim": 3,
    "augment_dim": 9,
    "dropout": 0.13,
    "label_dropout": 0.25,
}
NCSNPP = {
    **SONG,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
    "channel_mult_noise": 2,
}
ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 64}


def published_attributes(name: str, class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What reference/edm.md, section 2, says of a layer of the published networks of 8 x 8."""
    song, width = config["model_type"] == "SongUNet", config["model_channels"]
    coarse, (place, _, layer) = "4x4" in name, name.rpartition(".")
    match class_name:
        case "UNetBlock":
            attends = coarse and re.search("block1" if song and "dec" in name else "block", name)
            heads = 1 if song else 2 * width // 64
            return {
                "out_channels": width * (2 if coarse or layer == "8x8_up" else 1)
                if layer != "4x4_down"
                else width,
                "emb_channels": 4 * width,
                "num_heads": heads if attends or layer == "4x4_in0" else 0,
                "dropout": 0.13,
                "skip_scale": math.sqrt(0.5) if song else 1.0,
                "adaptive_scale": not song,
            }
        case "GroupNorm":
            return {"eps": 1e-6 if song else 1e-5}
        case "Conv2d":
            resamples, fused = layer in ("conv0", "skip"), layer.endswith("aux_residual")
            return {
                "up": resamples and place.endswith("_up"),
                "down": (resamples and place.endswith("_down")) or fused,
                "fused_resample": fused,
            }
        case "SongUNet" | "DhariwalUNet":
            return {"label_dropout": 0.25}
    return {}


def layers(meta: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Descriptions of all persistent modules below one, by their names."""
    found = {}
    for key, module in meta["state"]["_modules"].items():
        full, inner = f"{name}{key}", vars(module).get("meta")
        if inner is None:
            inner = {"class_name": "ModuleDict", "state": vars(module)}
        found |= {full: inner, **layers(inner, f"{full}.")}
    return found


def written(
    published: ModuleType, path: Path, source: Preconditioned, change: Callable[[Any], None]
) -> Path:
    form, file = published.Form(), io.BytesIO()
    snapshot = published.snapshot(source.config, source.state_dict(), form)
    found = layers(snapshot["ema"].meta)
    for name, meta in found.items():
        meta["state"] |= published_attributes(name, meta["class_name"], source.config)
    change(found | {"": snapshot["ema"].meta})
    published.dump(snapshot, file, form)
    path.write_bytes(file.getvalue())
    return path


@pytest.mark.parametrize("options", [SONG, NCSNPP, ADM], ids=["ddpmpp", "ncsnpp", "adm"])
def test_attributes_of_the_published_layers_are_those_of_ours(
    published: ModuleType, tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny.network(None, **options)
    seen = []
    path = written(published, tmp_path / "a.pkl", source, lambda found: seen.extend(found.values()))
    read = load(path)
    assert read.config == source.config and read.digest == source.digest
    blocks = [meta["state"] for meta in seen if meta["class_name"] == "UNetBlock"]
    assert len(blocks) > 5 and {"num_heads", "skip_scale"} <= blocks[0].keys()


BLOCK = "model.enc.8x8_block0"
CHANGES: dict[str, tuple[str, Any]] = {
    f"{BLOCK}.skip_scale": (BLOCK, 1.0),
    f"{BLOCK}.dropout": (BLOCK, 0.0),
    f"{BLOCK}.num_heads": (BLOCK, 4),
    f"{BLOCK}.adaptive_scale": (BLOCK, True),
    f"{BLOCK}.in_channels": (BLOCK, 16),
    f"{BLOCK}.conv0.up": (f"{BLOCK}.conv0", True),
    "model.enc.4x4_down.conv0.down": ("model.enc.4x4_down.conv0", False),
    "model.enc.4x4_down.conv0.fused_resample": ("model.enc.4x4_down.conv0", True),
    f"{BLOCK}.norm0.eps": (f"{BLOCK}.norm0", 1e-5),
    f"{BLOCK}.norm0.num_groups": (f"{BLOCK}.norm0", 1),
    "model.map_layer0.in_features": ("model.map_layer0", 9),
    "model.label_dropout": ("model", 0.5),
    "model.enc.4x4_block0.skip_scale": ("model.enc.4x4_block0", None),
    "model.dec.8x8_up.skip_scale": ("model.dec.8x8_up", math.nan),
    "model.dec.8x8_up.dropout": ("model.dec.8x8_up", [0.13]),
    "model.dec.8x8_up.num_heads": ("model.dec.8x8_up", 1 << 2000),  # beyond all floats
}


@pytest.mark.parametrize("attribute", CHANGES)
def test_a_layer_with_another_attribute_is_refused_by_name(
    published: ModuleType, tmp_path: Path, attribute: str
) -> None:
    layer, value = CHANGES[attribute]
    key = attribute.rpartition(".")[2]

    def change(found: dict[str, Any]) -> None:
        found[layer]["state"][key] = value

    path = written(published, tmp_path / "a.pkl", tiny.network(None, **SONG), change)
    with pytest.raises(UsageError, match=rf"'{re.escape(attribute)}' is .*: in a network of its"):
        load(path)


def test_a_tensor_in_the_place_of_a_number_is_refused(
    published: ModuleType, tmp_path: Path
) -> None:
    def change(found: dict[str, Any]) -> None:
        found[BLOCK]["state"]["skip_scale"] = torch.tensor(0.5)

    path = written(published, tmp_path / "a.pkl", tiny.network(None, **SONG), change)
    with pytest.raises(UsageError, match="skip_scale' is Array"):
        load(path)


@pytest.mark.parametrize(
    ("precondition", "attribute"),
    [("VPPrecond", "sigma_max"), ("iDDPMPrecond", "sigma_min"), ("VPPrecond", "sigma_min")],
)
def test_a_range_of_levels_that_options_do_not_give_is_refused(
    published: ModuleType, tmp_path: Path, precondition: str, attribute: str
) -> None:
    source = tiny.network(None, **SONG, precondition=precondition)
    right = getattr(source, attribute)

    def of(value: float) -> Path:
        return written(
            published,
            tmp_path / "a.pkl",
            source,
            lambda found: found[""]["state"].update({attribute: value}),
        )

    assert load(of(right)).digest == source.digest
    with pytest.raises(UsageError, match=f"'{attribute}' is .*: in a network of its options"):
        load(of(right * 1.01))


def test_a_layer_of_another_class_is_refused(published: ModuleType, tmp_path: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        found["model.map_layer0"]["class_name"] = "ScaledLinear"

    path = written(published, tmp_path / "a.pkl", tiny.network(None, **SONG), change)
    with pytest.raises(UsageError, match=r"'model\.map_layer0' is of class 'ScaledLinear'"):
        load(path)


def test_a_layer_without_tensors_that_has_no_place_is_refused(
    published: ModuleType, tmp_path: Path
) -> None:
    def change(found: dict[str, Any]) -> None:
        found["model"]["state"]["_modules"]["squash"] = nn.ModuleDict()

    path = written(published, tmp_path / "a.pkl", tiny.network(None, **SONG), change)
    with pytest.raises(UsageError, match=r"'model\.squash' has no place"):
        load(path)


def test_source_text_that_is_not_published_is_said_and_loading_goes_on(
    published: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tiny.network(None, **SONG)
    text = "c_noise = sigma.log() / 2\n"
    digest = hashlib.sha256(text.encode()).hexdigest()

    def of(name: str) -> Path:
        return written(
            published,
            tmp_path / "a.pkl",
            source,
            lambda found: found[name].update(module_src=text),
        )

    known = hashlib.sha256(b"# placeholder").hexdigest()[:12]
    monkeypatch.setattr(reader, "SOURCES", (known, *reader.SOURCES))
    load(written(published, tmp_path / "a.pkl", source, lambda found: None))
    assert capsys.readouterr().err == ""
    for name in ("", "model", BLOCK):
        assert load(of(name)).digest == source.digest
        (sentence,) = capsys.readouterr().err.splitlines()
        assert digest[:12] in sentence and "another network" in sentence and "a.pkl" in sentence


def test_edm2_is_named(published: ModuleType, tmp_path: Path) -> None:
    path = written(
        published,
        tmp_path / "a.pkl",
        tiny.network(None, **SONG),
        lambda found: found[""].update(class_name="Precond"),
    )
    with pytest.raises(UsageError, match="EDM2"):
        load(path)

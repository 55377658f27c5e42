"""Which loss a recipe means, and files of noise levels."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edm.precondition import Preconditioned, build
from edm.training.loss import EDM, VE, VP, Levels, LogUniform
from edm.training.recipes import PRECONDITIONERS, RECIPES, read_scales
from linear_structure.sampling.processes import ddpm_grid
from linear_structure.sampling.scales import Scales
from linear_structure.system.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
DIGITS = RECIPES["digits"]
SCALES = Scales.between(200.0, 0.01, 1.3, 5)


def network(preconditioning: str) -> Preconditioned:
    kind = {"precondition": PRECONDITIONERS[preconditioning], "model_type": "MLP"}
    return build({**kind, "img_resolution": 1, "img_channels": 2})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "noise_scales.json"
    path.write_text(json.dumps({"inputs": {"n": 3}, "outputs": SCALES.to_json()}))
    return path


def test_every_preconditioning_has_a_loss_of_its_own() -> None:
    own = {
        name: replace(DIGITS, preconditioning=name).criterion(network(name))
        for name in PRECONDITIONERS
    }
    edm = EDM(sigma_data=0.7518, log_uniform_share=0.15)
    assert own == {"edm": edm, "vp": VP(), "ve": VE(), "iddpm": VP(), "ncsn": VE()}


@pytest.mark.parametrize("preconditioning", PRECONDITIONERS)
def test_levels_are_those_of_the_ddpm_in_the_range_of_the_network(preconditioning: str) -> None:
    made, grid = network(preconditioning), ddpm_grid(1000)[:-1]
    found = replace(DIGITS, preconditioning=preconditioning, loss="levels").criterion(made)
    assert isinstance(found, Levels)
    inside = (made.sigma_min <= grid) & (grid <= made.sigma_max)
    assert torch.equal(found.levels, grid[inside])
    assert len(grid[inside]) == {"vp": 996, "ve": 951, "ncsn": 951}.get(preconditioning, 1000)


@pytest.mark.parametrize(
    ("preconditioning", "low", "high", "sigma_data"),
    [
        ("edm", 0.002, 80.0, 0.7518),
        ("ve", 0.02, 100.0, math.inf),
        ("vp", 0.0009765625, 152.16697692871094, math.inf),
    ],
)
def test_log_uniform_levels_fill_the_range_of_the_network(
    preconditioning: str, low: float, high: float, sigma_data: float
) -> None:
    recipe = replace(DIGITS, preconditioning=preconditioning, loss="log-uniform")
    assert recipe.criterion(network(preconditioning)) == LogUniform(low, high, sigma_data)


def test_levels_of_a_file_are_its_grid(path: Path) -> None:
    recipe = replace(DIGITS, preconditioning="ncsn", loss="levels", levels=str(path))
    found, grid = recipe.criterion(network("ncsn")), SCALES.grid()
    assert isinstance(found, Levels)
    assert torch.equal(found.levels, grid[(grid >= 0.02) & (grid <= 100)])
    assert recipe.identity()["levels"] == SCALES.to_json()


def test_the_levels_of_digits_in_the_results_can_be_trained_at() -> None:
    scales = read_scales(ROOT / "results" / "digits" / "noise_scales.json")
    levels = (9.627, 0.02, 21)
    assert (round(scales.sigma_max, 3), scales.sigma_min, scales.levels) == levels


def test_what_earlier_trainings_did_not_state_is_not_asked_for() -> None:
    assert not {"loss", "levels"} & DIGITS.identity().keys()
    told = {name: replace(DIGITS, loss=name).identity() for name in ("levels", "log-uniform")}
    assert told["levels"].items() >= {"loss": "levels", "levels": "ddpm"}.items()
    assert told["log-uniform"]["loss"] == "log-uniform"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfe", "utf-8"),
        (b"{", "Expecting property name"),
        (b"[1, 2]", "it has no outputs"),
        (b'{"outputs": 3}', "it has no outputs"),
        (b'{"outputs": {"sigma_max": 3.0}}', "'sigma_min' of noise scales is missing"),
        (b"[" * 100_000, "recursion"),
        ({"levels": 10**9}, "1000000000 levels: expected at most"),
        ({"levels": 0}, "steps"),
        ({"levels": "many"}, "'levels' is 'many'"),
        ({"sigma_min": 300.0}, "sigma_min"),
        ({"sigma_max": math.nan}, "sigma"),
        ({"colour": 1}, "unknown option 'colour'"),
    ],
)
def test_what_holds_no_scales_is_refused_in_one_sentence(
    content: bytes | dict[str, Any], fault: str, tmp_path: Path
) -> None:
    if isinstance(content, dict):
        content = json.dumps({"outputs": SCALES.to_json() | content}).encode()
    (path := tmp_path / "scales.json").write_bytes(content)
    with pytest.raises(
        UsageError, match=rf"scales\.json holds no noise scales \(.*{fault}"
    ) as found:
        read_scales(path)
    assert "\n" not in str(found.value)


def test_a_folder_holds_no_scales(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as noise scales: Is a directory"):
        read_scales(tmp_path)

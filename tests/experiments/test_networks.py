"""Networks of the user's own code, named as module:function."""

import sys
from itertools import count
from pathlib import Path

import pytest
import tiny
import torch

from edm.checkpoints import checkpoint
from experiments import networks
from experiments.networks import Code
from linear_structure.system.errors import UsageError
from linear_structure.system.machine import Machine

CPU = Machine(torch.device("cpu"), 1)
SHAPE = (1, 4, 4)
NUMBERS = count()
MINE = """
import torch
from edm import network_of


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.spread = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma):
        assert x.dtype == torch.float32
        return x * (self.spread**2 / (self.spread**2 + sigma**2)).reshape(-1, 1, 1, 1)


def adapted():
    return network_of(Net(), shape=(3, 2, 2), sigma_max=40.0)


def told(x, sigma):
    return x


def nothing():
    pass


def number():
    return 3


def forgetful():
    return lambda x, sigma: None


def blind():
    return lambda x, sigma: x / 0 * 0


def conditional():
    return lambda x, sigma, labels: x
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a new name in the current folder, beside folders named as packages here."""
    monkeypatch.chdir(tmp_path)
    for name in ("edm", "experiments"):
        Path(name).mkdir()
        Path(name, "__init__.py").write_text("raise ImportError('of someone else')")
    name = f"mine{next(NUMBERS)}"
    Path(f"{name}.py").write_text(MINE)
    return name


def test_a_module_is_a_network_of_the_datasets_shape_and_the_path_stays_as_it_was(mine):
    before = list(sys.path)
    network = networks.load(networks.given(f"{mine}:Net"), CPU, SHAPE)
    assert sys.path == before and network.shape == SHAPE
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    assert torch.allclose(network(x, torch.tensor(2.0)), x * 0.25 / 4.25)
    again = networks.load(Code(mine, "Net"), CPU, SHAPE)
    assert network.digest == again.digest


def test_a_network_keeps_what_it_says_of_itself(mine):
    network = networks.load(Code(mine, "adapted"), CPU, SHAPE)
    assert (network.shape, network.sigma_max) == ((3, 2, 2), 40)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", "returns None: expected a function without arguments that returns D"),
        ("number", "returns something of type int: expected"),
        ("told", "asks for arguments (missing a required argument: 'x'): expected"),
        ("absent", "has no function 'absent': expected"),
        ("forgetful", "gives None: expected (2, 1, 4, 4)"),
        ("blind", "gives NaN or infinity at sigma 80; D(x, sigma) gives clean images"),
        ("conditional", "missing 1 required positional argument: 'labels'; D(x"),
    ],
)
def test_what_gives_no_network_is_one_sentence(mine, function, said):
    with pytest.raises(UsageError) as caught:
        networks.load(Code(mine, function), CPU, SHAPE)
    assert said in str(caught.value)


def test_a_module_that_is_not_there_and_images_of_no_shape_are_one_sentence(mine, tmp_path):
    with pytest.raises(UsageError, match=rf"no module nosuch in {tmp_path}, nor installed"):
        networks.load(Code("nosuch.sub", "load"), CPU, SHAPE)
    with pytest.raises(UsageError, match="nothing says of what shape"):
        networks.load(Code(mine, "Net"), CPU)
    Path("hollow.py").write_text("import nosuch")
    with pytest.raises(ModuleNotFoundError, match="nosuch"):  # a bug of the user's own
        networks.load(Code("hollow", "load"), CPU, SHAPE)


def test_only_a_word_of_this_form_that_is_no_file_is_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert networks.given("a.b:load") == Code("a.b", "load")
    for text in ("http://127.0.0.1/n.pkl", "d:n.pkl", "n.pkl", "a:b:c", "1a:b"):
        assert not isinstance(networks.given(text), Code)
    checkpoint.save(tiny.network(), "a:b", {})
    assert networks.given("a:b") == Path("a:b")
    with pytest.raises(UsageError, match="a digest is of a file"):
        networks.given("c:d", "0" * 64)


def test_code_is_not_compiled_nor_cast(mine):
    with pytest.raises(UsageError, match="decides its own dtype"):
        networks.load(Code(mine, "Net"), CPU, SHAPE, torch.bfloat16)

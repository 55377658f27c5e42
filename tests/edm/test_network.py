"""Anything callable as D(x, sigma) as a network: casts, labels, gradients, names, identity."""

import importlib.util
from functools import partial

import pytest
import torch
from torch import nn

from edm.checkpoints import load, shipped
from edm.network import network_of
from linear_structure.gaussian import Gaussian
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import final, heun
from linear_structure.system.errors import UsageError

SHAPE = (1, 4, 4)
X = 80 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
SCALE = torch.ones(1)


class Plain(nn.Module):
    """A module that knows float32 images and one sigma for each of them, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(SHAPE))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, sigma):
        assert (x.dtype, sigma.dtype, sigma.shape) == (torch.float32, torch.float32, x.shape[:1])
        share = (1 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
        return self.dropout(self.mean + share * (x - self.mean))


def scaled(x, sigma):
    return SCALE * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_a_plain_module_walks_down_the_grid_as_its_formula_does():
    gaussian = Gaussian(torch.zeros(16).double(), torch.eye(16), torch.ones(16).double())
    ends = [
        final(heun(d, X, sigma_grid(18))) for d in (network_of(Plain(), SHAPE), gaussian.denoise)
    ]
    assert ends[0].dtype == torch.float64
    assert torch.allclose(*ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [torch.tensor(2.0).double(), torch.tensor([0.5, 1, 2])])
def test_sigma_is_one_or_one_for_each(sigma):
    network = network_of(scaled, SHAPE)
    levels = sigma.expand(3).float().reshape(-1, 1, 1, 1)
    assert torch.equal(network(X, sigma), (X.float() / (1 + levels**2)).double())


def test_gradients_pass_where_they_are_asked_for_and_no_graph_is_kept_elsewhere():
    module = Plain()
    assert not final(heun(network_of(module, SHAPE), X, sigma_grid(4))).requires_grad
    final(heun(network_of(module, SHAPE, gradients=True), X, sigma_grid(4))).sum().backward()
    assert float(module.mean.grad.abs().sum()) > 0


def test_classes_are_the_third_argument():
    def labelled(x, sigma, labels):
        return labels.reshape(-1, 1, 1, 1).expand_as(x).float()

    network = network_of(labelled, SHAPE, label_dim=3)
    bound = network.bind(torch.tensor([2, 0, 1]))
    assert bound(X, torch.tensor(1.0))[:, 0, 0, 0].tolist() == [2, 0, 1]
    with pytest.raises(UsageError, match="class 3 is not known: expected 0 to 2"):
        network.bind(torch.tensor([0, 3]))
    with pytest.raises(UsageError, match="has no classes"):
        network_of(scaled, SHAPE).bind(torch.tensor([0]))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, sigma: x @ x.flatten(), r"lambda.*\(3, 1, 4, 4\) float32, sigma \(3,\)\) fails"),
        (lambda x: x, "fails: .*takes 1 positional argument"),
        (lambda x, sigma: x[:, 0], r"gives \(3, 4, 4\): expected \(3, 1, 4, 4\)"),
        (lambda x, sigma: None, "gives None: expected"),
    ],
)
def test_what_fails_is_named(function, said):
    with pytest.raises(UsageError, match=said):
        network_of(function, SHAPE)(X, torch.tensor(1.0))


def digest(call, **settings):
    return network_of(call, SHAPE, **settings).digest


def test_equal_things_have_equal_digests_and_others_have_others(capsys):
    torch.manual_seed(0)
    module, network = Plain(), load(shipped("digits-denoiser.safetensors"))
    other = Plain()
    other.mean.data += 1
    calls = [module, other, scaled, partial(scaled, sigma=2), torch.add, network, network.forward]
    calls += [Gaussian(torch.full((16,), m), torch.eye(16), torch.ones(16)).denoise for m in (0, 1)]
    digests = [digest(call) for call in calls]
    assert digests == [digest(call) for call in calls]
    assert len(set(digests)) == len(calls)
    assert digest(scaled, version="2") != digest(scaled) != digest(scaled, label_dim=2)
    assert capsys.readouterr().err == ""


def test_a_global_tensor_counts(monkeypatch):
    before = digest(scaled)
    monkeypatch.setitem(globals(), "SCALE", torch.full((1,), 2.0))
    assert digest(scaled) != before


def imported(path, text):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("written", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.denoise


def test_one_changed_line_of_the_source_counts(tmp_path):
    text = "def denoise(x, sigma):\n    return 0.5 * x\n"
    first, again, other = (
        digest(imported(tmp_path / "written.py", each))
        for each in (text, text, text.replace("0.5", "0.6"))
    )
    assert first == again != other


def test_what_has_no_identity_is_new_each_time_and_a_line_says_so(capsys):
    scope = {}
    exec("def typed(x, sigma):\n    return x", scope)
    assert digest(scope["typed"]) != digest(scope["typed"])
    said = capsys.readouterr().err
    assert said.count("cannot be told from another: results serve this process alone") == 2
    assert digest(scope["typed"], version="1") == digest(scope["typed"], version="1")
    assert capsys.readouterr().err == ""

"""Anything callable as D(x, sigma) as a network: casts, labels, gradients, names, identity."""

import importlib
import sys
import threading
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import builders
import numpy as np
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
        (lambda x, sigma: (x, sigma), r"gives a tuple: expected \(3, 1, 4, 4\)$"),
    ],
)
def test_what_fails_is_named(function, said):
    with pytest.raises(UsageError, match=said):
        network_of(function, SHAPE)(X, torch.tensor(1.0))


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [
        ((1, 4, 4), lambda x, s: x / s),
        ((3, 5, 4), lambda x, s: x / s),
        ((3, 4, 5), lambda x, s: x / s[:, None]),
        ((4, 5, 6), lambda x, s: x / s[:, None, None]),
    ],
)
def test_one_sigma_for_each_image_is_not_one_for_each_column_or_row(shape, wrong):
    x, sigma = torch.zeros(4, *shape), torch.tensor(1.0)
    with pytest.raises(UsageError, match=r"sigma \(.,\)\) fails"):
        network_of(wrong, shape)(x, sigma)
    assert network_of(lambda x, s: x / s[:, None, None, None], shape)(x, sigma).shape == x.shape


def test_images_of_another_shape_than_was_said_are_refused():
    with pytest.raises(UsageError, match=r"x \(2, 3, 4, 4\): expected \(B, 1, 4, 4\)"):
        network_of(scaled, SHAPE)(torch.zeros(2, 3, 4, 4), torch.tensor(1.0))
    network = network_of(load(shipped("digits-denoiser.safetensors")), SHAPE)
    with pytest.raises(UsageError, match=r"shape \(1, 4, 4\) of a network that makes \(1, 8, 8\)"):
        network(X, torch.tensor(1.0))


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


class Reading:
    """Code of all kinds that reads the global SCALE, or holds a tensor."""

    kept = torch.ones(1)

    @property
    def own(self):
        return SCALE

    @cached_property
    def once(self):
        return SCALE

    @staticmethod
    def of_none():
        return SCALE

    @classmethod
    def of_class(cls):
        return SCALE


class OfProperty(Reading):
    def __call__(self, x, sigma):
        return x * self.own


@pytest.mark.parametrize(
    "call",
    [
        scaled,
        lambda x, sigma: (lambda y: y * SCALE)(x),
        lambda x, sigma: torch.stack([each * SCALE for each in x]),
        lambda x, sigma: sum(each * SCALE for each in x),
        lambda x, sigma: Reading().own,
        Reading.of_none,
        Reading.of_class,
        OfProperty(),
    ],
)
def test_a_global_tensor_counts_wherever_it_is_read(monkeypatch, call):
    before = digest(call)
    monkeypatch.setitem(globals(), "SCALE", torch.full((1,), 2.0))
    assert digest(call) != before


def test_a_tensor_of_a_class_or_a_function_counts(monkeypatch):
    def constant(x, sigma, wide=True):
        return constant.kept * wide

    constant.kept = torch.ones(1)
    calls = [lambda x, sigma: Reading.kept, OfProperty(), constant]
    before = [digest(call) for call in calls]
    monkeypatch.setattr(Reading, "kept", torch.zeros(1))
    constant.kept = torch.zeros(1)
    assert all(digest(call) != then for call, then in zip(calls, before, strict=True))


class Slots:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held

    def __call__(self, x, sigma):
        return x


class Child(Slots):
    pass


class Words(dict):
    def __call__(self, x, sigma):
        return x


class Others(dict):
    def __call__(self, x, sigma):
        return 2 * x


class Sum(nn.Sequential):
    def forward(self, x, sigma):
        return x + super().forward(x)


ONE, TWO = nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x, sigma: x, lambda x, sigma: 2 * x),
        (torch.zeros(2).mul, torch.ones(2).mul),
        (Slots(torch.zeros(1)), Slots(torch.ones(1))),
        (Child(torch.zeros(1)), Child(torch.ones(1))),
        (Child([[1], 2]), Child([[1, 2]])),
        (Child({1: 2}), Child({"1": 2})),
        (Child((1, [])), Child(((1,), []))),
        (Words(a=1), Others(a=1)),
        (Sum(Sum(ONE), TWO), Sum(Sum(ONE, TWO))),
        (Child(np.array(["a"])), Child(np.array(["b"]))),
        (Child(np.array([1, "a"], object)), Child(np.array([2, "a"], object))),
        (Child(np.zeros(2)[::-1]), Child(np.ones(2)[::-1])),
        (Child(np.float32(1)), Child(np.float32(2))),
        (Child(torch.eye(2).to_sparse()), Child(2 * torch.eye(2).to_sparse())),
        (Child(threading.Lock()), Child(threading.RLock())),
        (Child(slice(1)), Child(slice(2))),
    ],
)
def test_what_differs_is_told_apart_and_has_an_identity(capsys, one, other):
    assert digest(one) == digest(one) != digest(other)
    assert capsys.readouterr().err == ""


def test_what_knows_its_own_id_is_the_same_in_each_process():
    first, second = Child(1), Child(1)
    first.own, second.own = id(first), id(second)
    assert digest(first) == digest(second)


def test_sets_have_no_order():
    class Weak(Slots):
        __hash__ = object.__hash__

    upward, downward = ({Weak(index) for index in order} for order in (range(9), range(8, -1, -1)))
    assert digest(Child(upward)) == digest(Child(downward))


def imported(path, text):
    path.write_text(text)
    return builders.module(path).denoise


def test_one_changed_line_of_the_source_counts(tmp_path):
    text = "def denoise(x, sigma):\n    return 0.5 * x\n"
    first, again, other = (
        digest(imported(tmp_path / "written.py", each))
        for each in (text, text, text.replace("0.5", "0.6"))
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("changed", "body"),
    [
        ("own/sub.py", "import own.sub\ndef denoise(x, sigma): return own.sub.f(x)"),
        ("own/sub.py", "def denoise(x, sigma):\n    import own.sub\n    return own.sub.f(x)"),
        ("own/deep.py", "import own.sub\ndef denoise(x, sigma): return own.sub.f(x)"),
        ("own/deep.py", "from own import sub\ndef denoise(x, sigma): return (lambda: sub.f(x))()"),
        ("plain.py", "def denoise(x, sigma):\n    from plain import f\n    return f(x)"),
        ("plain.py", "import plain as p\ndef denoise(x, sigma): return p.f(x)"),
    ],
)
def test_a_changed_line_of_what_the_source_uses_counts(tmp_path, monkeypatch, changed, body):
    """Of packages without an `__init__.py` too, and of what is imported as the code runs."""
    files = {
        "own/sub.py": "from own.deep import g\ndef f(x): return g(x)\n",
        "own/deep.py": "def g(x): return 0.5 * x\n",
        "plain.py": "def f(x): return 0.5 * x\n",
    }
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def fresh():
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        for name in ("own", "own.sub", "own.deep", "plain"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return digest(imported(tmp_path / "written.py", body))

    before, again = fresh(), fresh()
    files[changed] += "# another\n"
    assert before == again != fresh()


def installed(root, version, monkeypatch, body="X = 1\n"):
    """A network of source that uses a package in a folder of its own, as `--target` leaves it."""
    (root / "other").mkdir(parents=True)
    (root / "other/__init__.py").write_text(f"__version__ = '{version}'\n{body}")
    (root / f"other-{version}.dist-info").mkdir()
    (root / f"other-{version}.dist-info/RECORD").write_text("other/__init__.py,sha256=,1\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(root)
    monkeypatch.delitem(sys.modules, "other", raising=False)
    importlib.invalidate_caches()
    text = "import other\nimport mine\ndef denoise(x, sigma): return mine.f(other.X * x)"
    return imported(root.parent / "written.py", text)


def test_what_is_installed_in_a_folder_of_its_own_counts_by_its_version(tmp_path, monkeypatch):
    """And what lies beside it, which nobody installed, by its source."""
    digests = []
    versions = [("1", "X = 1\n"), ("1", "X = 2\n"), ("2", "X = 1\n"), ("1", "X = 1\n")]
    for index, (version, body) in enumerate(versions):
        root = tmp_path / str(index) / "site"
        root.mkdir(parents=True)
        (root / "mine.py").write_text("def f(x): return x\n" + "# more\n" * (index == 3))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        digests.append(digest(installed(root, version, monkeypatch, body)))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_what_is_too_deep_is_told_and_a_version_keeps_it(capsys):
    def deep(x, sigma):
        return chain

    chain = []
    for _ in range(sys.getrecursionlimit()):
        chain = [chain]
    assert digest(deep) != digest(deep)
    assert "deep reaches is too deep, and cannot be told from another" in capsys.readouterr().err
    assert digest(deep, version="1") == digest(deep, version="1") != digest(deep, version="2")
    assert capsys.readouterr().err == ""


def test_the_version_of_what_is_installed_counts(monkeypatch):
    before = digest(torch.add)
    monkeypatch.setattr(torch, "__version__", "another")
    assert digest(torch.add) != before


def test_several_processes_are_refused_what_has_no_identity(monkeypatch):
    scope = {}
    exec("def typed(x, sigma):\n    return x", scope)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="several processes need a version= of it"):
        digest(scope["typed"])
    assert digest(scope["typed"], version="1")


def test_a_class_that_was_typed_and_an_open_file_have_no_identity(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    typed = type("Typed", (), {"__module__": "__main__", "__call__": scaled})
    with Path(__file__).open() as file:
        for call in (typed(), Child(file)):
            assert digest(call) != digest(call)
    assert capsys.readouterr().err.count("cannot be told from another") == 4


def test_what_has_no_identity_is_new_each_time_and_a_line_says_so(capsys):
    scope = {}
    exec("def typed(x, sigma):\n    return x", scope)
    assert digest(scope["typed"]) != digest(scope["typed"])
    said = capsys.readouterr().err
    assert said.count("cannot be told from another: results serve this process alone") == 2
    assert digest(scope["typed"], version="1") == digest(scope["typed"], version="1")
    assert capsys.readouterr().err == ""


class Scaled(nn.Module):
    """Shrinks by its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, sigma):
        return self.weight * x


def test_a_module_that_was_trained_further_is_another_network():
    module = Scaled()
    network = network_of(module, (1, 2, 2))
    before = network.digest
    assert network.digest == before
    module.weight.data.fill_(0.5)
    assert network.digest != before

"""One row makes a sampler, a plain module goes through everything, old results stay valid."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import process_experiments_with_skips
from edm.evaluation import features, fid
from edm.network import network_of
from experiments import comparison, presets, reproduction, results, sweep, variations
from experiments.comparison import States
from experiments.generation import Generation, generate
from experiments.loading import load_sweep
from experiments.reproduction import Reproduction
from experiments.sampling import Sampling
from linear_structure import parameters
from linear_structure.data import datasets
from linear_structure.denoise import Posterior
from linear_structure.fit import fit_gaussian
from linear_structure.images import to_uint8
from linear_structure.parameters import Story
from linear_structure.sampling.samplers import euler, final
from linear_structure.sampling.seeds import SeedRange
from linear_structure.sampling.table import SAMPLERS, Sampler, Settings
from linear_structure.suggestion import Trial, effects
from linear_structure.system.machine import Machine
from linear_structure.teleport import Teleport

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = (1, 8, 8)


@pytest.fixture
def machine(one_thread):
    return Machine(torch.device("cpu"), 1)


@pytest.fixture(scope="module")
def images():
    return datasets.load("digits").images()[:200]


@pytest.fixture(scope="module")
def gaussian():
    model, _ = fit_gaussian(datasets.load("digits"))
    return model


class Shrinking(nn.Module):
    """A module in float32 that knows neither float64 nor a sigma of no dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma):
        assert (x.dtype, sigma.shape) == (torch.float32, x.shape[:1])
        return x * (self.spread**2 / (self.spread**2 + sigma**2)).reshape(-1, 1, 1, 1)


def small_sweep(network, gaussian, machine, root, **changes):
    """Twenty images of a network at two numbers of skipped steps."""
    preset = presets.find("digits")
    values = {"steps": 6, "skips": (0, 2), "seeds": SeedRange(0, 19), "block": 10, **changes}
    extractor = features.load(preset.features)
    reference = fid.measure([extractor(datasets.load("digits").images()[:100])], extractor.digest)
    return sweep.Sweep(
        preset=replace(preset, **values),
        network=network,
        teleport=Teleport(gaussian),
        features=extractor,
        reference=reference,
        machine=machine,
        root=root,
    )


def test_results_and_features_of_an_earlier_version_are_reused(machine, tmp_path, monkeypatch):
    """Made at 4740262 by `cifar10-small --seeds 0-7 --block 4 --threads 1`: nothing is sampled."""
    shutil.copytree(GOLDEN / "sweep-4740262", tmp_path / "old")
    preset = replace(presets.find("cifar10-small"), seeds=SeedRange(0, 7), block=4)
    loaded = replace(load_sweep(preset, machine), root=tmp_path / "old")
    monkeypatch.setattr("edm.precondition.Preconditioned.forward", None)  # a call would raise
    found = list(sweep.run(loaded))
    assert [result.skip for result in found] == list(preset.skips)
    assert {result.made["host"] for result in found} == {"elsewhere"}
    for result in found:
        results.path_of(loaded.root, preset.name, preset.seeds, result.skip).unlink()
    again = list(sweep.run(loaded))  # from the features, which get a checksum each
    assert [result.distance for result in again] == pytest.approx(
        [result.distance for result in found], rel=1e-6
    )
    assert len(list(loaded.root.rglob("*.sha256"))) == len(list(loaded.root.rglob("*.npy"))) == 22


def test_a_plain_module_goes_through_every_experiment(machine, gaussian, images, tmp_path):
    network = network_of(Shrinking(), SHAPE)
    swept = small_sweep(network, gaussian, machine, tmp_path / "sweep")
    assert [result.skip for result in sweep.run(swept)] == [0, 2]

    generation = Generation(network, tuple(range(4)), tmp_path / "images", machine)
    assert generate(generation) == 4

    states = States(Sampling(network, swept.sampling.sigmas), range(4), images)
    makers = comparison.models(gaussian, images, (2,))
    study = comparison.study_of(states.sampling, machine, makers, images, tmp_path / "numbers")
    numbers = study.numbers(states, comparison.PARTS)
    assert all(torch.isfinite(v).all() for parts in numbers.values() for v in parts.values())

    made = Reproduction(swept, gaussian, images[:30], 3, tmp_path / "figures")
    reproduction.write_comparisons(made)
    reproduction.write_pictures(made)
    variations.write_solvers(swept, made.folder)
    variations.write_teleports(swept, made.images, made.folder)
    assert len(list(made.folder.glob("*.png"))) == 10
    preset = replace(swept.preset, sampler="ddim", settings=Settings(eta=1.0))
    by_ddim = replace(made, sweep=replace(swept, preset=preset, teleport=Teleport(gaussian)))
    with torch.inference_mode():
        for skip in (0, 2):
            assert torch.equal(
                to_uint8(by_ddim.samples(skip, 3)), by_ddim.sweep.sampling.pixels(range(3), skip)
            )

    denoise, start, labels, _ = swept.sampling.drawn(range(4))
    trial = Trial(lambda own: denoise, swept.teleport, start, swept.sampling.sigmas, labels)
    with torch.inference_mode():
        found = list(effects(trial, 1e-30))
    assert [effect.skip for effect in found] == [5, 4, 3, 2, 1, 0] and found[-1].size == 0


def test_sampling_a_plain_module_keeps_no_graph(machine):
    x = final(
        Sampling(network_of(Shrinking(), SHAPE), presets.find("digits").grid).steps(range(64))
    )
    assert not x.requires_grad and x.grad_fn is None


def test_one_changed_line_makes_the_sweep_sample_again(machine, gaussian, tmp_path):
    counted = []

    def run(factor):
        text = f"def denoise(x, sigma):\n    return {factor} * x\n"
        (tmp_path / "own.py").write_text(text)
        scope = {}
        exec(compile(text, str(tmp_path / "own.py"), "exec"), scope)

        network = network_of(scope["denoise"], SHAPE)
        swept = small_sweep(network, gaussian, machine, tmp_path / "sweep")
        made = {result.made["seconds"] for result in sweep.run(swept)}
        counted.append(len(list((tmp_path / "sweep").rglob("*.npy"))))
        return made

    first = run(0.5)
    assert run(0.5) == first
    run(0.6)
    assert counted == [4, 4, 8]


@dataclass(frozen=True)
class Shift:
    """A toy model, one point: its flow is a straight line."""

    mean: torch.Tensor
    kind: ClassVar[str] = "shift"
    files: ClassVar[tuple[str, ...]] = ("mu.pt",)

    @property
    def dim(self):
        return len(self.mean)

    def to(self, x):
        return Shift(self.mean.to(x))

    def denoise(self, x, sigma):
        return self.mean.to(x).view(1, *x.shape[1:]).expand_as(x)

    def posterior(self, x, sigma):
        return Posterior(self.denoise(x, sigma), self.log_prob(x, sigma))

    def log_prob(self, x, sigma):
        return torch.distributions.Normal(self.mean.to(x), sigma).log_prob(x.flatten(1)).sum(1)

    def sample(self, count, sigma=0.0, generator=None):
        return self.mean + sigma * torch.randn(count, self.dim, generator=generator)

    def tensors(self):
        return {"mu": self.mean.double()}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(tensors["mu"])


def test_a_toy_sampler_and_a_toy_model_take_one_row_each(
    machine, gaussian, images, tmp_path, monkeypatch
):
    """They run a sweep, a figure and a table."""
    row = Sampler(
        "toy", "Toy", lambda d, x, s, skip, *_: euler(d, x, s[skip:]), lambda n, k, _: n - k
    )
    monkeypatch.setitem(SAMPLERS, "toy", row)
    monkeypatch.setitem(parameters.KINDS, "shift", Shift)
    story = Story("digits", "none", 2, SHAPE, 0.5)
    parameters.save(tmp_path / "shift", Shift(gaussian.mean), story)
    model = parameters.load(tmp_path / "shift").model
    assert isinstance(model, Shift)

    monkeypatch.chdir(tmp_path)
    swept = small_sweep(
        network_of(Shrinking(), SHAPE), model, machine, results.ROOT, sampler="toy", name="mine"
    )
    found = list(sweep.run(swept))
    assert [result.outputs["nfe"] for result in found] == [6, 4]
    assert found[1].inputs["solver_steps"] == 32

    monkeypatch.setattr("sys.argv", ["process", "mine"])
    process_experiments_with_skips.main()
    table = Path("experiments_with_skip_results.txt").read_text()
    assert len(table.splitlines()) == 3
    assert Path("experiments_with_skip_graph.png").stat().st_size > 10_000

    plain = replace(swept, teleport=Teleport(gaussian))
    variations.write_solvers(plain, tmp_path / "figures")
    curves = np.genfromtxt(tmp_path / "figures" / "figure2d.csv", str, delimiter=",")[1:, 0]
    assert set(curves) == {each.title for each in SAMPLERS.values() if not each.stochastic}

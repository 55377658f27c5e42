"""What carries latents past the first steps: closed flows, solved ones, one for each class."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from experiments.sampling import Sampling
from linear_structure.denoise import Model
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.seeds import Seeds
from linear_structure.system.errors import UsageError
from linear_structure.teleport import Teleport, carry, check_classes, has_flow

GENERATOR = torch.Generator().manual_seed(0)
BASIS = torch.linalg.qr(torch.randn(16, 16, generator=GENERATOR, dtype=torch.float64))[0]
GAUSSIAN = Gaussian(torch.zeros(16).double(), BASIS, torch.linspace(1, 0.1, 16).double())
X = 80 * torch.randn(6, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)


def test_a_solved_flow_is_the_closed_one_where_there_is_one():
    alone = GaussianMixture(torch.ones(1).double(), (GAUSSIAN,))
    assert has_flow(GAUSSIAN) and not has_flow(alone)
    assert torch.equal(Teleport(GAUSSIAN).flow(X, 80.0, 2.0), GAUSSIAN.flow(X, 80.0, 2.0))
    solved, closed = (Teleport(model).flow(X, 80.0, 2.0) for model in (alone, GAUSSIAN))
    assert torch.allclose(solved, closed, rtol=0, atol=0.01)
    assert not torch.allclose(solved, Isotropic(GAUSSIAN.mean).flow(X, 80.0, 2.0), atol=0.1)


def test_the_flow_of_one_point_is_a_straight_line():
    cloud = PointCloud(torch.full((1, 16), 255, dtype=torch.uint8))
    expected = 1 + (X - 1) * (2 / 80)
    assert torch.allclose(Teleport(cloud).flow(X, 80.0, 2.0), expected, rtol=1e-6)


class Nowhere(Model):
    """A model that leaves out how it moves to another device."""

    def denoise(self, x, sigma):
        return x


@pytest.mark.parametrize("model", [Nowhere(), SimpleNamespace(denoise=None), (GAUSSIAN, "story")])
def test_a_model_that_cannot_teleport_is_told_what_it_needs(model):
    said = f"{type(model).__name__} cannot teleport: expected `flow`, or `denoise` and `to`"
    with pytest.raises(UsageError, match=said):
        Teleport(model).flow(X, 80.0, 2.0)


def test_each_sample_moves_by_the_flow_of_its_class():
    flows = {label: Isotropic(torch.full((16,), float(label))) for label in (0, 1, 2)}
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    moved = Teleport(GAUSSIAN, flows).flow(X, 80.0, 2.0, labels)
    for i, label in enumerate(labels.tolist()):
        assert torch.equal(moved[i], flows[label].flow(X[i : i + 1], 80.0, 2.0)[0])


def test_a_conditional_network_gets_the_classes_of_the_seeds_and_their_flows():
    network = tiny.network(img_resolution=4, img_channels=1, label_dim=3)
    flows = {label: Isotropic(torch.full((16,), float(label))) for label in range(3)}
    sigmas, seen = sigma_grid(4), []
    network.register_forward_pre_hook(
        lambda _, inputs, options: seen.append((inputs[0].clone(), options["class_labels"])),
        with_kwargs=True,
    )
    teleport = Teleport(GAUSSIAN, flows)
    Sampling(network, sigmas, teleport).pixels(range(5), 2)
    drawn = Seeds.of(range(5))
    start, labels = drawn.latents((1, 4, 4)).double() * sigmas[0], drawn.labels(3)
    x, told = seen[0]
    assert torch.equal(told.argmax(1), labels)
    assert torch.equal(x, carry(start, sigmas, 2, teleport, labels).to(x))
    assert len(labels.unique()) > 1


def test_classes_that_do_not_fit_are_refused():
    found = {0: GAUSSIAN}
    with pytest.raises(UsageError, match="has no classes"):
        check_classes(found, 0)
    with pytest.raises(UsageError, match="no parameters of class 1, 2"):
        check_classes(found, 3)


@pytest.mark.parametrize(
    "model",
    [
        Isotropic(torch.zeros(9)),
        PointCloud(torch.zeros(2, 9, dtype=torch.uint8)),
        GaussianMixture(
            torch.ones(1), (Gaussian(torch.zeros(9), torch.zeros(9, 0), torch.ones(0)),)
        ),
    ],
)
def test_a_model_of_another_size_is_refused(model):
    with pytest.raises(UsageError, match="images of 9 values, the network makes 1 x 4 x 4 = 16"):
        Teleport(model).check(tiny.network(img_resolution=4, img_channels=1))


class Unsized(Model):
    def flow(self, x, start, stop):
        return x


@pytest.mark.parametrize("model", [Unsized(), SimpleNamespace(flow=Unsized.flow)])
def test_a_model_without_a_size_is_told_what_it_needs(model):
    network = tiny.network(img_resolution=4, img_channels=1)
    for teleport in (Teleport(model), Teleport(Isotropic(torch.zeros(16)), {0: model})):
        with pytest.raises(UsageError, match=f"^{type(model).__name__} states no `dim`: "):
            teleport.check(network)

"""What carries latents past the first steps: closed flows, solved ones, one for each class."""

import pytest
import torch

from edm.precondition import build
from experiments.sampling import Sampling, carry
from experiments.teleports import ByClass, Solved, check_classes, check_shape, flow_of
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.parameters import Parameters
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.seeds import Seeds
from linear_structure.system.errors import UsageError

GENERATOR = torch.Generator().manual_seed(0)
BASIS = torch.linalg.qr(torch.randn(16, 16, generator=GENERATOR, dtype=torch.float64))[0]
GAUSSIAN = Gaussian(torch.zeros(16).double(), BASIS, torch.linspace(1, 0.1, 16).double())
X = 80 * torch.randn(6, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)
CONFIG = {
    "precondition": "EDMPrecond",
    "img_resolution": 4,
    "img_channels": 1,
    "label_dim": 3,
    "model_type": "SongUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def test_a_solved_flow_is_the_closed_one_where_there_is_one():
    alone = GaussianMixture(torch.ones(1).double(), (GAUSSIAN,))
    assert isinstance(flow_of(alone), Solved)
    assert flow_of(GAUSSIAN) is GAUSSIAN
    solved, closed = (model.flow(X, 80.0, 2.0) for model in (flow_of(alone), GAUSSIAN))
    assert torch.allclose(solved, closed, rtol=0, atol=0.01)
    assert not torch.allclose(solved, Isotropic(GAUSSIAN.mean).flow(X, 80.0, 2.0), atol=0.1)


def test_the_flow_of_one_point_is_a_straight_line():
    cloud = PointCloud(torch.full((1, 16), 255, dtype=torch.uint8))
    expected = 1 + (X - 1) * (2 / 80)
    assert torch.allclose(flow_of(cloud).flow(X, 80.0, 2.0), expected, rtol=1e-6)


def test_each_sample_moves_by_the_flow_of_its_class():
    flows = {label: Isotropic(torch.full((16,), float(label))) for label in (0, 1, 2)}
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    moved = ByClass(flows, labels).flow(X, 80.0, 2.0)
    for i, label in enumerate(labels.tolist()):
        assert torch.equal(moved[i], flows[label].flow(X[i : i + 1], 80.0, 2.0)[0])


def test_a_conditional_network_gets_the_classes_of_the_seeds_and_their_flows():
    torch.manual_seed(0)
    network = build(CONFIG).eval().requires_grad_(False)
    flows = {label: Isotropic(torch.full((16,), float(label))) for label in range(3)}
    sigmas, seen = sigma_grid(4), []
    network.register_forward_pre_hook(
        lambda _, inputs, options: seen.append((inputs[0].clone(), options["class_labels"])),
        with_kwargs=True,
    )
    Sampling((1, 4, 4), sigmas, 2, GAUSSIAN, by_class=flows).pixels(network, range(5))
    drawn = Seeds.of(range(5))
    start, labels = drawn.latents((1, 4, 4)).double() * sigmas[0], drawn.labels(3)
    x, told = seen[0]
    assert torch.equal(told.argmax(1), labels)
    assert torch.equal(x, carry(start, sigmas, 2, ByClass(flows, labels)).to(x))
    assert len(labels.unique()) > 1


def test_classes_that_do_not_fit_are_refused():
    found = {0: Parameters(GAUSSIAN, {}, "")}
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
        check_shape(model, build(CONFIG))

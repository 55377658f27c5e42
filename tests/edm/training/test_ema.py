"""The moving average of weights: its half-life, its first step, its closed form."""

import pytest
import torch
from torch import nn

from edm.training.ema import decay, update


def constant(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


@pytest.mark.parametrize("batch", [1, 64, 4096])
def test_a_weight_counts_half_after_the_half_life(batch: int) -> None:
    beta = decay(halflife=500_000, ramp=0.05, batch=batch, images_seen=100_000_000)
    assert beta ** (500_000 / batch) == pytest.approx(0.5)


def test_half_life_is_a_share_of_the_images_seen_at_first() -> None:
    assert decay(500_000, 0.05, 100, 2_000) == pytest.approx(0.5)
    assert decay(500_000, 0.05, 100, 0) == 0
    assert decay(100, 0, 100, 0) == 0.5


def test_first_update_copies_the_network() -> None:
    average, network = constant(3.0), nn.Linear(2, 2)
    update(average, network, decay(500_000, 0.05, 512, 0))
    assert torch.equal(average.weight, network.weight)
    assert torch.equal(average.bias, network.bias)


def test_average_of_a_constant_approaches_it_geometrically() -> None:
    average, network = constant(0.0), constant(1.0)
    for _ in range(7):
        update(average, network, 0.9)
    torch.testing.assert_close(average.weight, torch.full((2, 2), 1 - 0.9**7))


def test_buffers_and_the_network_stay() -> None:
    average, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(network.running_mean, 5.0)
    before = network.weight.clone()
    update(average, network, 0.5)
    assert torch.equal(average.running_mean, torch.zeros(2))
    assert torch.equal(network.weight, before)

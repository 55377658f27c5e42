"""Clocks: inverse, derivative, ends, and the bits of the published formulas."""

import math

import pytest
import torch
from walks import doubles

from linear_structure.sampling.processes import (
    VE,
    VP,
    Power,
    PublishedVP,
    SubVP,
    ddpm_grid,
    geometric,
    iddpm_levels,
    noise_predictor,
    scaled,
)

PROCESSES = {"ve": VE(0.01, 50), "vp": VP(), "subvp": SubVP()}


@pytest.mark.parametrize("law", [Power(), Power(0.5), VP(), VP.through(0.01, 50), PublishedVP()])
def test_a_time_law_is_inverted_and_differentiated(law):
    t = doubles(0.01, 0.1, 0.5, 1).requires_grad_()
    (derivative,) = torch.autograd.grad(law.sigma(t).sum(), t)
    assert torch.allclose(law.rate(t), derivative)
    assert torch.allclose(law.time(law.sigma(t)), t)


def test_the_vp_law_goes_through_its_two_levels():
    sigma = VP.through(0.01, 50, epsilon_s=0.1).sigma(doubles(0.1, 1))
    assert torch.allclose(sigma, doubles(0.01, 50))


@pytest.mark.parametrize(("beta_d", "beta_min"), [(19.9, 0.1), (7.3, 0.31)])
def test_the_published_rounding_is_kept_to_the_bit(beta_d, beta_min):
    """As the published code writes it, in float32; `VP` itself is more exact."""
    t = torch.linspace(1e-5, 1, 1000)
    sigma = ((beta_d * t**2 / 2 + beta_min * t).exp() - 1).sqrt()
    published = PublishedVP(beta_d, beta_min)
    assert torch.equal(published.sigma(t), sigma)
    time = ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d
    assert torch.equal(published.time(sigma), time)
    assert not torch.equal(VP(beta_d, beta_min).sigma(t), sigma)
    torch.testing.assert_close(VP(beta_d, beta_min).sigma(t), sigma, rtol=0.05, atol=0)


@pytest.mark.parametrize("count", [1, 10, 1000])
@pytest.mark.parametrize(("c_1", "c_2"), [(0.001, 0.008), (0.02, 0.1)])
def test_iddpm_levels_are_those_of_both_published_codes_to_the_bit(count, c_1, c_2):
    """Floats in the sampler's grid, float32 tensors in the preconditioner's buffer."""
    j = torch.arange(count + 1, dtype=torch.float32)
    a = (0.5 * math.pi * j / count / (c_2 + 1)).sin() ** 2
    floats, tensors = [0.0], [torch.zeros(())]
    for i in range(count, 0, -1):
        ratio = (a[i - 1] / a[i]).clamp(min=c_1)
        floats.append(math.sqrt((floats[-1] ** 2 + 1) / float(ratio) - 1))
        tensors.append(((tensors[-1] ** 2 + 1) / ratio - 1).sqrt())
    assert torch.equal(iddpm_levels(count, c_1, c_2), doubles(*reversed(floats)))
    narrow = iddpm_levels(count, c_1, c_2, torch.float32)
    assert torch.equal(narrow, torch.stack(tensors[::-1]))


def test_geometric_levels_have_one_ratio_either_way():
    up = geometric(doubles(0, 0.25, 0.5, 0.75, 1), 0.02, 100)
    assert torch.allclose(up[1:] / up[:-1], doubles(5000).pow(0.25).expand(4))
    assert torch.allclose(geometric(doubles(1, 0.75, 0.5, 0.25, 0), 100, 0.02), up)


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_are_the_published_ones(golden, name):
    process, t = PROCESSES[name], golden["process_t"]
    sigma = process.sigma(t)
    scale = process.scale(sigma)
    rows = torch.stack([scale, sigma, scale * sigma, process.drift(t), process.diffusion(t)])
    assert torch.allclose(rows, golden[f"process_{name}"], rtol=1e-10, atol=1e-10)
    assert torch.allclose(process.time(sigma), t, rtol=1e-10)


@pytest.mark.parametrize("process", [*PROCESSES.values(), VP(3, 1), SubVP(3, 1), PublishedVP()])
def test_drift_and_diffusion_belong_to_scale_and_clock(process):
    """f = s'/s and g^2 = s^2 d(sigma^2)/dt."""
    t = doubles(0.01, 0.1, 0.5, 1)

    def derivative(function):
        return torch.autograd.functional.jacobian(function, t).diagonal()

    scale = process.scale(process.sigma(t))
    slope = derivative(lambda t: process.scale(process.sigma(t)))
    rate = derivative(lambda t: process.sigma(t) ** 2)
    assert torch.allclose(process.drift(t), slope / scale)
    assert torch.allclose(process.diffusion(t), scale**2 * rate)


@pytest.mark.parametrize("process", PROCESSES.values())
def test_a_process_makes_a_grid_of_equal_times(process):
    grid = process.grid(9, 1e-3)
    assert torch.allclose(process.time(grid[:-1]), torch.linspace(1, 1e-3, 9).double())
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    assert torch.equal(process.grid(1, 0.5), torch.stack([process.sigma(doubles(1))[0], grid[-1]]))


@pytest.mark.parametrize("steps", [50, 1000])
def test_the_levels_of_ddpm_are_the_published_ones(golden, steps):
    assert torch.allclose(ddpm_grid(steps), golden[f"ddpm{steps}_sigmas"], rtol=1e-10, atol=0)


def test_ddpms_clock_tends_to_vps():
    """Beta is evenly spaced in both; the chain's last level is below VP's by terms in 1 / T."""
    t = torch.linspace(1, 0.1, 10, dtype=torch.float64)

    def distance(steps):
        levels = ddpm_grid(steps)[((1 - t) * steps).round().long()]
        return float((levels / VP().sigma(t) - 1).abs().max())

    assert distance(10_000) < 0.02
    assert distance(10_000) / distance(1000) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("process", PROCESSES.values())
@pytest.mark.parametrize("sigma", [doubles(0.3)[0], doubles(0.02, 0.3, 40)])
def test_noise_prediction_and_denoiser_are_each_others_inverse(process, sigma):
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, sigma):
        return torch.tanh(x) * 0.5 / (1 + sigma.reshape(-1, 1, 1))

    again = scaled(noise_predictor(denoise, process), process)
    assert torch.allclose(again(x, sigma), denoise(x, sigma), rtol=1e-9, atol=1e-9)


def test_a_network_sees_the_scaled_state_and_its_time():
    seen = []
    network = lambda x, t: seen.append((x, t)) or torch.ones_like(x)  # noqa: E731
    x, t = doubles(1, 2)[:, None], doubles(0.3)[0]
    sigma = VP().sigma(t)
    assert torch.allclose(scaled(network, VP())(x, sigma), x - sigma)
    ((scaled_x, time),) = seen
    assert torch.allclose(scaled_x, x / (1 + sigma**2).sqrt())
    assert torch.allclose(time, t)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (lambda: VP().grid(0, 1e-3), "steps is 0: expected at least 1"),
        (lambda: VP().grid(5, 0.0), "end is 0.0: expected a time"),
        (lambda: SubVP().grid(5, 1.0), "end is 1.0: expected a time"),
        (lambda: ddpm_grid(0), "steps is 0"),
        (lambda: ddpm_grid(20), "beta_max < 20, the number of steps"),
        (lambda: ddpm_grid(50, 0.0), "0 < beta_min"),
    ],
)
def test_grids_that_cannot_be_made_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        grid()

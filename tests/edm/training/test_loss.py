"""The denoising loss: its distribution of sigmas, its weight, and its value for known denoisers."""

import math

import pytest
import tiny
import torch
from torch import Tensor, nn

from edm.training.augment import Augment
from edm.training.loss import EDM, VE, VP, Levels, LogUniform, Loss, denoising_loss, loss_at
from linear_structure.denoise import expand
from linear_structure.gaussian import Gaussian
from linear_structure.sampling.processes import ddpm_grid
from linear_structure.system.errors import UsageError

LOSSES = {
    "EDMPrecond": EDM(),
    "VPPrecond": VP(),
    "VEPrecond": VE(),
    "iDDPMPrecond": VP(),
    "NCSNPrecond": VE(),
}
QUANTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)


def gaussian() -> Gaussian:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    eigenvalues = torch.logspace(0.5, -3, 12, dtype=torch.float64)
    return Gaussian(torch.linspace(-1, 1, 12, dtype=torch.float64), basis, eigenvalues)


def draw(data: Gaussian, count: int) -> Tensor:
    noise = torch.randn(count, 12, dtype=torch.float64)
    flat = data.mean + (noise * data.eigenvalues.sqrt()) @ data.basis.T
    return flat.reshape(count, 3, 2, 2)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_loss_of_the_exact_denoiser_is_its_posterior_variance(sigma: float) -> None:
    """E|D - y|^2 = sum lam sigma^2 / (lam + sigma^2), which no denoiser beats."""
    torch.manual_seed(0)
    data, loss = gaussian(), EDM()
    images = draw(data, 40_000)
    variance = data.eigenvalues * sigma**2 / (data.eigenvalues + sigma**2)
    expected = float(loss.weight(torch.tensor(sigma)) * variance.mean())
    assert loss_at(loss, data.denoise, images, sigma) == pytest.approx(expected, rel=0.01)
    assert loss_at(loss, lambda x, s: 1.3 * data.denoise(x, s), images, sigma) > expected * 1.02


def test_training_loss_is_the_same_expectation_over_sigmas() -> None:
    torch.manual_seed(1)
    data, loss = gaussian(), EDM()
    images = draw(data, 40_000)
    found = denoising_loss(loss, lambda x, sigma, **_: data.denoise(x, sigma), images)
    assert found.shape == images.shape
    sigma = loss.sigmas(400_000).double()[:, None]
    variance = data.eigenvalues * sigma**2 / (data.eigenvalues + sigma**2)
    expected = (loss.weight(sigma) * variance).mean()
    assert float(found.mean()) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_weight_makes_errors_of_the_network_count_equally(name: str) -> None:
    """w c_out^2 = 1 at every sigma: the loss is the plain squared error of F."""
    network = tiny.network(precondition=name, img_resolution=4, img_channels=1)
    sigma = torch.logspace(-2, 2, 20)
    scale = network.coefficients(sigma).out ** 2
    torch.testing.assert_close(LOSSES[name].weight(sigma) * scale, torch.ones(20))


def normal_quantiles() -> Tensor:
    return torch.special.ndtri(QUANTILES)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (EDM(), torch.exp(-1.2 + 1.2 * normal_quantiles())),
        (EDM(mean=0.3, std=2.0), torch.exp(0.3 + 2.0 * normal_quantiles())),
        (EDM(log_uniform_share=1.0), 0.002 * 40_000**QUANTILES),
        (VE(), 0.02 * 5_000**QUANTILES),
        (LogUniform(0.3, 12.0), 0.3 * 40**QUANTILES),
        (VP(), torch.expm1(19.9 * QUANTILES**2 / 2 + 0.1 * QUANTILES).sqrt()),
    ],
)
def test_quantiles_of_sigma(loss: Loss, expected: Tensor) -> None:
    torch.manual_seed(0)
    found = torch.quantile(loss.sigmas(200_000).double(), QUANTILES)
    torch.testing.assert_close(found.log(), expected.log(), atol=0.03, rtol=0.01)


def test_vp_sigmas_are_the_published_formula_to_the_bit() -> None:
    torch.manual_seed(0)
    found = VP().sigmas(1000)
    torch.manual_seed(0)
    t = 1 + torch.rand(1000) * (1e-5 - 1)
    assert torch.equal(found, ((19.9 * t**2 / 2 + 0.1 * t).exp() - 1).sqrt())


def test_ve_sigmas_and_weight_are_the_published_formulas_to_the_bit() -> None:
    torch.manual_seed(0)
    found = VE().sigmas(1000)
    torch.manual_seed(0)
    assert torch.equal(found, 0.02 * (100 / 0.02) ** torch.rand(1000))
    assert torch.equal(VE().weight(found), found**-2)
    assert torch.equal(VP().weight(found), found**-2)


def test_log_uniform_has_the_weight_of_edm_where_the_data_have_a_size() -> None:
    sigma = torch.logspace(-3, 2, 20, dtype=torch.float64)
    expected = EDM(sigma_data=1.7).weight(sigma)
    torch.testing.assert_close(LogUniform(1, 2, sigma_data=1.7).weight(sigma), expected)


def test_every_level_is_as_likely_as_the_others() -> None:
    torch.manual_seed(0)
    levels = ddpm_grid(21)[:-1]
    drawn = Levels(levels).sigmas(42_000)
    assert drawn.dtype == torch.float32
    found, counts = drawn.unique(return_counts=True)
    assert torch.equal(found, levels.float().flip(0))
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 45.3  # chi-squared of 20, 1 in 1000


def test_levels_outside_a_range_are_left_out() -> None:
    grid = ddpm_grid(1000)[:-1]
    inside = Levels(grid).within(0.02, 80.0).levels
    assert torch.equal(inside, grid[(grid > 0.02) & (grid < 80)])
    assert 0 < len(inside) < 1000
    assert torch.equal(Levels(grid).within(float(grid[-1]), float(grid[0])).levels, grid)
    with pytest.raises(UsageError, match=r"none of the 1000 .* lies in .* range, 200 to 300"):
        Levels(grid).within(200.0, 300.0)


def test_the_loss_at_levels_is_the_error_of_the_noise() -> None:
    """DDPM's simple loss, |eps - eps_hat|^2, for D = x - sigma eps_hat."""
    images, seen = torch.rand(50, 1, 4, 4, dtype=torch.float64), {}
    levels = Levels(ddpm_grid(30)[:-1])

    def network(x: Tensor, sigma: Tensor, **_: Tensor) -> Tensor:
        seen["sigma"] = expand(sigma, x)
        return x - seen["sigma"] * torch.sin(x)

    torch.manual_seed(3)
    found = denoising_loss(levels, network, images)
    torch.manual_seed(3)
    levels.sigmas(50)
    noise = torch.randn_like(images)
    expected = (torch.sin(images + seen["sigma"] * noise) - noise) ** 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_the_loss_at_levels_is_the_mean_over_them() -> None:
    torch.manual_seed(1)
    data, levels = gaussian(), torch.tensor([3.0, 0.7, 0.1], dtype=torch.float64)
    images = draw(data, 40_000)
    found = denoising_loss(Levels(levels), lambda x, sigma, **_: data.denoise(x, sigma), images)
    shares = data.eigenvalues / (data.eigenvalues + levels[:, None] ** 2)
    assert float(found.mean()) == pytest.approx(float(shares.mean()), rel=0.02)


def test_share_of_log_uniform_sigmas_reaches_what_the_normal_ones_do_not() -> None:
    torch.manual_seed(0)
    plain, broad = EDM().sigmas(200_000), EDM(log_uniform_share=0.15).sigmas(200_000)
    assert float((plain > 20).double().mean()) == pytest.approx(2.4e-4, rel=0.3)
    above = 0.15 * math.log(80 / 20) / math.log(80 / 0.002) + 0.85 * 2.4e-4
    assert float((broad > 20).double().mean()) == pytest.approx(above, rel=0.05)
    assert broad.min() >= 1e-4


def test_random_numbers_are_drawn_for_sigma_then_augmentation_then_noise() -> None:
    images, seen = torch.rand(6, 1, 8, 8), {}
    augment, loss = Augment(0.5), EDM(log_uniform_share=0.15)

    def network(x: Tensor, sigma: Tensor, **labels: Tensor) -> Tensor:
        seen.update(x=x, sigma=sigma, **labels)
        return x

    torch.manual_seed(5)
    denoising_loss(loss, network, images, augment=augment)
    torch.manual_seed(5)
    sigma = loss.sigmas(6)
    clean, labels = augment(images)
    noisy = clean + expand(sigma, clean) * torch.randn_like(clean)
    assert torch.equal(seen["sigma"], sigma)
    assert torch.equal(seen["augment_labels"], labels)
    assert torch.equal(seen["x"], noisy)


def conditional_network() -> nn.Module:
    return tiny.network(None, img_channels=1, label_dim=3, augment_dim=9).requires_grad_()


def test_a_function_that_gives_constant_labels_is_these_labels() -> None:
    network, images = conditional_network(), torch.rand(6, 1, 8, 8)
    labels = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    errors = []
    for given in (labels, lambda clean, sigma: labels, labels.flip(0)):
        torch.manual_seed(5)
        errors.append(denoising_loss(EDM(), network, images, given, Augment(0.5)))
    assert torch.equal(errors[0], errors[1])
    assert not torch.equal(errors[0], errors[2])


def test_labels_are_made_of_the_augmented_images_and_the_sigmas_drawn() -> None:
    network, images, augment, seen = conditional_network(), torch.rand(6, 1, 8, 8), Augment(0.5), []

    def encode(clean: Tensor, sigma: Tensor) -> Tensor:
        seen.extend([clean, sigma])
        return torch.zeros(6, 3)

    torch.manual_seed(5)
    denoising_loss(EDM(), network, images, encode, augment)
    torch.manual_seed(5)
    sigma = EDM().sigmas(6)
    assert torch.equal(seen[1], sigma)
    assert torch.equal(seen[0], augment(images)[0])
    assert not torch.equal(seen[0], images)


def test_gradients_reach_what_makes_the_labels() -> None:
    """The gradient of a bias of the encoder is the difference quotient of the loss."""
    network, images = conditional_network(), torch.rand(6, 1, 8, 8)
    encoder = nn.Linear(64, 3)

    def encode(clean: Tensor, sigma: Tensor) -> Tensor:
        return encoder(clean.flatten(1)) / sigma[:, None]

    def loss_with(bias: float) -> Tensor:
        with torch.no_grad():
            encoder.bias[1] = bias
        torch.manual_seed(5)
        return denoising_loss(EDM(), network, images, encode).sum()

    loss_with(0.3).backward()
    quotient = float((loss_with(0.31) - loss_with(0.29)).detach()) / 0.02
    assert abs(quotient) > 1
    assert quotient == pytest.approx(float(encoder.bias.grad[1]), rel=0.01)

"""Preconditioners against their published values, and the networks as denoisers."""

import json
import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.precondition import PRECONDITIONERS, Preconditioned, build
from linear_structure.sampling.processes import iddpm_levels
from linear_structure.system.errors import UsageError

SMALL = {"channel_mult": [1, 2], "attn_resolutions": [4]}
ROUNDING = 1e-5  # of float32 through a whole network, relative to the largest value
KINDS = list(PRECONDITIONERS)


def network(precondition: str = "EDMPrecond", **options: Any) -> Preconditioned:
    torch.manual_seed(0)
    made = build(tiny.config(precondition=precondition, **SMALL | options))
    for parameter in made.requires_grad_(False).parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return made.eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_images_of_integers_are_refused():
    with pytest.raises(UsageError, match="x is uint8: expected floats, of uint8 `from_uint8"):
        network()(images().to(torch.uint8), torch.tensor(1.0))


# Coefficients


def test_edm_values() -> None:
    c = network().coefficients(torch.tensor([0.5, 80.0]))
    assert torch.allclose(c.skip, torch.tensor([0.5, 3.9060975e-05]), rtol=1e-6)
    assert torch.allclose(c.out, torch.tensor([0.35355338, 0.49999022]), rtol=1e-6)
    assert torch.allclose(c.input, torch.tensor([1.4142135, 0.012499755]), rtol=1e-6)
    assert torch.allclose(c.noise, torch.tensor([-0.1732868, 1.0955067]), rtol=1e-6)


def test_edm_keeps_unit_variance_in_and_out() -> None:
    """Var(c_in x) = 1, and Var((y - c_skip x) / c_out) = 1 with the least possible c_out."""
    data, sigma = 0.7, torch.logspace(-2, 2, 9)
    c = network(sigma_data=data).coefficients(sigma)
    variance = data**2 + sigma**2
    assert torch.allclose(c.input**2 * variance, torch.ones(9))
    error = (1 - c.skip) ** 2 * data**2 + c.skip**2 * sigma**2
    assert torch.allclose(error / c.out**2, torch.ones(9))
    assert torch.allclose(c.skip, data**2 / variance)


def test_vp_values() -> None:
    vp = network("VPPrecond")
    assert (vp.sigma_min, vp.sigma_max) == (0.0009765625, 152.16697692871094)
    time = torch.linspace(0.01, 1, 7)
    sigma = vp.process.sigma(time)
    assert torch.allclose(1 + sigma**2, (19.9 * time**2 / 2 + 0.1 * time).exp())
    c = vp.coefficients(sigma)
    assert torch.allclose(c.noise, 999 * time, rtol=1e-4)
    root = (0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt()
    assert torch.equal(c.noise, 999 * ((root - 0.1) / 19.9))
    assert torch.allclose(c.input**2 * (1 + sigma**2), torch.ones(7))
    assert torch.equal(c.out, -sigma) and torch.equal(c.skip, torch.ones(7))


def test_ve_values() -> None:
    ve, sigma = network("VEPrecond"), torch.tensor([0.02, 2.0, 100.0])
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 100)
    c = ve.coefficients(sigma)
    assert torch.allclose(c.noise, torch.tensor([math.log(0.01), 0, math.log(50)]))
    assert torch.equal(c.out, sigma)
    assert torch.equal(c.skip, torch.ones(3)) and torch.equal(c.input, torch.ones(3))


def test_ncsn_values() -> None:
    """Technique 3: F never hears of sigma, so (D - x) / sigma is the same at all of them."""
    ncsn, x = network("NCSNPrecond"), images()
    assert (ncsn.sigma_min, ncsn.sigma_max) == (0.02, 100)
    predicted = [(ncsn(x, torch.tensor(sigma)) - x) / sigma for sigma in (0.3, 1.0, 40.0)]
    for each in predicted:
        assert relative(each, ncsn.model(x, torch.zeros(1))) < ROUNDING


@pytest.mark.parametrize("kind", ["EDMPrecond", "VEPrecond", "NCSNPrecond"])
def test_the_range_of_noise_levels_is_an_option(kind: str) -> None:
    ranged = network(kind, sigma_min=0.1, sigma_max=7.0)
    assert (ranged.sigma_min, ranged.sigma_max) == (0.1, 7.0)
    assert ranged.config.items() >= {"sigma_min": 0.1, "sigma_max": 7.0}.items()


def test_iddpm_levels() -> None:
    u = iddpm_levels(dtype=torch.float32)
    assert u.shape == (1001,) and u.dtype == torch.float32
    assert u[-1] == 0 and (u.diff() < 0).all()
    j = torch.arange(1001, dtype=torch.float64)
    a = (math.pi / 2 * j / (1000 * 1.008)).sin() ** 2
    ratio = (u[1:].double() ** 2 + 1) / (u[:-1].double() ** 2 + 1)
    assert torch.allclose(ratio, (a[:-1] / a[1:]).clamp(min=0.001), rtol=1e-3)


def test_iddpm_values() -> None:
    iddpm = network("iDDPMPrecond")
    ends = iddpm.sigma_min, iddpm.sigma_max
    assert ends == pytest.approx((0.006422337144613266, 20291.171875), rel=2e-7)  # float32's sine
    assert next(iter(iddpm.state_dict())) == "u"
    levels = iddpm.u[[0, 1, 500, 999]]
    c = iddpm.coefficients(levels)
    assert c.noise.tolist() == [999, 998, 499, 0]
    assert torch.equal(c.out, -levels)
    assert torch.allclose(c.input**2 * (1 + levels**2), torch.ones(4))


def test_iddpm_rounds_to_its_levels() -> None:
    iddpm = network("iDDPMPrecond")
    assert torch.equal(iddpm.round_sigma(iddpm.u), iddpm.u)
    between = (iddpm.u[10:990:7] * 0.9 + iddpm.u[11:991:7] * 0.1).double().reshape(2, -1)
    rounded = iddpm.round_sigma(between)
    assert rounded.dtype == torch.float64 and rounded.shape == between.shape
    assert torch.equal(rounded.flatten().float(), iddpm.u[10:990:7])
    assert iddpm.round_sigma(30000.0) == iddpm.u[0]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_other_noise_levels_stay(kind: str) -> None:
    sigma = torch.tensor([0.1, 7.3], dtype=torch.float64)
    assert torch.equal(network(kind).round_sigma(sigma), sigma)
    assert network(kind).round_sigma(0.7).dtype == torch.float32


# Denoisers


@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_is_the_written_formula(kind: str) -> None:
    made, x, sigma = network(kind), images(), torch.tensor([0.3, 5.0])
    c = [value[:, None, None, None] for value in made.coefficients(sigma)]
    output = made.model(c[2] * x, c[3].flatten())[:, :3]
    assert relative(made(x, sigma), c[0] * x + c[1] * output) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_denoiser_returns_shape_and_dtype(kind: str, dtype: torch.dtype) -> None:
    made, x = network(kind), images().to(dtype)
    denoised = made(x, torch.tensor(0.3, dtype=torch.float64))
    assert denoised.shape == x.shape and denoised.dtype == dtype
    assert torch.equal(denoised, made(x.float(), torch.tensor(0.3)).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_one_sigma_is_that_sigma_for_each(kind: str) -> None:
    made, x = network(kind), images(3)
    batched = made(x, torch.full((3,), 0.8))
    assert relative(made(x, torch.tensor(0.8)), batched) < ROUNDING
    alone = torch.cat([made(image, torch.tensor([0.8])) for image in x.split(1)])
    assert relative(alone, batched) < ROUNDING


def test_sigma_has_one_value_or_one_for_each() -> None:
    with pytest.raises(ValueError, match=r"expected \(\) or \(2,\)"):
        network()(images(), torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_nothing_changes(kind: str) -> None:
    x, sigma = images(), torch.tensor(1e-6)
    assert torch.allclose(network(kind)(x, sigma), x, atol=2e-5)


def test_iddpm_ignores_the_predicted_variance() -> None:
    made, x, sigma = network("iDDPMPrecond"), images(), torch.tensor(1.0)
    denoised = made(x, sigma)
    head = made.model.dec["8x8_aux_conv"]
    assert head.weight.shape[0] == 6
    head.weight[3:] += 1
    assert torch.equal(made(x, sigma), denoised)
    head.weight[:3] += 1
    assert not torch.allclose(made(x, sigma), denoised)


def test_the_compute_dtype_reaches_the_model_only() -> None:
    made, x, sigma = network(), images(), torch.tensor(0.5)
    full = made(x, sigma)
    made.compute_dtype = torch.bfloat16
    narrow = made(x, sigma)
    assert narrow.dtype == torch.float32
    assert 1e-5 < relative(narrow, full) < 0.05
    assert torch.equal(made(x, sigma, force_fp32=True), full)
    near = torch.tensor(1e-4)
    assert relative(made(x, near), x) < 1e-3, "the skip connection must not be rounded"


def test_float16_is_for_cuda_only() -> None:
    made, x, sigma = network(use_fp16=True), images(), torch.tensor(0.5)
    full = network()(x, sigma)
    assert torch.equal(made(x, sigma), full)
    if torch.cuda.is_available():
        narrow = made.cuda()(x.cuda(), sigma.cuda()).cpu()
        assert 1e-5 < relative(narrow, full) < 0.05


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet"])
def test_the_graph_has_no_breaks(model: str) -> None:
    made = network(model_type=model, label_dim=4)
    denoise = torch.compile(made, backend="eager", fullgraph=True)
    x, sigma, labels = images(), torch.tensor(0.5), torch.eye(4)[:2]
    assert torch.equal(denoise(x, sigma, labels), made(x, sigma, labels))


# Labels


@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet"])
def test_binding_is_passing_labels(model: str) -> None:
    made, x, sigma = network(model_type=model, label_dim=4), images(), torch.tensor(0.5)
    classes = torch.tensor([2, 0])
    passed = made(x, sigma, F.one_hot(classes, 4).float())
    assert torch.equal(made.bind(classes)(x, sigma), passed)
    assert torch.equal(made.bind(classes.to(torch.uint8))(x, sigma), passed)
    assert torch.equal(made.bind(torch.eye(4, dtype=torch.float64)[[2, 0]])(x, sigma), passed)
    assert not torch.allclose(made.bind(classes.flip(0))(x, sigma), passed)


def test_no_labels_are_zero_labels() -> None:
    made, x, sigma = network(label_dim=4), images(), torch.tensor(0.5)
    assert relative(made(x, sigma), made(x, sigma, torch.zeros(2, 4))) < ROUNDING


def test_an_unconditional_network_ignores_empty_labels() -> None:
    made, x, sigma = network(), images(), torch.tensor(0.5)
    assert torch.equal(made(x, sigma, torch.zeros(2, 0)), made(x, sigma))


@pytest.mark.parametrize(
    ("label_dim", "labels", "message"),
    [
        (0, torch.tensor([1, 2]), "unconditional"),
        (4, torch.tensor([1, 4]), "between 1 and 4: the network knows the classes 0 to 3"),
        (4, torch.tensor([-1, 2]), "between -1 and 2"),
        (4, torch.zeros(2, 3), r"shape \(2, 3\)"),
        (4, torch.zeros(2), r"shape \(2,\)"),
        (4, torch.zeros(2, 4, dtype=torch.int64), "expected integers"),
    ],
)
def test_wrong_labels_are_refused(label_dim: int, labels: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        network(label_dim=label_dim).bind(labels)


def test_augment_labels_reach_the_network() -> None:
    made, x, sigma = network(augment_dim=9), images(), torch.tensor(0.5)
    none = made(x, sigma)
    assert relative(made(x, sigma, augment_labels=torch.zeros(2, 9)), none) < ROUNDING
    assert relative(made(x, sigma, augment_labels=torch.ones(2, 9)), none) > 1e-3


# Configurations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet"])
def test_a_configuration_makes_the_same_network(kind: str, model: str) -> None:
    made = network(kind, model_type=model, label_dim=4, augment_dim=9, dropout=0.2)
    again = build(json.loads(json.dumps(made.config)))
    assert again.config == made.config
    again.load_state_dict(made.state_dict())
    x, sigma, labels = images(), torch.tensor(0.5), torch.eye(4)[:2]
    assert torch.equal(again.eval()(x, sigma, labels), made(x, sigma, labels))


def test_a_configuration_is_complete() -> None:
    least = {"precondition": "VPPrecond", "img_resolution": 8, "img_channels": 1}
    with torch.device("meta"):
        config = build(least).config
    published = {"model_type": "SongUNet", "beta_d": 19.9, "M": 1000, "label_dim": 0}
    published |= {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4}
    published |= {"attn_resolutions": [16], "dropout": 0.1, "resample_filter": [1, 1]}
    assert config.items() >= (least | published).items()


def test_the_default_model_depends_on_the_preconditioner() -> None:
    for kind in KINDS:
        with torch.device("meta"):
            made = build({"precondition": kind, "img_resolution": 32, "img_channels": 3})
        songs = ("VPPrecond", "VEPrecond", "NCSNPrecond")
        expected = "SongUNet" if kind in songs else "DhariwalUNet"
        assert made.config["model_type"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precondition": "EDM2Precond"}, "unknown precondition 'EDM2Precond'"),
        ({"precondition": ["EDMPrecond"]}, "unknown precondition"),
        ({"model_type": "UViT"}, "unknown model type 'UViT'; known are SongUNet, DhariwalUNet"),
        ({"depth": 3}, "unknown option 'depth' of SongUNet"),
        ({"in_channels": 3}, "unknown option 'in_channels'"),
        ({"beta_d": 19.9}, "unknown option 'beta_d'"),
        ({"img_channels": 0}, "'img_channels' is 0"),
        ({"sigma_data": -1}, "'sigma_data' is -1"),
        ({"use_fp16": 1}, "'use_fp16' is 1: expected bool"),
        ({"precondition": "iDDPMPrecond", "M": 10**9}, "'M' is 1000000000"),
        ({"model_channels": 260}, "260 channels"),
    ],
)
def test_wrong_configurations_are_named(change: dict[str, Any], message: str) -> None:
    config = tiny.config(**SMALL | change)
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        build(config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_built_without_values_and_given_them(kind: str) -> None:
    made = network(kind, embedding_type="fourier", resample_filter=[1, 3, 3, 1])
    state = torch.get_rng_state()
    with torch.device("meta"):
        empty = build(made.config).eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.is_meta for value in empty.state_dict().values())
    assert (empty.sigma_min, empty.sigma_max) == (made.sigma_min, made.sigma_max)
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty(images(), torch.tensor(0.5)), made(images(), torch.tensor(0.5)))

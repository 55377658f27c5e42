"""The networks against published numbers, against their formulas, and against themselves."""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks import ADM, ADMOptions, DDPMpp, DDPMppOptions
from edm.networks.block import UNetBlock
from edm.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    PositionalEmbedding,
    Resample,
    outer_filter,
)
from edm.networks.unet import drop_labels
from edm.precondition import build
from linear_structure.system.errors import UsageError
from linear_structure.system.options import parse, plain

Network = TypeVar("Network", bound=nn.Module)

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "networks.json").read_text())
NOT_OPTIONS = {"sigma", "classes", "round_sigma", "sigma_min", "sigma_max", "parameters"}

DDPMPP = {
    "precondition": "EDMPrecond",
    "model_type": "SongUNet",
    "img_resolution": 32,
    "img_channels": 3,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "augment_dim": 9,
    "dropout": 0.13,
    "use_fp16": False,
}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
AT_64 = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}
IMAGENET = {
    "precondition": "EDMPrecond",
    "model_type": "DhariwalUNet",
    "img_resolution": 64,
    "img_channels": 3,
    "label_dim": 1000,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "use_fp16": True,
}
ROUNDING = 1e-5  # of float32 through a whole network, relative to the largest value
SMALL = {"img_resolution": 8, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build(config).state_dict().items()}


def ddpmpp(**options: Any) -> DDPMpp:
    torch.manual_seed(0)
    options = SMALL | {"attn_resolutions": (4,)} | options
    return randomised(DDPMpp(DDPMppOptions(**options), 3, 3).eval())


def adm(**options: Any) -> ADM:
    torch.manual_seed(0)
    options = SMALL | {"model_channels": 64, "attn_resolutions": (8,)} | options
    return randomised(ADM(ADMOptions(**options), 3, 3).eval())


def randomised(network: Network) -> Network:
    """Fresh networks are almost exactly zero: give every weight the size of its fan-in."""
    network.requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def images(batch: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# Published numbers


@pytest.mark.parametrize("name", CASES)
def test_published_networks_give_their_published_output(name: str) -> None:
    case = CASES[name]
    network = build({key: value for key, value in case.items() if key not in NOT_OPTIONS}).eval()
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if not key.endswith("resample_filter"):
                value.copy_(golden_values(key, value.shape))
    sigma = np.array(case["sigma"])
    noise = np.random.default_rng(7).standard_normal((2, 3, 16, 16))
    x = torch.tensor(noise * sigma[:, None, None, None], dtype=torch.float32)
    labels = None if case["classes"] is None else F.one_hot(torch.tensor(case["classes"]), 10)
    with torch.no_grad():
        denoised = network(x, torch.tensor(sigma), labels)
    expected = torch.tensor(np.load(GOLDEN / "networks.npz")[name])
    assert relative(denoised, expected) < (3e-5 if "vp" in name else 1e-5)
    assert (network.sigma_min, network.sigma_max) == (case["sigma_min"], case["sigma_max"])
    for sigma, rounded in case["round_sigma"].items():
        assert float(network.round_sigma(float(sigma))) == rounded


def golden_values(name: str, shape: torch.Size) -> Tensor:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("freqs"):
        z = 16 * z
    elif len(shape) > 1:
        z = z / math.sqrt(math.prod(shape[1:]))
    else:
        z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return torch.tensor(z, dtype=torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_published_names_and_shapes(name: str) -> None:
    case = CASES[name]
    config = {key: value for key, value in case.items() if key not in NOT_OPTIONS}
    with torch.device("meta"):
        network = build(config)
    named = {key: list(value.shape) for key, value in network.named_parameters()}
    expected = {k: v for k, v in case["parameters"].items() if not k.endswith("freqs")}
    assert list(named.items()) == list(expected.items())
    assert ("model.map_noise.freqs" in network.state_dict()) == ("ncsnpp" in name)


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (DDPMPP, 55_733_891, (417, 8)),
        (DDPMPP | {"label_dim": 10}, 55_735_299, (419, 8)),
        (NCSNPP, 56_397_827, (421, 11)),
        (NCSNPP | {"label_dim": 10}, 56_400_643, (423, 11)),
        (DDPMPP | AT_64, 61_805_571, (541, 12)),
        (NCSNPP | AT_64, 62_761_091, (547, 16)),
        (IMAGENET, 295_899_267, (541, 12)),
    ],
)
def test_published_sizes(config: dict[str, Any], parameters: int, tensors: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = build(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (len(list(network.parameters())), len(list(network.buffers()))) == tensors
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


def block_shapes(spec: str, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors, in order, of a DDPM++ block written as "256 256 S A R" (edm.md 2.6)."""
    ci, co, *marks = spec.split()
    i, o = int(ci), int(co)
    taps = {"resample_filter": (1, 1, 2, 2)} if "R" in marks else {}
    layers: dict[str, dict[str, tuple[int, ...]]] = {
        "norm0": {"weight": (i,), "bias": (i,)},
        "conv0": {"weight": (o, i, 3, 3), "bias": (o,), **taps},
        "affine": {"weight": (o, 512), "bias": (o,)},
        "norm1": {"weight": (o,), "bias": (o,)},
        "conv1": {"weight": (o, o, 3, 3), "bias": (o,)},
    }
    if "S" in marks:
        layers["skip"] = {"weight": (o, i, 1, 1), "bias": (o,), **taps}
    if "A" in marks:
        layers["norm2"] = {"weight": (o,), "bias": (o,)}
        layers["qkv"] = {"weight": (3 * o, o, 1, 1), "bias": (3 * o,)}
        layers["proj"] = {"weight": (o, o, 1, 1), "bias": (o,)}
    return {f"{prefix}.{n}.{t}": shape for n, layer in layers.items() for t, shape in layer.items()}


def test_the_cifar_10_network_tensor_by_tensor() -> None:
    plain_block, up_or_down = "256 256", "256 256 S R"
    encoder = {"32x32_block0": "128 256 S"}
    encoder |= {f"32x32_block{i}": plain_block for i in (1, 2, 3)}
    encoder |= {"16x16_down": up_or_down}
    encoder |= {f"16x16_block{i}": "256 256 A" for i in range(4)}
    encoder |= {"8x8_down": up_or_down}
    encoder |= {f"8x8_block{i}": plain_block for i in range(4)}
    decoder = {"8x8_in0": "256 256 A", "8x8_in1": plain_block}
    decoder |= {f"8x8_block{i}": "512 256 S" for i in range(5)}
    decoder |= {"16x16_up": up_or_down}
    decoder |= {f"16x16_block{i}": "512 256 S" for i in range(4)}
    decoder |= {"16x16_block4": "512 256 S A", "32x32_up": up_or_down}
    decoder |= {f"32x32_block{i}": "512 256 S" for i in range(4)}
    decoder |= {"32x32_block4": "384 256 S"}
    expected: dict[str, tuple[int, ...]] = {
        "model.map_augment.weight": (128, 9),
        "model.map_layer0.weight": (512, 128),
        "model.map_layer0.bias": (512,),
        "model.map_layer1.weight": (512, 512),
        "model.map_layer1.bias": (512,),
        "model.enc.32x32_conv.weight": (128, 3, 3, 3),
        "model.enc.32x32_conv.bias": (128,),
    }
    for name, spec in encoder.items():
        expected |= block_shapes(spec, f"model.enc.{name}")
    for name, spec in decoder.items():
        expected |= block_shapes(spec, f"model.dec.{name}")
    expected |= {
        "model.dec.32x32_aux_norm.weight": (256,),
        "model.dec.32x32_aux_norm.bias": (256,),
        "model.dec.32x32_aux_conv.weight": (3, 256, 3, 3),
        "model.dec.32x32_aux_conv.bias": (3,),
    }
    assert list(shapes(DDPMPP).items()) == list(expected.items())


def test_ncsnpp_takes_the_image_in_at_every_level() -> None:
    tensors = shapes(NCSNPP)
    assert tensors["model.map_noise.freqs"] == (128,)
    assert tensors["model.map_augment.weight"] == (256, 9)
    assert tensors["model.map_layer0.weight"] == (512, 256)
    for level, channels in (("16x16", 3), ("8x8", 256)):
        name = f"model.enc.{level}_aux_residual"
        assert tensors[f"{name}.weight"] == (256, channels, 3, 3)
        assert tensors[f"{name}.bias"] == (256,)
        assert tensors[f"{name}.resample_filter"] == (1, 1, 4, 4)


def test_adm_resamples_its_skips_without_weights() -> None:
    tensors = shapes(IMAGENET)
    assert tensors["model.map_label.weight"] == (768, 1000)
    assert "model.map_label.bias" not in tensors
    assert tensors["model.enc.64x64_block0.affine.weight"] == (384, 768)
    assert tensors["model.out_norm.weight"] == (192,)
    assert tensors["model.out_conv.weight"] == (3, 192, 3, 3)
    skip = [name for name in tensors if name.startswith("model.enc.32x32_down.skip")]
    assert skip == ["model.enc.32x32_down.skip.resample_filter"]


def test_the_order_of_the_mappings() -> None:
    conditional = {"label_dim": 10, "augment_dim": 9}
    order = {}
    for config in (DDPMPP | conditional, IMAGENET | conditional):
        names = [name.split(".")[1] for name in shapes(config)]
        order[config["model_type"]] = [n for n in dict.fromkeys(names) if n.startswith("map")]
    assert order["SongUNet"] == ["map_label", "map_augment", "map_layer0", "map_layer1"]
    assert order["DhariwalUNet"] == ["map_augment", "map_layer0", "map_layer1", "map_label"]


# Layers


def test_positional_embedding_values() -> None:
    half = torch.tensor([0.5])
    last = [[0.87758255, 0.99973071, 0.99999940, 1, 0.47942555, 0.02320586, 0.00107722, 5e-5]]
    assert torch.allclose(PositionalEmbedding(8, True)(half), torch.tensor(last), atol=5e-8)
    open_ended = [[0.87758255, 0.99875027, 0.99998748, 0.99999988]]
    open_ended[0] += [0.47942555, 0.04997917, 0.00499998, 0.0005]
    assert torch.allclose(PositionalEmbedding(8, False)(half), torch.tensor(open_ended), atol=5e-8)


def test_fourier_embedding_is_periodic_in_its_frequencies() -> None:
    embedding = FourierEmbedding(6)
    embedding.freqs.copy_(torch.tensor([0.25, 1.0, 2.0]))
    expected = torch.tensor([[0.0, 1, 1, 1, 0, 0]])
    assert torch.allclose(embedding(torch.ones(1)), expected, atol=1e-6)


def test_resampling_a_ramp() -> None:
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
    kernel = outer_filter((1, 3, 3, 1))
    assert kernel[0, 0, 0].tolist() == [0.015625, 0.046875, 0.046875, 0.015625]
    down = Resample("down", (1, 3, 3, 1))(ramp)
    assert down.flatten().tolist() == [2.734375, 3.9375, 7.546875, 8.75]
    up = Resample("up", (1, 3, 3, 1))(ramp)
    assert up.shape == (1, 1, 8, 8)
    assert up[0, 0, 1].tolist() == [0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 3.0]


def test_box_resampling_is_the_mean_and_the_nearest_neighbour() -> None:
    x = images()
    assert torch.allclose(Resample("down", (1, 1))(x), F.avg_pool2d(x, 2), atol=1e-6)
    assert torch.equal(Resample("up", (1, 1))(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_convolution_resamples_first_unless_told_otherwise() -> None:
    x, taps = images(), (1, 3, 3, 1)
    kernel = outer_filter(taps).expand(5, -1, -1, -1)
    for direction in ("up", "down"):
        layer = randomised(Conv2d(3, 5, 3, Init(), direction, taps))
        resampled = Resample(direction, taps)(x)
        expected = F.conv2d(resampled, layer.weight, layer.bias, padding=1)
        assert torch.equal(layer(x), expected)
    last = randomised(Conv2d(3, 5, 3, Init(), "down", taps, filter_last=True))
    wide = F.conv2d(F.pad(x, (2, 2, 2, 2)), last.weight)
    expected = F.conv2d(wide, kernel, stride=2, groups=5) + last.bias[:, None, None]
    assert torch.allclose(last(x), expected, atol=1e-6)


def test_group_norm_has_at_least_four_channels_in_a_group() -> None:
    assert [GroupNorm(c, 1e-6).groups for c in (4, 8, 64, 128, 256)] == [1, 2, 16, 32, 32]
    x = images(channels=16) * 3 + 1
    grouped = GroupNorm(16, 0.0)(x).unflatten(1, (4, 4))
    assert torch.allclose(grouped.mean((2, 3, 4)), torch.zeros(2, 4), atol=1e-6)
    assert torch.allclose(grouped.var((2, 3, 4), correction=0), torch.ones(2, 4), atol=1e-5)
    with pytest.raises(UsageError, match="132 channels"):
        GroupNorm(132, 1e-6)


# Blocks


def blocks(network: nn.Module) -> list[UNetBlock]:
    return [each for each in network.modules() if isinstance(each, UNetBlock)]


def written_attention(part: UNetBlock, x: Tensor) -> Tensor:
    """edm.md 2.2, step 5, as it stands there."""
    n, channels, height, width = x.shape
    size = channels // part.heads
    t = part.qkv(part.norm2(x)).reshape(n * part.heads, size, 3, height * width)
    q, k, v = t.unbind(2)
    weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(size)).softmax(2)
    mixed = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
    return part.proj(mixed)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("make", "heads"), [(ddpmpp, 1), (lambda: adm(model_channels=192), 3)])
def test_attention_is_the_written_formula(
    make: Callable[[], nn.Module], heads: int, form: torch.memory_format
) -> None:
    part = next(each for each in blocks(make()) if each.heads)
    assert part.heads == heads
    x = images(channels=part.out_channels).contiguous(memory_format=form)
    assert relative(part._attend(x), written_attention(part, x)) < ROUNDING


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_a_block_is_the_written_formula(make: Callable[[], nn.Module]) -> None:
    network = make()
    features = network.options.embedding_channels
    embedding = torch.randn(2, features)
    for part in blocks(network):
        x = images(channels=part.norm0.weight.numel())
        a = part.affine(embedding)[:, :, None, None]
        h = part.conv0(F.silu(part.norm0(x)))
        if make is adm:
            scale, shift = a[:, : part.out_channels], a[:, part.out_channels :]
            h = F.silu(shift + part.norm1(h) * (scale + 1))
        else:
            h = F.silu(part.norm1(h + a))
        scale = 1 if make is adm else math.sqrt(0.5)
        h = (part.conv1(h) + (part.skip(x) if part.skip else x)) * scale
        if part.heads:
            h = (h + written_attention(part, h)) * scale
        assert relative(part(x, embedding), h) < ROUNDING


# Encoder and decoder types


def record(network: nn.Module, *args: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """First input and output of every module, by name, in one forward pass."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: calls.update({name: (inputs[0], output)})
        )
    network(*args)
    return calls


def last_popped(calls: dict[str, tuple[Tensor, Tensor]], level: str) -> Tensor:
    """What the encoder hands to a level's last decoder block: its input to the first block."""
    joined, first = calls[f"dec.{level}_block1"][0], calls[f"enc.{level}_block0"][0]
    return joined[:, -first.shape[1] :]


def test_the_residual_encoder_averages_the_image_in() -> None:
    options = {
        "encoder_type": "residual",
        "resample_filter": (1, 3, 3, 1),
        "channel_mult": (1, 2, 2),
    }
    network, x = ddpmpp(**options), images()
    calls = record(network, x, torch.zeros(1))
    first = (calls["enc.4x4_down"][1] + calls["enc.4x4_aux_residual"][1]) / math.sqrt(2)
    second = (calls["enc.2x2_down"][1] + calls["enc.2x2_aux_residual"][1]) / math.sqrt(2)
    assert torch.equal(calls["enc.4x4_aux_residual"][0], x)
    assert torch.allclose(calls["enc.4x4_block0"][0], first, atol=1e-6)
    assert torch.allclose(calls["enc.2x2_aux_residual"][0], first, atol=1e-6)
    assert torch.allclose(calls["enc.2x2_block0"][0], second, atol=1e-6)
    for level in ("4x4", "2x2"):
        assert torch.equal(last_popped(calls, level), calls[f"enc.{level}_block0"][0])


def test_the_skip_encoder_adds_the_smaller_image() -> None:
    network, x = ddpmpp(encoder_type="skip", channel_mult=(1, 2, 2)), images()
    calls = record(network, x, torch.zeros(1))
    half, quarter = F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)
    for level, small in (("4x4", half), ("2x2", quarter)):
        assert torch.allclose(calls[f"enc.{level}_aux_skip"][0], small, atol=1e-6)
        joined = calls[f"enc.{level}_down"][1] + network.enc[f"{level}_aux_skip"](small)
        assert torch.allclose(calls[f"enc.{level}_block0"][0], joined, atol=1e-6)
        assert torch.equal(last_popped(calls, level), calls[f"enc.{level}_block0"][0])
    assert shape_of(network, "enc.4x4_aux_skip.weight") == (8, 3, 1, 1)
    assert shape_of(network, "enc.2x2_aux_skip.weight") == (16, 3, 1, 1)
    assert shape_of(network, "enc.2x2_aux_down.resample_filter") == (1, 1, 2, 2)


def test_a_silent_skip_encoder_is_the_standard_one() -> None:
    network, standard = ddpmpp(encoder_type="skip"), ddpmpp()
    standard.load_state_dict(
        {k: v for k, v in network.state_dict().items() if "enc.4x4_aux" not in k}
    )
    nn.init.zeros_(network.enc["4x4_aux_skip"].weight)
    nn.init.zeros_(network.enc["4x4_aux_skip"].bias)
    assert torch.equal(network(images(), torch.zeros(1)), standard(images(), torch.zeros(1)))


def shape_of(network: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(network.state_dict()[name].shape)


def test_the_skip_decoder_adds_an_image_from_every_level() -> None:
    network = ddpmpp(decoder_type="skip", channel_mult=(1, 2, 2))
    heads = ["2x2_aux_conv", "4x4_aux_conv", "8x8_aux_conv"]
    assert [n for n in network.dec if n.endswith("aux_conv")] == heads
    assert "2x2_aux_up" not in network.dec
    assert shape_of(network, "dec.2x2_aux_conv.weight") == (3, 16, 3, 3)
    assert shape_of(network, "dec.4x4_aux_up.resample_filter") == (1, 1, 2, 2)
    total = torch.zeros(3)
    for head in heads:
        nn.init.zeros_(network.dec[head].weight)
        total = total + network.dec[head].bias
    expected = total[:, None, None].expand(2, 3, 8, 8)
    assert torch.allclose(network(images(), torch.zeros(1)), expected, atol=1e-6)


@pytest.mark.parametrize("decoder", ["standard", "skip"])
@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_every_encoder_fits_every_decoder(
    encoder: str, decoder: str, taps: tuple[int, ...]
) -> None:
    network = ddpmpp(
        encoder_type=encoder,
        decoder_type=decoder,
        resample_filter=taps,
        embedding_type="fourier",
        channel_mult_noise=2,
    )
    output = network(images(), torch.tensor([0.1, -0.2]))
    assert output.shape == (2, 3, 8, 8)
    assert output.isfinite().all() and output.std() > 0


# Conditioning


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_the_noise_level_of_a_batch_is_embedded_once(make: Callable[[], nn.Module]) -> None:
    network = make(augment_dim=9)
    calls = record(network, images(batch=3), torch.tensor([0.3]))
    sigma_only = [n for n in calls if n.startswith("map") or n.endswith("affine")]
    assert len(sigma_only) > 8
    assert {calls[name][1].shape[0] for name in sigma_only} == {1}
    one, many = torch.tensor([0.3]), torch.full((3,), 0.3)
    x = images(batch=3)
    assert relative(network(x, one), network(x, many)) < ROUNDING


def test_sine_comes_before_cosine_in_ddpmpp_only() -> None:
    labels = torch.tensor([0.4])
    for make, swapped in ((ddpmpp, True), (adm, False)):
        network = make()
        cos, sin = network.map_noise(labels).chunk(2, dim=1)
        first = torch.cat([sin, cos] if swapped else [cos, sin], dim=1)
        assert torch.equal(record(network, images(), labels)["map_layer0"][0], first)


def test_class_labels_are_scaled_in_ddpmpp_only() -> None:
    classes = F.one_hot(torch.tensor([1, 3]), 4).float()
    for make, scale in ((ddpmpp, 2.0), (adm, 1.0)):
        network = make(label_dim=4)
        calls: list[Tensor] = []
        network.map_label.register_forward_hook(lambda _, inputs, __, c=calls: c.append(inputs[0]))
        by_class = network(images(), torch.zeros(1), classes)
        assert torch.equal(calls[0], classes * scale)
        assert not torch.allclose(by_class, network(images(), torch.zeros(1), classes.flip(0)))


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_zero_augment_labels_are_no_augment_labels(make: Callable[..., nn.Module]) -> None:
    network, x, noise = make(augment_dim=9), images(), torch.zeros(1)
    none = network(x, noise)
    assert relative(network(x, noise, augment_labels=torch.zeros(2, 9)), none) < ROUNDING
    one = torch.cat([torch.zeros(1, 9), torch.ones(1, 9)])
    augmented = network(x, noise, augment_labels=one)
    assert relative(augmented[:1], none[:1]) < ROUNDING
    assert relative(augmented[1:], none[1:]) > 1e-3


def test_labels_are_dropped_with_their_probability() -> None:
    labels = torch.ones(1, 2)
    torch.manual_seed(0)
    kept = drop_labels(labels, 0.3, 10_000)
    assert kept.shape == (10_000, 2)
    assert set(kept.sum(1).tolist()) == {0.0, 2.0}
    assert abs(float(kept.mean()) - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 10_000)


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_labels_are_dropped_in_training_only(make: Callable[..., nn.Module]) -> None:
    network = make(label_dim=4, label_dropout=1.0, dropout=0.0)
    x, noise, classes = images(), torch.zeros(1), torch.eye(4)[:2]
    with_labels, without = network(x, noise, classes), network(x, noise, torch.zeros(1, 4))
    assert relative(with_labels, without) > 1e-3
    assert relative(network.train()(x, noise, classes), without) < ROUNDING


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_dropout_is_for_training_only(make: Callable[..., nn.Module]) -> None:
    network, without = make(dropout=0.5), make(dropout=0.0)
    without.load_state_dict(network.state_dict())
    x, noise = images(), torch.zeros(1)
    assert torch.equal(network(x, noise), without(x, noise))
    assert torch.equal(without.train()(x, noise), without.eval()(x, noise))
    assert not torch.allclose(network.train()(x, noise), network(x, noise))


def test_every_parameter_learns() -> None:
    options = {"label_dim": 4, "augment_dim": 9, "dropout": 0.1}
    residual = {"encoder_type": "residual", "decoder_type": "skip", "embedding_type": "fourier"}
    for network in (ddpmpp(**options), ddpmpp(**options, **residual), adm(**options)):
        network.train().requires_grad_(True)
        labels, augment = torch.eye(4)[:2], torch.ones(2, 9)
        network(images(), torch.tensor([0.1, 0.2]), labels, augment).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # A bias before a softmax over keys, or before a normalisation, may cancel.
            assert parameter.ndim == 1 or parameter.grad.any(), name


# Initial values


def bound(weight: Tensor) -> float:
    taps = weight[0, 0].numel()
    return math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * taps))


def test_initial_values_of_ddpmpp() -> None:
    torch.manual_seed(0)
    options = DDPMppOptions(**SMALL, attn_resolutions=(4,), label_dim=4, augment_dim=9)
    network = DDPMpp(options, 3, 3)
    for name, parameter in network.named_parameters():
        layer = name.split(".")[-2]
        if "norm" in layer:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            scale = {"conv1": 1e-5, "proj": 1e-5, "8x8_aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
            limit = bound(parameter) * scale.get(layer, 1.0)
            assert 0.8 * limit < parameter.abs().max() <= limit, name


def test_initial_values_of_adm() -> None:
    torch.manual_seed(0)
    options = ADMOptions(**SMALL, label_dim=400, augment_dim=9)
    network = ADM(options, 3, 3)
    for name, parameter in network.named_parameters():
        layer = name.split(".")[-2]
        if "norm" in layer:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif layer in ("conv1", "proj", "out_conv", "map_augment"):
            assert not parameter.any()
        elif layer == "map_label":
            assert abs(float(parameter.detach().std()) - 1) < 0.05
        elif name.endswith("weight"):
            limit = parameter[0].numel() ** -0.5
            assert 0.8 * limit < parameter.abs().max() <= limit, name


def test_the_order_of_the_initial_draws() -> None:
    """Weight, then bias (drawn even if multiplied by zero), in the order of registration."""
    torch.manual_seed(3)
    network = DDPMpp(DDPMppOptions(**SMALL, augment_dim=9), 3, 3)
    torch.manual_seed(3)

    def xavier(*shape: int, fans: int) -> Tensor:
        return math.sqrt(6 / fans) * (torch.rand(shape) * 2 - 1)

    assert torch.equal(network.map_augment.weight, xavier(8, 9, fans=17))
    assert torch.equal(network.map_layer0.weight, xavier(32, 8, fans=40))
    torch.rand(32)
    assert torch.equal(network.map_layer1.weight, xavier(32, 32, fans=64))
    torch.rand(32)
    assert torch.equal(network.enc["8x8_conv"].weight, xavier(8, 3, 3, 3, fans=99))


# Formats and options


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_memory_format_changes_rounding_only(make: Callable[[], nn.Module]) -> None:
    network, x = make(), images()
    output = network(x, torch.zeros(1))
    network.to(memory_format=torch.channels_last)
    assert relative(network(x, torch.zeros(1)), output) < ROUNDING


@pytest.mark.parametrize("make", [ddpmpp, adm])
def test_half_precision_follows_the_input(make: Callable[[], nn.Module]) -> None:
    network, x = make(), images()
    output = network(x.bfloat16(), torch.zeros(1))
    assert output.dtype == torch.bfloat16
    assert relative(output.float(), network(x, torch.zeros(1))) < 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'img_resolution' of SongUNet is missing"),
        ({"depth": 3}, "unknown option 'depth'"),
        ({"model_channels": "128"}, "expected int"),
        ({"model_channels": True}, "expected int"),
        ({"model_channels": 7}, "expected even"),
        ({"num_blocks": 10**9}, "'num_blocks' is 1000000000: expected 1 to 32"),
        ({"channel_mult": []}, "0 levels"),
        ({"channel_mult": [1, 0]}, "'channel_mult' is 0"),
        ({"channel_mult": 2}, "expected tuple"),
        ({"img_resolution": 10, "channel_mult": [1, 1, 1]}, "cannot be halved"),
        ({"dropout": math.nan}, "'dropout' is nan"),
        ({"embedding_type": "learned"}, "expected one of positional, fourier"),
        ({"resample_filter": [1, 2, 1]}, "3 taps"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], message: str) -> None:
    values = {"img_resolution": 8} | values if values else {}
    with pytest.raises(UsageError, match=message):
        parse(DDPMppOptions, values, "SongUNet")


def test_options_survive_json() -> None:
    options = parse(DDPMppOptions, {"img_resolution": 8, "dropout": 0, "channel_mult": [1]}, "it")
    assert isinstance(options.dropout, float)
    assert parse(DDPMppOptions, json.loads(json.dumps(plain(options))), "it") == options
    assert plain(options)["channel_mult"] == [1]

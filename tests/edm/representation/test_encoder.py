"""Encoders, and codes of images along noise levels."""

import pytest
import torch

from edm.precondition import build
from edm.representation.encoder import Encoder, check_levels, trajectory
from linear_structure.system.errors import UsageError

MLP = {
    "model_type": "MLP",
    "img_channels": 3,
    "img_resolution": 8,
    "outputs": 4,
    "width": 16,
    "depth": 2,
}
UNET = {
    "model_type": "SongUNet",
    "img_channels": 3,
    "img_resolution": 8,
    "outputs": 5,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.5,
}
SIGMAS = torch.tensor([0.02, 0.5, 20.0])

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(config: dict) -> Encoder:
    torch.manual_seed(0)
    return Encoder.of(config).requires_grad_(False)


def images(count: int, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("config", [MLP, UNET], ids=["mlp", "unet"])
def test_a_trajectory_equals_a_loop_bit_for_bit(config: dict) -> None:
    encode, clean = encoder(config).eval(), images(7)
    found = trajectory(encode, clean, SIGMAS, block=3)
    assert found.shape == (7, 3, config["outputs"])
    for start in (0, 3, 6):
        for level, sigma in enumerate(SIGMAS):
            expected = encode(clean[start : start + 3], sigma)
            assert torch.equal(found[start : start + 3, level], expected)


@pytest.mark.parametrize("config", [MLP, UNET], ids=["mlp", "unet"])
def test_codes_of_an_encoder_that_learnt_nothing_depend_on_sigma(config: dict) -> None:
    z = trajectory(encoder(config).eval(), images(20), SIGMAS).double()
    across = (z - z.mean(1, keepdim=True)).square().mean().sqrt()
    assert across > 0.05 * z.std()


@pytest.mark.parametrize("config", [MLP, UNET], ids=["mlp", "unet"])
def test_one_sigma_for_all_is_as_one_for_each(config: dict) -> None:
    encode, clean = encoder(config).eval(), images(4)
    each = encode(clean, torch.full((4,), 0.5))
    torch.testing.assert_close(encode(clean, torch.tensor(0.5)), each)
    mixed = encode(clean, torch.tensor([0.02, 0.5, 20.0, 0.5]))
    torch.testing.assert_close(mixed[[1, 3]], each[[1, 3]])
    assert not torch.allclose(mixed[0], each[0])


def test_the_half_of_a_unet_is_what_its_decoder_starts_from() -> None:
    """Of equal weights, with the blocks drawn as in the network."""
    half = encoder(UNET).eval().body
    torch.manual_seed(0)
    own = {name: value for name, value in UNET.items() if name != "outputs"}
    network = build({**own, "precondition": "EDMPrecond"}).eval().requires_grad_(False).model
    missing, extra = network.load_state_dict(half.state_dict(), strict=False)
    assert not extra
    assert all(name.startswith("dec.") for name in missing)
    seen = []
    network.dec["4x4_in0"].register_forward_hook(lambda block, inputs, output: seen.append(inputs))
    clean, noise = images(3), torch.tensor([0.1, 0.2, 0.3])
    network(clean, noise)
    assert torch.equal(half.features(clean, noise), seen[0][0].mean((2, 3)))


@pytest.mark.parametrize(
    "sigmas", [[], [1.0, 1.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [0.0, 1.0], [1.0, float("inf")]]
)
def test_levels_out_of_order_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(UsageError, match="noise levels"):
        check_levels(torch.tensor(sigmas))


def test_levels_may_rise_or_fall() -> None:
    for sigmas in ([1.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]):
        check_levels(torch.tensor(sigmas))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": 0}, "outputs"),
        ({"model_type": "DhariwalUNet"}, "model_type"),
        ({"width": 3}, "width"),
        ({"heads": 2}, "heads"),
    ],
)
def test_a_configuration_that_gives_no_encoder_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Encoder.of({**MLP, **changes})


def test_a_configuration_gives_the_same_encoder_again() -> None:
    for config in (MLP, UNET):
        made = encoder(config)
        assert Encoder.of(made.config).config == made.config
        torch.manual_seed(0)
        assert Encoder.of(made.config).digest == made.digest

"""The loss of a pair: the denoising loss with an encoder in the labels' place."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from edm.checkpoints import checkpoint
from edm.precondition import build
from edm.representation.encoder import Encoder
from edm.representation.objective import Pair, absolute, divergence, objective
from edm.training.data import Data
from edm.training.loss import LogUniform, denoising_loss
from edm.training.recipes import Recipe
from edm.training.state import State
from edm.training.steps import Trainer
from linear_structure.denoise import Denoiser
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.system.errors import UsageError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "trajectories.npz"
LOSS = LogUniform(0.02, 20.0, 0.5)
DIM = 4
MLP = {"model_type": "MLP", "img_resolution": 8, "width": 16, "depth": 2}
NETWORK = {"precondition": "EDMPrecond", "img_channels": 3, "label_dim": DIM}

pytestmark = pytest.mark.usefixtures("one_thread")


class Zero(nn.Module):
    """An encoder with nothing to say, which a gradient may pass nevertheless."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(DIM))

    def forward(self, images: Tensor, sigma: Tensor) -> Tensor:
        return torch.zeros(len(images), DIM) * self.scale


class Spy(nn.Module):
    """An encoder that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor, sigma: Tensor) -> Tensor:
        self.seen.append((images, sigma))
        return images.flatten(1)[:, :DIM]


def pair(kind: str = "drl", network: dict = MLP) -> Pair:
    torch.manual_seed(0)
    outputs = DIM * (2 if kind == "vdrl" else 1)
    encoder = {**MLP, "img_channels": 3, "outputs": outputs}
    made = Pair.of({"kind": kind, "encoder": encoder, "network": {**NETWORK, **network}})
    nn.init.normal_(made.network.model.map_label.weight)  # what a code does is seen at once
    return made


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def unet() -> dict:
    return tiny.config(label_dim=DIM)


@pytest.mark.parametrize("config", [{**NETWORK, **MLP}, unet()], ids=["mlp", "unet"])
def test_zeroed_codes_are_no_labels_bit_for_bit(config: dict) -> None:
    torch.manual_seed(0)
    network = build(config)
    both = Pair(Zero(), network)
    torch.manual_seed(5)
    expected = denoising_loss(LOSS, network, images())
    torch.manual_seed(5)
    assert torch.equal(objective(LOSS, both, images()), expected)


def test_a_training_with_zeroed_codes_is_one_without_labels_bit_for_bit() -> None:
    """At every step, and so are the weights in the end."""
    pixels = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    data = Data(pixels.to(torch.uint8), None, 0, torch.device("cpu"))
    recipe = Recipe(batch=8, piece=4, ramp=16, duration=80, ema_halflife=100, learning_rate=1e-2)
    torch.manual_seed(0)
    alone = State.start(build({**NETWORK, **MLP}))
    torch.manual_seed(0)
    told = State.start(Pair(Zero(), build({**NETWORK, **MLP})))
    plain = Trainer(recipe, data, partial(denoising_loss, LOSS), alone.network)
    coded = Trainer(recipe, data, partial(objective, LOSS), told.network)
    losses = [list(each) for each in (plain.steps(alone), coded.steps(told))]
    assert len(losses[0]) == 10
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    expected, found = alone.average.state_dict(), told.average.network.state_dict()
    assert all(torch.equal(found[name], each) for name, each in expected.items())


def test_the_encoder_sees_clean_images_and_the_sigma_of_the_noisy_ones() -> None:
    spied = Pair(Spy(), build({**NETWORK, **MLP}))
    clean, called = images(), []
    spied.network.register_forward_hook(
        lambda module, inputs, options, output: called.append((*inputs, options["class_labels"])),
        with_kwargs=True,
    )
    objective(LOSS, spied, clean)
    [(seen, sigma)], [(noisy, level, code)] = spied.encoder.seen, called
    assert torch.equal(seen, clean)
    assert not torch.isclose(noisy, clean).flatten(1).all(1).any()
    assert sigma is level
    assert len(sigma.unique()) == len(clean)
    assert torch.equal(code, clean.flatten(1)[:, :DIM])


def test_the_penalty_is_summed_over_an_image() -> None:
    """What it adds is its weight times R, and R is of what the encoder gives."""
    both, clean = pair(), images()
    torch.manual_seed(3)
    plain = objective(LOSS, both, clean, weight=0)
    torch.manual_seed(3)
    sigma = LOSS.sigmas(len(clean))
    torch.manual_seed(3)
    found = objective(LOSS, both, clean, weight=100.0)
    expected = 100 * both.encoder(clean, sigma).abs().sum(1)
    torch.testing.assert_close((found - plain).sum((1, 2, 3)), expected, rtol=1e-3, atol=1e-2)


def test_a_code_of_all_dimensions_leaves_little_to_denoise() -> None:
    """At sigma 5 the least loss without one is that of the Gaussian: `lam / (lam + sigma^2)`."""
    torch.manual_seed(0)
    size, loss = {"img_resolution": 2, "img_channels": 1, "width": 32}, LogUniform(5.0, 5.0, 0.5)
    network = build({**NETWORK, **MLP, **size})
    both = Pair(Encoder.of({**MLP, **size, "outputs": DIM}), network)
    optimizer = torch.optim.Adam(both.parameters(), lr=5e-3)
    for _ in range(600):
        optimizer.zero_grad()
        objective(loss, both, torch.randn(64, 1, 2, 2) / 2, weight=0).mean().backward()
        optimizer.step()
    with torch.no_grad():
        found = objective(loss, both, torch.randn(4000, 1, 2, 2) / 2, weight=0).mean()
    alone = 0.25 * 25 / 25.25 * loss.weight(torch.tensor(5.0))
    assert found < 0.05 * alone


def test_gradients_reach_the_encoder() -> None:
    for kind in ("drl", "vdrl"):
        both = pair(kind)
        nn.init.normal_(both.network.model.out.weight)
        objective(LOSS, both, images(), weight=0).sum().backward()
        assert both.encoder.head.weight.grad.abs().sum() > 0


def test_divergence_is_that_of_normals() -> None:
    golden = np.load(GOLDEN)
    mu, log_variance = (torch.from_numpy(golden[name])[None] for name in ("kl_mu", "kl_logvar"))
    torch.testing.assert_close(
        divergence(mu, log_variance)[0], torch.tensor(float(golden["kl"])).double()
    )
    own = torch.distributions.Normal(mu, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    expected = torch.distributions.kl_divergence(own, standard).sum(1)
    torch.testing.assert_close(divergence(mu, log_variance), expected)
    assert absolute(torch.tensor([[1.0, -2.0], [0.5, 0.0]])).tolist() == [3.0, 0.5]


def test_codes_of_vdrl_are_noised_in_training_around_their_mean() -> None:
    both, clean = pair("vdrl"), images(1).expand(40_000, -1, -1, -1)
    sigma = torch.tensor(0.5)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = both.draw(clean, sigma)
        mean = both.code(clean[:1], sigma)
        _, log_variance = both.encoder(clean[:1], sigma).chunk(2, dim=1)
    spread = (log_variance / 2).exp()[0]
    assert mean.shape == (1, DIM)
    error = (drawn.code.mean(0) - mean[0]).abs() / (spread / math.sqrt(40_000))
    assert error.max() < 5
    torch.testing.assert_close(drawn.code.std(0), spread, rtol=0.02, atol=0)
    torch.testing.assert_close(drawn.penalty[:1], divergence(mean, log_variance))


def test_a_bound_pair_is_a_denoiser_that_a_sampler_takes() -> None:
    both, clean = pair().eval().requires_grad_(False), images(3)
    nn.init.normal_(both.network.model.out.weight)
    sigma = torch.tensor(1.0)
    denoise: Denoiser = both.bind(clean, sigma)
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    sigmas = sigma_grid(4, 0.02, 20.0)
    *_, last = heun(denoise, noise * sigmas[0], sigmas)
    assert torch.isfinite(last.x).all()
    code = both.code(clean, sigma)
    expected = both.network(noise, sigma, class_labels=code)
    assert torch.equal(denoise(noise, sigma), expected)
    assert torch.equal(both.network.bind(code)(noise, sigma), expected)
    assert not torch.allclose(both.bind(clean.flip(0), sigma)(noise, sigma), expected)


def test_a_pair_comes_back_from_its_file(tmp_path: Path) -> None:
    for kind in ("drl", "vdrl"):
        both = pair(kind, {key: value for key, value in unet().items() if key not in NETWORK})
        path = tmp_path / f"{kind}.safetensors"
        checkpoint.save(both, path, {"data": kind})
        found = checkpoint.load_module(path, Pair.of)
        assert found.config == both.config
        assert found.kind == kind
        state = found.state_dict()
        assert all(torch.equal(state[name], each) for name, each in both.state_dict().items())
        assert checkpoint.provenance(path) == {"data": kind}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"encoder": 3},
        {"network": {**NETWORK, **MLP, "label_dim": 3}},
        {"network": {**NETWORK, **MLP, "label_dim": 0}},
        {"network": {**NETWORK, **MLP, "img_resolution": 4}},
        {"network": {**NETWORK, **MLP, "width": [[16]]}},
        {"extra": 1},
    ],
)
def test_a_file_that_holds_no_pair_is_refused(tmp_path: Path, changes: dict) -> None:
    both, path = pair(), tmp_path / "pair.safetensors"
    config = {**both.config, **changes}
    saved = nn.Module()
    saved.state_dict = both.state_dict
    saved.config = config
    checkpoint.save(saved, path, {})
    with pytest.raises(UsageError, match="gives no network"):
        checkpoint.load_module(path, Pair.of)


def test_a_network_is_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    checkpoint.save(tiny.network(), path, {})
    with pytest.raises(UsageError, match="not a pair"):
        checkpoint.load_module(path, Pair.of)


def test_a_small_file_does_not_describe_a_network_that_takes_long(tmp_path: Path) -> None:
    both, path = pair(), tmp_path / "pair.safetensors"
    large = {**unet(), "channel_mult": [1] * 4, "num_blocks": 32, "img_resolution": 8}
    saved = nn.Module()
    saved.state_dict = both.state_dict
    saved.config = {**both.config, "network": large}
    checkpoint.save(saved, path, {})
    with pytest.raises(UsageError, match="too few"):
        checkpoint.load_module(path, Pair.of)


def test_encoders_of_other_images_do_not_fit() -> None:
    encoder = Encoder.of({**MLP, "img_channels": 1, "outputs": DIM})
    with pytest.raises(UsageError, match="does not fit"):
        Pair.of({"kind": "drl", "encoder": encoder.config, "network": {**NETWORK, **MLP}})

"""What differs on a GPU: `pytest -m cuda`, where there is one.

Everything else is tested on the CPU; here a tensor that lies elsewhere must stay there, and what is
rounded, drawn, copied and compiled must be as the CPU says it is.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edm.checkpoints import checkpoint, load, shipped
from edm.evaluation import features
from edm.evaluation.inception import legacy_resize
from edm.precondition import Preconditioned
from edm.training.data import Data, resident
from edm.training.recipes import RECIPES
from edm.training.runs import Job
from edm.training.state import State
from edm.training.steps import Trainer
from experiments import loading, presets
from experiments.sampling import Sampling, grid_of
from linear_structure import parameters
from linear_structure.data import datasets
from linear_structure.denoise import Model, score
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import from_uint8, save_png, to_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.moments import PixelSums
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import final
from linear_structure.sampling.seeds import Seeds
from linear_structure.sampling.table import SAMPLERS
from linear_structure.spectral import Spectral
from linear_structure.system.machine import Machine
from linear_structure.system.precision import set_tf32
from linear_structure.teleport import Teleport, flow

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU, SHAPE = torch.device("cuda", 0), (1, 8, 8)
RECIPE = replace(
    RECIPES["gpu"],
    model_channels=16,
    channel_mult=(1, 1),
    num_blocks=1,
    attn_resolutions=(8,),
    batch=16,
    piece=8,
    compile=False,
    precision="float32",
)


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Products of float32 as a command leaves them, whatever a test did."""
    set_tf32(False)
    yield
    set_tf32(False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def points() -> Tensor:
    return torch.randint(256, (300, 64), generator=torch.Generator().manual_seed(1)).byte()


def gaussian() -> Gaussian:
    return Gaussian.from_samples(points())


def mixture() -> GaussianMixture:
    return GaussianMixture(torch.tensor([0.5, 0.5]).double(), (gaussian(), gaussian()))


MODELS = {
    "gaussian": gaussian,
    "isotropic": lambda: Isotropic(gaussian().mean, 0.5),
    "mixture": mixture,
    "points": lambda: PointCloud(points()),
    "spectral": lambda: Spectral.from_samples(points().reshape(-1, *SHAPE)),
}


def network() -> Preconditioned:
    return load(shipped("digits-denoiser.safetensors"))


# Models


@pytest.mark.parametrize("moved", [False, True], ids=["model on the CPU", "model on the GPU"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_where_it_is_asked_and_as_on_the_cpu(name: str, moved: bool) -> None:
    """Denoised, score, density, teleport and samples."""
    model: Model = MODELS[name]()
    x = 3 * drawn(5, *SHAPE)
    there = model.to(x.to(GPU)) if moved else model
    posterior, expected = there.posterior(x.to(GPU), 2.0), model.posterior(x, 2.0)
    for name, wanted in vars(expected).items():
        if wanted is not None:
            found = vars(posterior)[name]
            assert found.device == GPU
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)
    slope = score(there.denoise, x.to(GPU), 2.0)
    carried = flow(there, x.to(GPU), 3.0, 0.5)
    assert slope.device == carried.device == GPU
    torch.testing.assert_close(carried.cpu(), flow(model, x, 3.0, 0.5), rtol=1e-4, atol=1e-4)
    if moved:
        samples = there.sample(4, 0.1, torch.Generator().manual_seed(0))
        wanted = model.to(x).sample(4, 0.1, torch.Generator().manual_seed(0))
        assert samples.device == GPU
        torch.testing.assert_close(samples.cpu(), wanted.to(samples.dtype), rtol=1e-4, atol=1e-4)


def test_what_is_fitted_on_a_gpu_is_what_is_fitted_on_a_cpu(tmp_path: Path) -> None:
    """And its files are read where there is none."""
    found, wanted = Gaussian.from_samples(points().to(GPU)), gaussian()
    assert found.basis.device == found.eigenvalues.device == GPU
    x = drawn(5, *SHAPE)
    torch.testing.assert_close(found.denoise(x, 0.5), wanted.denoise(x, 0.5))
    sums = [PixelSums(64), PixelSums(64)]
    for each, pixels in zip(sums, (points(), points().to(GPU)), strict=True):
        each.add(pixels)
    assert torch.equal(*(each.moments().scatter for each in sums))
    save_png(tmp_path / "a.png", points()[0].reshape(SHAPE).to(GPU))
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("sigma", [0.05, 2.0, 80.0])
def test_the_point_cloud_keeps_float32_where_a_process_rounds(sigma: float) -> None:
    """TF32 has three decimal digits: at these sizes it would show in the weights."""
    images = (points() / 255.0 * 2 - 1).to(GPU)
    x = images[:20].double() + sigma * drawn(20, 64).to(GPU)
    set_tf32(True)
    found = PointCloud(images).denoise(x, sigma)
    squares = torch.cdist(x.cpu(), images.cpu().double()) ** 2
    wanted = (-squares / (2 * sigma**2)).softmax(1) @ images.cpu().double()
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=2e-3)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


# Precision


@pytest.mark.parametrize("tf32", [False, True])
def test_products_are_rounded_if_and_only_if_they_were_told_to_be(tf32: bool) -> None:
    a, b = (drawn(256, 256).float().to(GPU) for _ in range(2))
    images, kernel = (drawn(4, 64, 16, 16).float(), drawn(64, 64, 3, 3).float())
    set_tf32(tf32)
    pairs = (
        (a @ b, a.double() @ b.double()),
        (
            torch.conv2d(images.to(GPU), kernel.to(GPU)),
            torch.conv2d(images.double(), kernel.double()).to(GPU),
        ),
    )
    for found, wanted in pairs:
        error = float((found - wanted).norm() / wanted.norm())
        assert (1e-5 < error < 1e-2) if tf32 else error < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_network_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    """At every level, in x's type and place, to what its layers compute in."""
    x, bound = drawn(4, *SHAPE), {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
    there = loading.prepared(network(), Machine(GPU, 1), dtype)
    for sigma in (0.01, 0.5, 10.0):
        level, here = torch.tensor(sigma).double(), network()
        found, wanted = there(sigma * x.to(GPU), level), here(sigma * x, level)
        assert (found.device, found.dtype) == (GPU, torch.float64)
        assert float((found.cpu() - wanted).norm() / wanted.norm()) < bound[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_network_agrees_with_itself(dtype: torch.dtype) -> None:
    x, level = drawn(4, *SHAPE).to(GPU), torch.tensor(0.5).double()
    plain, compiled = (
        loading.prepared(network(), Machine(GPU, 1), dtype, compiled) for compiled in (False, True)
    )
    with torch.inference_mode():
        found, wanted = compiled(x, level), plain(x, level)
    bound = 1e-4 if dtype == torch.float32 else 4e-2
    assert float((found - wanted).norm() / wanted.norm()) < bound


def test_a_compiled_network_may_round_to_tf32() -> None:
    set_tf32(True)
    x, level = drawn(4, *SHAPE).to(GPU), torch.tensor(0.5).double()
    compiled = loading.prepared(network(), Machine(GPU, 1), None, compiled=True)
    with torch.inference_mode():
        found, wanted = compiled(x, level), network()(x.cpu(), level).to(GPU)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-2


# Samples


def test_a_seed_has_one_stream_whatever_its_batch() -> None:
    """That of its device, untouched by the global generator."""
    torch.manual_seed(1)
    together, alone = Seeds.of(range(5), GPU), Seeds.of([3], GPU)
    torch.manual_seed(2)
    for draw in (lambda s: s.latents(SHAPE), lambda s: s.labels(10), lambda s: s.latents(SHAPE)):
        found = draw(together)
        assert found.device == GPU
        assert torch.equal(found[3], draw(alone)[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_with_a_teleport_stays_on_the_device(name: str) -> None:
    there = network().to(GPU)
    preset = replace(presets.find("digits"), sampler=name)
    row, sigmas = SAMPLERS[name], grid_of(preset, there)
    with torch.inference_mode():
        x = Teleport(gaussian()).flow(
            Seeds.of(range(3), GPU).latents(SHAPE).double() * sigmas[0], sigmas[0], sigmas[4]
        )
        noise = Seeds.of(range(3), GPU).noise
        end = final(row.run(there, x, sigmas, 4, noise, preset.settings))
    assert (end.device, end.dtype) == (GPU, torch.float64)


def test_features_are_those_of_the_cpu() -> None:
    path, images = shipped("digits-features.safetensors"), points()[:20].reshape(-1, *SHAPE)
    there = features.load(path, device=GPU)
    found = there(images.to(GPU))
    assert found.device == GPU
    torch.testing.assert_close(found, there(images))  # taken there
    torch.testing.assert_close(found.cpu(), features.load(path)(images), rtol=1e-3, atol=1e-4)
    x = from_uint8(images.to(GPU))
    torch.testing.assert_close(legacy_resize(x, 19).cpu(), legacy_resize(x.cpu(), 19))
    assert torch.equal(to_uint8(x).cpu(), to_uint8(x.cpu()))


def test_a_block_of_a_sweep_leaves_no_memory_behind() -> None:
    sampling = Sampling(network().to(GPU), sigma_grid(4), Teleport(gaussian()))
    held = []
    for _ in range(3):
        with torch.inference_mode():
            assert sampling.pixels(range(4), 1).device == GPU
        held.append(torch.cuda.memory_allocated())
    assert held[2] == held[1]


# Training


def trainer(
    augment: float, on_device: bool, conditional: bool = False, precision: str = "float32"
) -> tuple[State, Trainer, Iterator[Tensor]]:
    changes = {"augment": augment, "conditional": conditional, "precision": precision}
    recipe, digits = replace(RECIPE, **changes), datasets.load("digits")
    torch.manual_seed(0)
    state = State.start(recipe.build(digits).to(GPU))
    images = resident(digits.images(), GPU) if on_device else digits.images()
    assert (images.device == GPU) == on_device
    data = Data(images, digits.labels(), digits.label_dim if conditional else 0, GPU)
    objective = recipe.objective(state.network)
    order = data.order(recipe.batch, recipe.seed, 0)
    return state, Trainer(recipe, data, objective, state.network), order


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("on_device", [False, True], ids=["pinned", "resident"])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_step_waits_for_nothing(on_device: bool, conditional: bool, precision: str) -> None:
    """After the first, in which the optimizer makes its state."""
    state, steps, order = trainer(0.5, on_device, conditional, precision)
    steps.step(state, next(order))
    torch.cuda.set_sync_debug_mode("error")
    try:
        errors = [steps.step(state, next(order)) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(error.isfinite() for error in errors)


def test_images_in_either_memory_train_the_same_network() -> None:
    networks = []
    for on_device in (False, True):
        state, steps, order = trainer(0.0, on_device)
        for _ in range(3):
            steps.step(state, next(order))
        networks.append(state.average)
    pairs = zip(*(each.parameters() for each in networks), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_continues_and_its_network_is_read_on_a_cpu(
    tmp_path: Path, compiled: bool
) -> None:
    """In bfloat16, as the recipe for one card does."""
    recipe = replace(RECIPE, precision="bfloat16", compile=compiled, duration=32, snapshot=16)
    digits = datasets.load("digits")
    job = partial(Job, dataset=digits, folder=tmp_path, device=GPU)
    job(replace(recipe, duration=16)).run()
    assert job(recipe).run().images_seen == 32
    assert (tmp_path / "samples-000000032.png").exists()
    found = checkpoint.load(tmp_path / "network-000000032.safetensors")
    assert found.device.type == "cpu"
    assert found(drawn(2, *SHAPE), torch.tensor(1.0)).isfinite().all()


def test_parameters_of_a_gpu_are_files_for_a_cpu(tmp_path: Path) -> None:
    for name, make in MODELS.items():
        model = make()
        there = model.to(torch.zeros((), dtype=torch.float64, device=GPU))
        for file, value in there.tensors().items():
            kind = next(Path(each).suffix for each in model.files if Path(each).stem == file)
            parameters._write_tensor(tmp_path / f"{name}-{file}{kind}", value)
            if kind == ".pt":
                found = parameters._read_tensor(tmp_path / f"{name}-{file}{kind}")
                torch.testing.assert_close(found, model.tensors()[file])

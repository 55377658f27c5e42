"""The sweep: reuse, resume, independence of range and processes, and its refusals."""

import dataclasses
import json
import math
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from edm.checkpoints import checkpoint
from edm.evaluation import fid
from experiments import comparison, presets, results, sweep, tables
from experiments.forecast import PROBES, _seconds_of_call, forecast
from experiments.loading import load_network
from experiments.sampling import Sampling, grid_of
from linear_structure import parameters
from linear_structure.data import datasets
from linear_structure.fit import fit_gaussian
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import to_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.parameters import Story
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.sampling.seeds import SeedRange, Seeds
from linear_structure.sampling.table import SAMPLERS, Settings
from linear_structure.spectral import Spectral
from linear_structure.system import download
from linear_structure.system.errors import UsageError, WorkError, run_command
from linear_structure.system.machine import Machine
from linear_structure.teleport import Teleport

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Corners:
    """Feature network of the tests: the mean of each quarter of an image."""

    name: str = "corners"
    distance_name: str = "FD-corners"
    dim: int = 4
    digest: str = "corners"

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


@pytest.fixture
def small(tmp_path):
    """A sweep of tiny parts in a folder of its own."""
    network = tiny.network(img_channels=1)
    model = Gaussian(torch.zeros(64).double(), torch.eye(64)[:, :3], torch.ones(3).double())
    generator = torch.Generator().manual_seed(1)
    reference = fid.measure([torch.randn(50, 4, generator=generator)])
    preset = dataclasses.replace(
        presets.find("digits"), steps=5, skips=(0, 2), seeds=SeedRange(0, 19), block=5
    )
    return sweep.Sweep(
        preset=preset,
        network=network,
        teleport=Teleport(model),
        features=Corners(),
        reference=reference,
        machine=Machine(torch.device("cpu"), torch.get_num_threads()),
        root=tmp_path,
    )


def with_preset(small, **changes):
    return dataclasses.replace(small, preset=dataclasses.replace(small.preset, **changes))


def outputs(root: Path) -> dict[str, str]:
    """The outputs of all results, as text, by path."""
    paths = sorted(root.rglob("[0-9]*.json"))
    return {p.name: json.dumps(json.loads(p.read_text())["outputs"]) for p in paths}


def test_distance_is_that_of_the_images(small):
    found = list(sweep.run(small))
    assert [result.skip for result in found] == [0, 2]
    for result in found:
        sigmas = grid_of(small.preset, small.network)
        sampling = Sampling(small.network, sigmas, small.teleport)
        pixels = [sampling.pixels(range(i, i + 5), result.skip) for i in range(0, 20, 5)]
        statistics = fid.measure([Corners()(torch.cat(pixels))])
        assert result.distance == fid.frechet(statistics, small.reference)
        assert result.outputs["count"] == 20
        assert result.inputs["sigma_skip"] == float(sigmas[result.skip])


def test_a_finished_sweep_is_reused_without_a_call(small):
    first = list(sweep.run(small))
    shutil.rmtree(small.root / "digits" / "features")
    small.network.model.forward = None  # a call would raise
    assert list(sweep.run(small)) == first


@pytest.mark.parametrize("damage", ["gone", "cut short", "of another sweep"])
def test_a_damaged_reference_is_kept_again_and_nothing_is_sampled(small, damage):
    first = list(sweep.run(small))
    (path,) = (small.root / "digits" / "references").iterdir()
    if damage == "gone":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        fid.write(path, fid.measure([torch.randn(50, 4)]))
    assert sweep.stored_reference(small.root, first[0]) is None
    small.network.model.forward = None  # a call would raise
    assert list(sweep.run(small)) == first
    assert sweep.stored_reference(small.root, first[0]).digest == small.reference.digest


def test_other_settings_are_sampled_anew(small):
    list(sweep.run(small))
    model = Isotropic(torch.zeros(64).double())
    other = dataclasses.replace(small, teleport=Teleport(model))
    (_, two) = sweep.run(other)
    assert two.inputs["parameters"] != small.inputs(2)["parameters"]
    kept = list(small.folder.glob("2.*.json"))
    assert len(kept) == 1 and results.read(kept[0]).inputs == small.inputs(2)


def test_a_seed_gives_the_same_whatever_the_range(small):
    list(sweep.run(small))
    shifted = with_preset(small, seeds=SeedRange(7, 12))
    blocks = sweep.blocks_of(shifted, 2)
    assert [block.first for block in blocks] == [5, 10]
    (_, two) = sweep.run(shifted)
    rows = [np.load(block.path) for block in sweep.blocks_of(small, 2)]
    wanted = torch.from_numpy(np.concatenate(rows)[7:13])
    assert two.outputs["count"] == 6
    assert two.distance == fid.frechet(fid.measure([wanted]), small.reference)


def test_a_damaged_result_is_made_again(small):
    first = [result.outputs for result in sweep.run(small)]
    path = small.folder / "2.json"
    path.write_text(path.read_text()[:50])
    assert [result.outputs for result in sweep.run(small)] == first


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_block_is_made_again(small, damage):
    """Nothing, a part of the header, and all but the last byte of the features."""
    first = [result.outputs for result in sweep.run(small)]
    path = sweep.blocks_of(small, 2)[1].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if damage is None else damage)
    (small.folder / "2.json").unlink()
    assert [result.outputs for result in sweep.run(small)] == first
    assert path.read_bytes() == whole


def stored(small, skip):
    """The saved images of one number of skipped steps, by name."""
    (folder,) = (small.root / "digits" / "images").glob(f"{skip}-*")
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_images_are_saved_as_measured(small):
    """Those of the asked seeds alone, although their blocks are computed whole."""
    saving = dataclasses.replace(with_preset(small, seeds=SeedRange(3, 7)), save_images=True)
    list(sweep.run(saving))
    sigmas = grid_of(small.preset, small.network)
    for skip in (0, 2):
        sampling = Sampling(small.network, sigmas, small.teleport)
        pixels = torch.cat([sampling.pixels(seeds, skip) for seeds in (range(5), range(5, 10))])
        images = stored(small, skip)
        assert list(images) == [f"{seed:06d}.png" for seed in range(3, 8)]
        assert np.array_equal(np.stack(list(images.values())), pixels[3:8].squeeze(1).numpy())


def test_a_saved_image_that_is_empty_is_made_again(small):
    saving = dataclasses.replace(with_preset(small, seeds=SeedRange(0, 4)), save_images=True)
    first = list(sweep.run(saving))
    before, (path,) = stored(small, 2), small.root.glob("digits/images/2-*/000003.png")
    path.write_bytes(b"")
    assert list(sweep.run(saving)) == first
    assert np.array_equal(stored(small, 2)[path.name], before[path.name])


def test_images_of_other_settings_are_not_reused(small):
    saving = dataclasses.replace(with_preset(small, seeds=SeedRange(0, 4)), save_images=True)
    list(sweep.run(saving))
    before = stored(small, 2)
    model = Isotropic(torch.zeros(64).double())
    other = dataclasses.replace(saving, teleport=Teleport(model))
    list(sweep.run(other))
    records = sorted((small.root / "digits" / "images").glob("2-*/inputs.json"))
    digests = {json.loads(path.read_text())["parameters"] for path in records}
    assert digests == {each.teleport.inputs["parameters"] for each in (saving, other)}
    for path in records:
        of_saving = (
            json.loads(path.read_text())["parameters"] == saving.teleport.inputs["parameters"]
        )
        image = np.asarray(Image.open(path.parent / "000003.png"))
        assert np.array_equal(image, before["000003.png"]) == of_saving


def test_tf32_is_part_of_what_a_result_depends_on(small):
    """Its absence is not, so that results made without it stay valid."""
    fast = dataclasses.replace(small, machine=dataclasses.replace(small.machine, tf32=True))
    assert fast.inputs(2) == {**small.inputs(2), "tf32": True}
    assert sweep.blocks_of(fast, 2) != sweep.blocks_of(small, 2)


def test_the_type_that_a_network_was_told_is_part_of_it_too(small):
    published = small.inputs(2)
    small.network.compute_dtype = torch.float32
    assert small.inputs(2) == {**published, "dtype": "float32"}


def test_a_sweep_told_its_networks_own_type_is_the_one_that_was_told_none(tmp_path):
    """So results that are there stay valid, and no second name is given to equal bits."""
    path = tmp_path / "network.safetensors"
    checkpoint.save(tiny.network(), path, {})
    preset = dataclasses.replace(presets.find("digits"), network=download.given(str(path), None))
    cpu, meta = Machine(torch.device("cpu"), 1), Machine(torch.device("meta"), 1)
    assert load_network(preset, cpu, torch.float32).compute_dtype is None
    assert load_network(preset, meta, torch.bfloat16).compute_dtype == torch.bfloat16
    with pytest.raises(UsageError, match="bfloat16 is for GPUs"):
        load_network(preset, cpu, torch.bfloat16)


def test_the_key_of_features_stays(small):
    """Features on disk are found as long as nothing that they depend on changes."""
    assert list(small.sampling_inputs(0)) == [
        "preset", "n_skip", "sigma_skip", "block", "sampler", "sigmas", "network", "parameters",
        "device", "threads", "features", "distance_name",
    ]  # fmt: skip


def test_one_image_is_refused_before_it_is_sampled(small):
    with pytest.raises(UsageError, match="seeds 3-3: a distance needs at least two images"):
        with_preset(small, seeds=SeedRange(3, 3))


def test_statistics_of_other_features_are_refused_before_sampling(small):
    generator = torch.Generator().manual_seed(1)
    wide = fid.measure([torch.randn(50, 5, generator=generator)])
    with pytest.raises(UsageError, match="features of 5 and 4 dimensions"):
        dataclasses.replace(small, reference=wide)
    other = dataclasses.replace(small.reference, features="edges")
    with pytest.raises(UsageError, match="two networks, edges and corners"):
        dataclasses.replace(small, reference=other)


def test_parameters_of_another_shape_are_refused(small):
    model = Isotropic(torch.zeros(63).double())
    with pytest.raises(UsageError, match=r"63 values.*1 x 8 x 8 = 64"):
        dataclasses.replace(small, teleport=Teleport(model))


def test_a_point_cloud_teleports_too(small):
    """Its flow is solved; that of one point is the isotropic model's."""
    cloud = PointCloud(torch.full((1, 64), 255, dtype=torch.uint8))
    point = Isotropic(torch.ones(64).double())
    preset = dataclasses.replace(small.preset, skips=(2,))
    found = []
    for model in (cloud, point):
        varied = dataclasses.replace(small, preset=preset, teleport=Teleport(model))
        found.append([result.distance for result in sweep.run(varied)])
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_a_spectral_gaussian_teleports_as_the_full_one(small):
    images = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    preset, found = dataclasses.replace(small.preset, skips=(2,)), []
    for model in (Gaussian.from_samples(images), Spectral.from_samples(images, 8)):
        varied = dataclasses.replace(small, preset=preset, teleport=Teleport(model))
        found += [(each.distance, each.inputs["parameters"]) for each in sweep.run(varied)]
    (full, its_digest), (spectral, digest) = found
    assert spectral == pytest.approx(full, rel=1e-3) and digest != its_digest


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
def test_other_samplers_take_one_call_a_step(small, sampler):
    preset = dataclasses.replace(small.preset, sampler=sampler, skips=(0, 2))
    steps = preset.steps
    found = list(sweep.run(dataclasses.replace(small, preset=preset)))
    assert [result.outputs["nfe"] for result in found] == [steps, steps - 2]
    assert {result.inputs["sampler"] for result in found} == {sampler}
    with pytest.raises(UsageError, match="expected one of heun, dpmpp_2m, unipc"):
        dataclasses.replace(small, preset=dataclasses.replace(preset, sampler="abacus"))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "pc", "annealed"])
def test_a_chain_is_swept_and_continued_to_the_bit(small, sampler):
    chained = with_preset(small, sampler=sampler, settings=Settings(corrector_steps=2))
    first = list(sweep.run(chained))
    calls = {"pc": [15, 9], "annealed": [16, 10]}.get(sampler, [5, 3])
    assert [result.outputs["nfe"] for result in first] == calls
    assert first[1].inputs["settings"] == {
        name: getattr(chained.preset.settings, name) for name in SAMPLERS[sampler].uses
    }
    lost = sweep.blocks_of(chained, 2)[2].path
    whole = lost.read_bytes()
    lost.unlink()
    (chained.folder / "2.json").unlink()
    assert [result.outputs for result in sweep.run(chained)] == [each.outputs for each in first]
    assert lost.read_bytes() == whole


def test_a_sweep_that_teleports_to_rounded_levels_goes_on_from_them(small):
    """Those of the grid give the grid's own samples; rounded ones restart it, and are told."""
    sigmas = small.sampling.sigmas
    exact = with_preset(small, sigma_skip=(float(sigmas[0]), float(sigmas[2])))
    torch.testing.assert_close(exact.sampling.grid(2), sigmas, rtol=1e-12, atol=0)
    (_, plain), (_, own) = sweep.run(small), sweep.run(exact)
    assert own.distance == pytest.approx(plain.distance, rel=1e-4)
    rounded = with_preset(small, sigma_skip=(80.0, 8.0))
    grid = rounded.sampling.grid(2)
    assert grid[2:].tolist() == pytest.approx(sigma_grid(3, 0.002, 8.0).tolist())
    (_, other) = sweep.run(rounded)
    assert other.inputs["sigma_skip"] == pytest.approx(8) and other.distance != plain.distance
    assert other.settings != plain.settings  # they stand in no table together
    for levels in ((80.0,), (8.0, 80.0), (80.0, 0.001)):
        with pytest.raises(UsageError, match="levels"):
            with_preset(small, sigma_skip=levels)


def test_all_steps_skipped_are_the_models_own_samples(small):
    alone = dataclasses.replace(small, alone=True)
    (*_, last) = sweep.run(alone)
    assert (last.skip, last.inputs["sigma_skip"], last.outputs["nfe"]) == (5, 0.0, 0)
    x = 80 * Seeds.of(range(20)).latents((1, 8, 8)).double()
    ended = small.teleport.model.flow(x, 80.0, 0.0)
    wanted = fid.frechet(fid.measure([Corners()(to_uint8(ended))]), small.reference)
    assert last.distance == pytest.approx(wanted, rel=1e-3)
    small.network.model.forward = None  # a call would raise
    assert small.sampling.pixels(range(2), 5).shape == (2, 1, 8, 8)


def test_other_settings_of_a_sampler_are_sampled_anew(small):
    """A table counts the calls of its own."""
    plain = with_preset(small, sampler="pc")
    (zero, two) = sweep.run(plain)
    other = with_preset(plain, settings=Settings(corrector_steps=2))
    (more, _) = sweep.run(other)
    assert zero.settings != more.settings and more.distance != zero.distance
    assert "| 6 | 40% |" in tables.table([zero, two])


def test_results_of_solvers_have_no_settings(small):
    """Their inputs are those of earlier versions."""
    assert not {"settings", "ratio"} & small.inputs(2).keys()


def test_nan_stops_the_sweep_and_keeps_what_is_made(small):
    done = dataclasses.replace(small, preset=dataclasses.replace(small.preset, skips=(0,)))
    list(sweep.run(done))
    small.network.requires_grad_(False)
    next(small.network.parameters()).fill_(math.nan)
    broken = dataclasses.replace(small)
    with pytest.raises(WorkError, match="NaN"):
        list(sweep.run(broken))
    assert (small.folder / "0.json").exists()


@pytest.mark.parametrize("changes", [{"skips": (0, 5)}, {"skips": (-1,)}, {"block": 0}])
def test_presets_out_of_range_are_refused(small, changes):
    with pytest.raises(UsageError):
        with_preset(small, **changes)


# The command itself, on the embedded preset, in processes of their own.

OPTIONS = ("digits", "--seeds", "0-29", "--block", "10", "--skips", "0,9", "--threads", "1")
COMMAND = (sys.executable, str(ROOT / "scripts" / "run_experiments_with_skips.py"), *OPTIONS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Outputs of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
    return outputs(folder / "images_with_skips")


def test_killed_at_any_point_and_resumed(uninterrupted, tmp_path):
    """SIGKILL as soon as one more block has appeared, again and again, then to the end."""
    blocks = 0
    for _ in range(3):
        process = subprocess.Popen(COMMAND, cwd=tmp_path, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            names = (name for _, _, files in os.walk(tmp_path) for name in files)  # folders vanish
            present = sum(name.endswith(".npy") for name in names)
            if present > blocks:
                blocks = present
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        process.wait()
    assert blocks > 0
    subprocess.run(COMMAND, cwd=tmp_path, check=True, capture_output=True)
    assert outputs(tmp_path / "images_with_skips") == uninterrupted


def test_two_processes(uninterrupted, tmp_path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    subprocess.run([*launcher, *COMMAND[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert outputs(tmp_path / "images_with_skips") == uninterrupted


def test_two_nodes(uninterrupted, tmp_path):
    """Each with a torchrun of its own: they meet at an address, as docs/cluster.md says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", address, "--local-addr", "127.0.0.1")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", *meeting)
    command = (*launcher, "--", *COMMAND[1:])
    nodes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        said = b"".join(node.communicate(timeout=300)[0] for node in nodes)
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0]
    assert said.count(b"skipped steps") == 3  # one line for each result, the model alone too
    assert outputs(tmp_path / "images_with_skips") == uninterrupted


def test_an_array_of_slurm(uninterrupted, tmp_path):
    """A task of 10 seeds, then one of 30 for the table, which samples none of these again."""
    for name in ("scripts", "run_experiments_with_skips.sh"):
        (tmp_path / name).symlink_to(ROOT / name)
    body = (ROOT / "scripts" / "sweep.sbatch", "digits", "--block", "10", "--skips", "0,9")
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "VIRTUAL_ENV": "-"}
    root, written = tmp_path / "images_with_skips" / "digits", []
    for size, task in (("10", "2"), ("30", "0")):
        told = {"SIZE": size, "SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": "1"}
        env = {**os.environ, **python, **told}
        subprocess.run(["bash", *body], cwd=tmp_path, env=env, check=True, capture_output=True)
        written.append({path: path.stat().st_mtime_ns for path in root.rglob("*.npy")})
    assert {path.stem for path in written[0]} == {"000020"} and len(written[0]) == 3
    assert written[0].items() <= written[1].items() and len(written[1]) == 9
    assert [result.outputs["count"] for result in results.latest_sweep(root.parent)] == [30] * 3
    assert outputs(root / "0-29") == uninterrupted


def test_bare_tensors_of_the_earlier_reproduction_drive_the_sweep(uninterrupted, tmp_path):
    """mu.pt, U.pt and lambdas.pt alone, written by hand from torch.cov and torch.svd."""
    from linear_structure.data import datasets

    x = datasets.load("digits").images().flatten(1) / 127.5 - 1
    u, values, _ = torch.svd(torch.cov(x.T))
    folder = tmp_path / "by_hand"
    folder.mkdir()
    for name, value in (("mu", x.mean(0).view(1, 8, 8)), ("U", u), ("lambdas", values)):
        torch.save(value, folder / f"{name}.pt")
    done = subprocess.run(
        [*COMMAND, "--parameters", "by_hand"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("taken as pixels in [-1, 1]") == 1
    made = outputs(tmp_path / "images_with_skips")
    assert made["0.json"] == uninterrupted["0.json"]
    ours, theirs = (json.loads(text["9.json"])["distance"] for text in (uninterrupted, made))
    assert theirs == pytest.approx(ours, rel=1e-2)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A command in this process, in an empty folder: its exit code."""
    threads = torch.get_num_threads()

    def run(*words, script="run_experiments_with_skips.py"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *words])
        main = runpy.run_path(str(ROOT / "scripts" / script))["main"]
        try:
            return run_command(main)
        except SystemExit as misuse:
            return misuse.code

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "unknown preset 'nonsense': expected one of digits, fashion, cifar10"),
        (["digits", "--skips", "0,18"], "from 0 to 17"),
        (["digits", "--parameters", "nowhere"], "nowhere is no directory"),
        (["digits", "--network", "nowhere.pkl"], "nowhere.pkl is not a file"),
        (["digits", "--seeds", "9-1"], "FIRST-LAST"),
        (["digits", "--seeds", "0-99999999999"], "at most 10,000,000, each below 2^32"),
        (["digits", "--seeds", "4294967290-4294967296"], "at most 10,000,000, each below 2^32"),
        (["digits", "--seeds", "0-0"], "a distance needs at least two images"),
        (["digits", "--seeds", "0-0", "--dry-run"], "a distance needs at least two images"),
        (["digits", "--rho", "0.001"], "rho is 0.001: float64 cannot hold a grid"),
        (["digits", "--sampler", "annealed", "--rho", "7"], "only 'edm' has an exponent"),
        (["digits", "--tf32", "--device", "cpu"], "--tf32 is for GPUs"),
        (["digits", "--eigenvalue-scale", "4"], "--eigenvalue-scale goes with --parameters"),
        (["digits", "--dataset", "colours.npy"], "colours holds images of 3 x 8 x 8, the network"),
        (["digits", "--device", "abacus"], "no such device"),
        (["digits", "--corrector-steps", "2"], "--corrector-steps belongs to the sampler pc; heun"),
        (["digits", "--sampler", "ddim", "--eta", "2"], "option 'eta' is 2.0: expected 0 to 1"),
    ],
)
def test_misuse_is_one_sentence_and_exit_code_2(call, tmp_path, capsys, arguments, said):
    np.save(tmp_path / "colours.npy", np.zeros((2, 3, 8, 8), np.uint8))
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and said in error
    assert [path.name for path in tmp_path.iterdir()] == ["colours.npy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["GFLOP a call", "features", "at most: nothing"]),
        (["--network", "nowhere.pkl"], ["network is not here", "needed: nowhere.pkl"]),
        (["--network", "http://127.0.0.1:1/n.pkl"], ["network is not here", "n.pkl 4295 MB"]),
        (["--features", "nowhere"], ["GFLOP a call", "features are not", "needed: nowhere"]),
        (["--features", "http://127.0.0.1:1/f.pth"], ["GFLOP", "features are not", "f.pth"]),
        (["--reference", "nowhere.npz"], ["needed: nowhere.npz"]),
        (["--dataset", "nowhere"], ["needed: nowhere"]),
        (["--parameters", "nowhere"], ["needed: nowhere"]),
    ],
)
def test_a_dry_run_says_what_it_knows_and_touches_nothing(
    call, tmp_path, capsys, monkeypatch, arguments, said
):
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    assert call("digits", "--dry-run", "--seeds", "0-9", *arguments) == 0
    output = capsys.readouterr().out
    assert all(words in output for words in ["images computed, in whole blocks: 3,000", *said])
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_the_images_that_will_be_read(call, small, tmp_path, capsys, monkeypatch):
    """For a reference of theirs, whatever parameters there are; else to make parameters alone."""
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("experiments.forecast._seconds_of_call", lambda *_: 1.0)
    parameters.save(tmp_path / "own", small.teleport.model, Story("none", "", 50, (1, 8, 8), 0.5))
    for words, read in (
        (["digits", "--dataset", "CIFAR10", "--parameters", "own"], True),
        (["cifar10"], True),
        (["cifar10", "--parameters", "nowhere"], False),
    ):
        assert call(*words, "--dry-run", "--seeds", "0-9") == 0
        assert ("cifar-10-python" in capsys.readouterr().out) == read


def test_a_dry_run_counts_whole_blocks(small, tmp_path):
    """Seeds 3 to 7 touch two blocks of five, which cost what seeds 0 to 9 do."""
    parts, whole = (
        forecast(dataclasses.replace(small.preset, seeds=seeds), torch.device("cpu"))
        for seeds in (SeedRange(3, 7), SeedRange(0, 9))
    )
    assert parts.images == whole.images == 20
    assert parts.features == whole.features
    assert parts.work.flops == whole.work.flops


def test_a_dry_runs_time_is_that_of_timed_calls(small, monkeypatch):
    """Of 1, 4 and 5 images, which are a block, the last well; of a second or more, of one call."""
    timed = []

    def seconds(network, count, device, calls, each):
        timed.append((count, calls))
        return each * count

    slow = {0.3: [(1, 1), (4, 1)], 2.0: [(1, 1)]}
    for each, calls in {0.01: [(1, 1), (4, 1), (5, PROBES)], **slow}.items():
        monkeypatch.setattr("experiments.forecast._seconds_of_call", partial(seconds, each=each))
        timed.clear()
        work = forecast(small.preset, torch.device("cpu")).work
        assert timed == calls
        assert work.seconds == pytest.approx(each * work.flops / work.flops_per_call)
    timed.clear()
    forecast(with_preset(small, block=1).preset, torch.device("cpu"))
    assert timed == [(1, PROBES)]


def test_a_dry_run_on_a_busy_machine_takes_the_fastest_call_and_says_so(small, monkeypatch):
    """Of calls that take 9, 0.5, 0.1 and 1.5 seconds, the first prepares."""
    took, clock = iter([9.0, 0.5, 0.1, 1.5]), [0.0]
    call = type(small.network).forward

    def slow(*arguments, **words):
        clock[0] += next(took)
        return call(*arguments, **words)

    monkeypatch.setattr("experiments.forecast.ENOUGH", 11.0)
    monkeypatch.setattr("experiments.forecast.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(type(small.network), "forward", slow)
    assert _seconds_of_call(small.network, 1, torch.device("cpu"), 3) == pytest.approx(0.1)
    monkeypatch.undo()
    for load, busy in ((1e3, True), (0.0, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        said = str(forecast(small.preset, torch.device("cpu")))
        assert ("this machine is busy, with a load of 1000.0 on" in said) == busy


def test_a_dry_run_counts_the_steps_of_a_solved_teleport(small, tmp_path):
    """A mixture takes 64 calls of three products for each component; a Gaussian's flow has two."""
    gaussian = small.teleport.model
    mixture = GaussianMixture(torch.ones(2).double() / 2, (gaussian, gaussian))
    flops = []
    for name, model in (("mixture", mixture), ("gaussian", gaussian)):
        parameters.save(tmp_path / name, model, Story("none", "", 50, (1, 8, 8), 0.5))
        preset = dataclasses.replace(small.preset, parameters=tmp_path / name, skips=(0, 2, 4))
        flops.append(forecast(preset, torch.device("cpu")).work.flops)
    product = 2 * gaussian.basis.numel()
    assert flops[0] - flops[1] == 20 * 2 * product * (64 * 2 * 3 - 2)


def test_a_dry_run_with_redirected_sources(call, tmp_path, capsys, monkeypatch):
    """Nothing of another network is said in the name of a preset's."""
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LINEAR_STRUCTURE_SOURCES", str(tmp_path / "nowhere.json"))
    url = "http://127.0.0.1:1/n.pkl"
    assert call("cifar10", "--dry-run", "--seeds", "0-9", "--network", url) == 0
    output = capsys.readouterr().out
    assert "network is not here" in output and "GFLOP" not in output
    assert "at most, unless LINEAR_STRUCTURE_SOURCES says otherwise: given/" in output


def test_a_dry_run_with_features_for_other_images(call, tmp_path, capsys):
    checkpoint.save(tiny.network(), tmp_path / "n.safetensors", {})
    assert call("digits", "--dry-run", "--network", "n.safetensors") == 2
    assert "the features do not suit the network's images" in capsys.readouterr().err


def test_images_of_another_size_are_refused_as_points(call, tmp_path, capsys):
    parameters.save(tmp_path / "p", *fit_gaussian(datasets.load("digits")))
    np.save(tmp_path / "large.npy", np.zeros((2, 9, 9), np.uint8))
    words = ("digits", "--dataset", "large.npy", "--parameters", "p", "--seeds", "0-3")
    assert call(*words, script="plot_scores.py") == 2
    assert "large holds images of 1 x 9 x 9, the network makes 1 x 8 x 8" in capsys.readouterr().err


def test_scores_continue_and_say_what_they_are_of(call, tmp_path, monkeypatch):
    """The second run makes the one block that is missing, and ends with the same numbers."""
    words = ("digits", "--seeds", "0-9", "--block", "5", "--steps", "4")
    assert call(*words, "--skips", "0", script="plot_scores.py") == 2
    assert call(*words, script="plot_scores.py") == 0
    table, record = (tmp_path / "scores" / f"scores.{end}" for end in ("csv", "json"))
    first, inputs = table.read_text(), json.loads(record.read_text())["inputs"]
    assert (inputs["preset"], inputs["seeds"], len(inputs["sigmas"])) == ("digits", [0, 9], 5)
    named = ["isotropic", "isotropic with variance", "Gaussian", "point cloud"]
    assert [name for name, _ in inputs["models"]] == named

    blocks = sorted((tmp_path / "scores" / "blocks").rglob("*.npy"))
    models = ("Gaussian", "isotropic", "isotropic-with-variance", "point-cloud")
    ends = ("000000-000004.npy", "000005-000009.npy")
    assert [path.name for path in blocks] == [
        f"{m}-trajectory-{end}" for m in models for end in ends
    ]
    blocks[1].write_bytes(blocks[1].read_bytes()[:-1])
    kept = blocks[0].stat().st_mtime_ns
    assert call(*words, script="plot_scores.py") == 0
    assert table.read_text() == first
    assert blocks[0].stat().st_mtime_ns == kept

    monkeypatch.setattr("edm.precondition.Preconditioned.forward", None)  # a call would raise
    assert call(*words, script="plot_scores.py") == 0
    with pytest.raises(TypeError):
        call(*words, "--rho", "5", script="plot_scores.py")


def test_the_authors_table_stands_beside_networks_of_its_images(call, tmp_path):
    """Of the shipped parameters it is of rank 300 and says so; other presets have none."""
    words = ("--seeds", "0-1", "--steps", "2")
    assert call("digits", *words, script="plot_scores.py") == 0
    assert call("cifar10-small", *words, script="plot_scores.py") == 0
    scores = tmp_path / "scores"
    (table,) = scores.rglob("published.csv")
    assert table.parent == scores / "cifar10-small" and table.with_suffix(".png").exists()
    lines = table.read_text().splitlines()
    own = [line for line in lines if line.startswith('"Gaussian, rank 300"')]
    assert len(own) == 11 and all(len(line.split(",,")) == 2 for line in own)
    assert sum(line.startswith("Gaussian,") and line.endswith(",,") for line in lines) == 11


def test_the_authors_table_stands_beside_no_other_images(call, tmp_path, monkeypatch):
    """And what an earlier run compared is not left beside scores of a later one."""
    monkeypatch.setattr("experiments.published.BESIDE", ("digits",))
    np.save(tmp_path / "o.npy", np.random.default_rng(0).integers(0, 17, (70, 8, 8), np.uint8))
    words, folder = ("--steps", "2"), tmp_path / "scores" / "digits"

    def compared(*more):
        assert call("digits", *words, *more, script="plot_scores.py") == 0
        record = json.loads((folder / "scores.json").read_text())
        names = {path.name for path in folder.glob("published.*")}
        assert ("published.csv" in record["outputs"]) == ("published.csv" in names)
        return names, record["inputs"]["images"]

    both, images = compared("--seeds", "0-1")
    assert both == {"published.csv", "published.png"}
    rows = (folder / "published.csv").read_text().splitlines()
    lower = [row.endswith(",,") for row in rows if row.startswith('"Gaussian, rank 1')]
    assert lower == 22 * [True]  # of 61 directions that vary
    assert compared("--seeds", "0-0") == (set(), images)
    assert compared("--seeds", "0-1")[0] == both
    parameters.save(tmp_path / "p", *fit_gaussian(datasets.load(tmp_path / "o.npy")))
    assert compared("--seeds", "0-1", "--dataset", "o.npy", "--parameters", "p")[0] == set()


def test_scores_are_of_the_classes_that_the_seeds_draw(small, tmp_path):
    """Blocks of a network with classes that was told none are not read; others stay valid."""
    network, isotropic = (
        tiny.network(img_channels=1, label_dim=3),
        Isotropic(torch.zeros(64).double()),
    )
    sigmas, makers = small.sampling.sigmas, {comparison.GAUSSIAN: lambda: isotropic}
    study, told_none = (
        comparison.study_of(Sampling(each, sigmas), small.machine, makers, None, tmp_path)
        for each in (network, small.network)
    )
    seeds = Seeds.of(range(5))
    latents, denoise = seeds.latents((1, 8, 8)), network.bind(seeds.labels(3))
    steps = list(heun(denoise, latents.double() * sigmas[0], sigmas))
    states = comparison.States(Sampling(network, sigmas), range(5))
    found = study.numbers(states, ("trajectory",))[comparison.GAUSSIAN]["trajectory"]
    assert torch.equal(found, comparison.scores(steps, isotropic.denoise))
    assert study.inputs["labels"] == "drawn"
    assert "labels" not in told_none.inputs


def test_eigenvalues_of_other_units_are_rescaled(call, tmp_path):
    """A directory that describes pixels in [0, 1] gives with --eigenvalue-scale 4 the same."""
    from linear_structure.data import datasets
    from linear_structure.fit import fit_gaussian

    model, story = fit_gaussian(datasets.load("digits"))
    parameters.save(tmp_path / "p", model, story)
    quarter = Gaussian(model.mean, model.basis, model.eigenvalues / 4)
    parameters.save(tmp_path / "q", quarter, story)
    words = ("digits", "--seeds", "0-3", "--block", "4", "--skips", "9", "--threads", "1")
    inputs, distances = [], []
    for given in (("p",), ("q",), ("q", "--eigenvalue-scale", "4")):
        assert call(*words, "--parameters", *given) == 0
        result = results.read(tmp_path / "images_with_skips" / "digits" / "0-3" / "9.json")
        inputs.append(result.inputs["parameters"])
        distances.append(result.distance)
    assert inputs[0] == inputs[2] != inputs[1]
    assert distances[0] == distances[2] != distances[1]


def test_a_full_disk_is_one_sentence_and_leaves_no_part(tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    parameters_made = [sys.executable, str(ROOT / "linear_structure" / "get_parameters.py")]
    parameters_made += ["digits", "gaussian", "gaussian_params_digits"]
    subprocess.run(parameters_made, cwd=tmp_path, check=True, capture_output=True)
    limit = (1000, 1000)  # bytes
    done = subprocess.run(
        COMMAND,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not list((tmp_path / "images_with_skips").rglob("*.npy"))


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "images_with_skips").write_text("in the way")
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "images_with_skips" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("plot_scores.py", ("digits", "--seeds", "0-4", "--block", "5", "--steps", "4")),
        ("suggest_skip.py", ("digits", "--count", "4", "--steps", "6")),
        (
            "generate.py",
            ("--preset", "digits", "--outdir", "made", "--skip", "2", "--seeds", "0-1"),
        ),
        ("likelihood.py", ("digits", "--count", "2", "--probes", "1", "--steps", "4")),
    ],
)
def test_spectral_parameters_serve_as_a_gaussians(call, tmp_path, capsys, script, words):
    """With all frequencies in the block they are the same ones, and so are the numbers."""
    images, said = datasets.load("digits").images(), []
    for model in (Gaussian.from_samples(images), Spectral.from_samples(images, 8)):
        folder = tmp_path / model.kind
        parameters.save(folder / "p", model, Story("digits", "none", 1797, (1, 8, 8), 0.5))
        assert call(*words, "--parameters", str(folder / "p"), script=script) == 0
        text = capsys.readouterr().out
        if script == "plot_scores.py":
            text = (tmp_path / "scores/scores.csv").read_text()
        if script == "generate.py":
            text = str(np.asarray(Image.open(tmp_path / "made/000001.png")).tolist())
            shutil.rmtree(tmp_path / "made")
        said.append([float(number) for number in re.findall(r"\d+\.?\d*", text)])
    assert said[1] == pytest.approx(said[0], rel=1e-3, abs=1e-3)

"""Generated images: names, resume, processes, refusals; what sampler, class and skip change."""

import dataclasses
import json
import math
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import builders
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from edm.checkpoints import checkpoint
from experiments import generation, presets
from experiments.generation import Generation
from experiments.networks import prepared
from experiments.sampling import grid_of
from linear_structure import parameters
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import to_uint8
from linear_structure.parameters import Story
from linear_structure.sampling.ablation import Ablation
from linear_structure.sampling.grids import Churn, sigma_grid
from linear_structure.sampling.samplers import discard, dpmpp_2m, euler, final, heun, unipc
from linear_structure.sampling.seeds import Seeds
from linear_structure.sampling.table import SAMPLERS
from linear_structure.system import machine
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import Machine
from linear_structure.teleport import Teleport, carry

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate.py"
CPU, META = Machine(torch.device("cpu"), 1), Machine(torch.device("meta"), 1)
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Networks of both kinds and a Gaussian to teleport with."""
    folder = tmp_path_factory.mktemp("files")
    checkpoint.save(tiny.network(), folder / "plain.safetensors", {})
    checkpoint.save(tiny.network(label_dim=5), folder / "classes.safetensors", {})
    story = Story("noise", "none", 2, SHAPE, 0.5)
    parameters.save(folder / "gaussian", gaussian(), story)
    parameters.save(folder / "small", Isotropic(torch.zeros(64).double()), story)
    return folder


def gaussian():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(192, 4, generator=generator))
    return Gaussian(torch.linspace(-1, 1, 192).double(), basis, torch.ones(4).double())


@pytest.fixture
def run(files, tmp_path, monkeypatch):
    """The command in this process, called in the folder of the networks: its exit code."""
    threads = torch.get_num_threads()
    main = runpy.run_path(str(SCRIPT))["main"]

    def call(*words, out=tmp_path / "out"):
        monkeypatch.chdir(files)
        monkeypatch.setattr(
            sys, "argv", ["generate", "--outdir", str(out), "--threads", "1", *words]
        )
        return run_command(main)

    yield call
    torch.set_num_threads(threads)


PLAIN = ("--network", "plain.safetensors", "--steps", "4", "--batch", "3")
CLASSES = ("--network", "classes.safetensors", "--steps", "4", "--batch", "3")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


def stored(folder, seeds):
    images = [np.asarray(Image.open(folder / f"{seed:06d}.png")) for seed in seeds]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def levels_apart(a, b):
    return int((a.int() - b.int()).abs().max())


def plain_network():
    return prepared(tiny.network(), CPU)


def sampled(solver, skip=0):
    """The images of seeds 0 to 2 at 4 steps."""
    sigmas = sigma_grid(4)
    start = Seeds.of(range(3)).latents(SHAPE).double() * sigmas[0]
    x = carry(start, sigmas, skip, Teleport(gaussian()))
    return to_uint8(final(solver(plain_network(), x, sigmas[skip:])))


def test_names(run, tmp_path):
    assert run(*PLAIN, "--seeds", "0-2,70") == 0
    assert sorted(contents(tmp_path / "out")) == [f"{i:06d}.png" for i in (0, 1, 2, 70)]


def test_subdirs_hold_a_thousand_seeds(run, tmp_path):
    assert run(*PLAIN, "--seeds", "7,999-1001,12345", "--subdirs") == 0
    made = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.png"))
    assert made == [
        "000000/000007.png",
        "000000/000999.png",
        "001000/001000.png",
        "001000/001001.png",
        "012000/012345.png",
    ]


def test_images_are_those_of_the_sweep(run, tmp_path):
    """The published EDM sampler on the published latents, quantised as published."""
    assert run(*PLAIN, "--seeds", "5,3,9") == 0
    sigmas = sigma_grid(4)
    latents = Seeds.of([5, 3, 9]).latents(SHAPE).double()
    *_, last = heun(plain_network(), latents * sigmas[0], sigmas)
    assert torch.equal(stored(tmp_path / "out", [5, 3, 9]), to_uint8(last.x))


@pytest.mark.parametrize("precondition", ["EDMPrecond", "VPPrecond", "iDDPMPrecond"])
def test_the_grid_is_that_of_the_sweep(precondition, tmp_path):
    network = tiny.network(precondition=precondition)
    preset = dataclasses.replace(presets.find("digits"), steps=9, rho=5.0, skips=())
    generation = Generation(
        network, (0,), tmp_path, CPU, Ablation(9, sigma_min=0.002, sigma_max=80, rho=5.0)
    )
    assert torch.equal(generation.schedule.sigmas, grid_of(preset, network))


def test_grey_images(run, files, tmp_path):
    checkpoint.save(tiny.network(img_channels=1), files / "grey.safetensors", {})
    assert run("--network", "grey.safetensors", "--steps", "2", "--seeds", "0") == 0
    assert Image.open(tmp_path / "out" / "000000.png").mode == "L"


def test_continued_after_a_loss(run, tmp_path):
    """Only what is missing is written, with the bytes that it had."""
    out, command = tmp_path / "out", (*PLAIN, "--seeds", "0-7", "--s-churn", "2")
    assert run(*command) == 0
    whole = contents(out)
    for seed in (1, 6, 7):
        (out / f"{seed:06d}.png").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(*command) == 0
    assert contents(out) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_images_that_a_power_cut_left_empty_blank_or_cut_are_made_again(run, tmp_path):
    out, command = tmp_path / "out", (*PLAIN, "--seeds", "0-3")
    assert run(*command) == 0
    whole = contents(out)
    first, second, third, _ = sorted(out.glob("*.png"))
    first.write_bytes(b"")
    second.write_bytes(bytes(second.stat().st_size))
    third.write_bytes(third.read_bytes()[:-5])
    assert run(*command) == 0
    assert contents(out) == whole


def test_what_is_complete_costs_no_call(run, tmp_path, monkeypatch):
    assert run(*PLAIN, "--seeds", "0-3") == 0
    monkeypatch.setattr("edm.precondition.Preconditioned.forward", None)  # a call would raise
    assert run(*PLAIN, "--seeds", "0-3") == 0


@pytest.mark.parametrize("lost", [(), (0, 1, 2, 8)])
def test_two_processes_make_what_one_makes(run, tmp_path, monkeypatch, capsys, lost):
    """Also when one of them starts after the other has finished some of its batches."""
    command = (*CLASSES, "--seeds", "0-10", "--s-churn", "2")
    assert run(*command, out=tmp_path / "one") == 0
    awaited = []  # by the first process, which here could not end if it did wait
    monkeypatch.setattr(machine, "wait_for", lambda paths: awaited.append(len(list(paths))))
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("0", "1", "0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(*command) == 0
        made.append(len(contents(tmp_path / "out")))
        if len(made) == 2:
            for seed in lost:
                (tmp_path / "out" / f"{seed:06d}.png").unlink()
    assert made[:2] == [6, 11]
    assert awaited == [1, 11, 1, 1, 11, 1]  # the settings; once, all images
    assert capsys.readouterr().out.count("11 images are in") == 2  # one total for each run
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--steps", "5"), "sigmas, steps"),
        (("--seeds", "0-4"), "seeds"),
        (("--batch", "2"), "batch"),
        (("--subdirs",), "subdirs"),
        (("--solver", "unipc"), "sampler"),
        (("--alpha", "1"), "sampler"),
        (("--rho", "5"), "rho, sigmas"),
        (("--s-churn", "1"), "churn"),
        (("--skip", "1", "--parameters", "gaussian"), "parameters, skip"),
        (("--dtype", "float32"), "dtype"),
        (("--threads", "2"), "threads"),
        (("--network", "classes.safetensors"), "network"),
        (("--network", "classes.safetensors", "--class", "1"), "class, network"),
    ],
)
def test_a_folder_of_other_settings_is_left_alone(run, tmp_path, capsys, words, named):
    assert run(*PLAIN, "--seeds", "0-3") == 0
    before = contents(tmp_path / "out")
    assert run(*PLAIN, "--seeds", "0-3", *words) == 2
    assert f"says that another {named} was used" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


CHAINS = {
    "ancestral": {"variance": "beta"},
    "ddim": {"eta": 1.0},
    "pc": {"corrector_steps": 2, "corrector_ratio": 0.1},
    "annealed": {"level_steps": 2},
}


@pytest.mark.parametrize(("solver", "told"), CHAINS.items())
def test_chains_record_what_they_were_told_and_continue_to_the_bit(
    run, tmp_path, capsys, solver, told
):
    out, teleport = tmp_path / "out", ("--skip", "1", "--parameters", "gaussian")
    command = (*PLAIN, "--seeds", "0-4", "--solver", solver, *teleport)
    words = [w for name, v in told.items() for w in (f"--{name.replace('_', '-')}", str(v))]
    assert run(*command, *words) == 0
    whole, record = contents(out), json.loads((out / "generation.json").read_text())
    assert record["settings"] == told
    assert record["discretization"] == ("ve" if solver in ("pc", "annealed") else "edm")
    assert (record.get("ratio", 0) > 0) == (solver == "annealed")
    (out / "000003.png").unlink()
    assert run(*command, *words) == 0
    assert contents(out) == whole
    assert run(*command) == 2
    assert "settings was used" in capsys.readouterr().err


def test_images_of_unknown_origin_are_left_alone(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*PLAIN, "--seeds", "0-3") == 0
    for text in ("[", "[" * 100_000):
        (out / "generation.json").write_text(text)
        assert run(*PLAIN, "--seeds", "0-3") == 2
        assert "generation.json is damaged" in capsys.readouterr().err
    (out / "generation.json").unlink()
    assert run(*PLAIN, "--seeds", "3-4") == 2
    assert "no generation.json" in capsys.readouterr().err
    assert not (out / "000004.png").exists()


def test_the_settings_are_standard_json(run, tmp_path):
    assert run(*PLAIN, "--seeds", "0", "--s-churn", "2", "--s-min", "0.1") == 0
    text = (tmp_path / "out" / "generation.json").read_text()
    settings = json.loads(text, parse_constant=pytest.fail)
    assert settings["churn"] == {"s_churn": 2.0, "s_min": 0.1}


def test_a_class_is_drawn_although_another_is_chosen(run, tmp_path):
    """Choosing the class that a seed would have drawn changes nothing, its noise included."""
    drawn = Seeds.of([0, 1, 2])
    drawn.latents(SHAPE)
    labels = drawn.labels(5).tolist()
    words = (*CLASSES, "--s-churn", "2", "--batch", "1")
    assert run(*words, "--seeds", "0-2", out=tmp_path / "free") == 0
    for seed, label in enumerate(labels):
        out = tmp_path / str(seed)
        assert run(*words, "--seeds", str(seed), "--class", str(label), out=out) == 0
        name = f"{seed:06d}.png"
        assert contents(out)[name] == contents(tmp_path / "free")[name]
    assert run(*words, "--seeds", "0", "--class", str((labels[0] + 1) % 5)) == 0
    assert contents(tmp_path / "out")["000000.png"] != contents(tmp_path / "free")["000000.png"]


def test_noise_belongs_to_a_seed_not_to_a_batch(run, tmp_path):
    words = (*CLASSES, "--s-churn", "4")
    assert run(*words, "--seeds", "0-6", out=tmp_path / "all") == 0
    assert run(*words, "--seeds", "6,2,4", "--batch", "2") == 0
    images, again = (stored(tmp_path / name, [6, 2, 4]) for name in ("all", "out"))
    assert levels_apart(images, again) <= 1


@pytest.mark.parametrize("solver", [heun, dpmpp_2m, unipc])
def test_a_solver_is_the_sampler_of_its_name(run, tmp_path, solver):
    assert run(*PLAIN, "--seeds", "0-2", "--solver", solver.__name__) == 0
    assert torch.equal(stored(tmp_path / "out", range(3)), sampled(solver))


@pytest.mark.parametrize(
    ("words", "solver"),
    [(("--alpha", "1"), heun), (("--schedule", "linear"), heun), (("--solver", "euler"), euler)],
)
def test_an_ablation_option_asks_for_the_ablation_sampler(run, tmp_path, words, solver):
    assert run(*PLAIN, "--seeds", "0-2", *words) == 0
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert settings["sampler"] == "ablation"
    assert levels_apart(stored(tmp_path / "out", range(3)), sampled(solver)) <= 1


@pytest.mark.parametrize(("name", "top"), [("vp", 152.16697), ("ve", 100.0), ("edm", 80.0)])
def test_a_discretization_brings_its_own_range(run, tmp_path, name, top):
    words = ("--preset", "digits", "--discretization", name, "--schedule", "vp", "--scaling", "vp")
    assert run(*words, *PLAIN[:2], "--steps", "3", "--seeds", "0") == 0
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert settings["sigmas"][0] == pytest.approx(top)
    assert (settings["steps"], settings["schedule"]) == (3, "vp")


def test_a_skip_is_the_teleport_and_the_rest_of_the_steps(run, tmp_path):
    words = (*PLAIN, "--seeds", "0-2", "--skip", "2", "--parameters", "gaussian")
    assert run(*words) == 0
    assert torch.equal(stored(tmp_path / "out", range(3)), sampled(heun, skip=2))


def test_skipped_steps_draw_their_noise(run, tmp_path):
    words = (*PLAIN, "--seeds", "0-2", "--skip", "2", "--parameters", "gaussian", "--s-churn", "2")
    assert run(*words) == 0
    sigmas, drawn = sigma_grid(4), Seeds.of(range(3))
    x = gaussian().flow(drawn.latents(SHAPE).double() * sigmas[0], sigmas[0], sigmas[2])
    discard(drawn.noise, x, 2)
    lifts = Churn(s_churn=2).lifts(sigmas)[2:]
    *_, last = heun(plain_network(), x, sigmas[2:], lifts, drawn.noise)
    assert torch.equal(stored(tmp_path / "out", range(3)), to_uint8(last.x))


def test_a_network_computes_in_the_type_asked_for():
    with pytest.raises(UsageError, match="bfloat16 is for GPUs"):
        prepared(tiny.network(), CPU, torch.bfloat16, False)
    assert prepared(tiny.network(), CPU, torch.float32, False).compute_dtype == torch.float32
    meta = prepared(tiny.network(), META, torch.float16, False)
    assert meta.compute_dtype == torch.float16


def test_tf32_is_off_unless_asked_for(monkeypatch):
    monkeypatch.setattr(machine, "chosen_device", torch.device)
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    try:
        conv.fp32_precision = matmul.fp32_precision = "tf32"
        Machine.chosen("cpu", torch.get_num_threads())
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        Machine.chosen("meta", torch.get_num_threads(), tf32=True)
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
    finally:
        conv.fp32_precision, matmul.fp32_precision = before


def test_tf32_is_recorded_where_it_is_used(tmp_path):
    plain = Generation(tiny.network(), (0,), tmp_path, CPU)
    fast = dataclasses.replace(plain, machine=dataclasses.replace(CPU, tf32=True))
    assert fast.inputs == {**plain.inputs, "tf32": True}


def test_an_eigenvalue_scale_is_that_of_the_directory(run, files, tmp_path):
    model = gaussian()
    quarter = Gaussian(model.mean, model.basis, model.eigenvalues / 4)
    parameters.save(files / "quarter", quarter, Story("noise", "none", 2, SHAPE, 0.5))
    words = (*PLAIN, "--seeds", "0-2", "--skip", "2", "--parameters")
    assert run(*words, "gaussian", out=tmp_path / "plain") == 0
    assert run(*words, "quarter", "--eigenvalue-scale", "4") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no network: expected --preset NAME or --network PATH_OR_URL"),
        (("--preset", "nonsense"), "unknown preset 'nonsense'"),
        (("--network", "nowhere.pkl"), "nowhere.pkl is not a file"),
        (("--network-sha256", "0"), "--network-sha256 goes with --network"),
        ((*PLAIN, "--class", "0"), "class 0 of an unconditional network"),
        ((*CLASSES, "--class", "5"), "class 5 is not known: expected 0 to 4"),
        ((*CLASSES, "--class", "-1"), "class -1 is not known: expected 0 to 4"),
        ((*PLAIN, "--seeds", "5-3"), "run backwards"),
        ((*PLAIN, "--seeds", "0,0"), "twice"),
        ((*PLAIN, "--batch", "0"), "a batch of 0 seeds: expected 1 or more"),
        ((*PLAIN, "--steps", "0"), "steps is 0: expected at least 1"),
        ((*PLAIN, "--sigma-min", "90"), "expected 0 < sigma_min < sigma_max"),
        ((*PLAIN, "--skip", "1"), "--skip 1 needs --parameters DIR or --preset NAME"),
        ((*PLAIN, "--skip", "1", "--parameters", "nowhere"), "nowhere is no directory"),
        ((*PLAIN, "--skip", "1", "--parameters", "small"), "64 values"),
        ((*PLAIN, "--skip", "4", "--parameters", "gaussian"), "expected 0 to 3"),
        ((*PLAIN, "--skip", "-1", "--parameters", "gaussian"), "expected 0 to 3"),
        ((*PLAIN, "--solver", "unipc", "--s-churn", "1"), "unipc is deterministic"),
        ((*PLAIN, "--solver", "unipc", "--alpha", "0.5"), "unipc takes no schedule"),
        ((*PLAIN, "--solver", "pc", "--s-churn", "1"), "pc has noise of its own"),
        ((*PLAIN, "--corrector-steps", "2"), "--corrector-steps belongs to the sampler pc"),
        ((*PLAIN, "--solver", "euler", "--eta", "0"), "--eta belongs to the sampler ddim"),
        ((*PLAIN, "--solver", "annealed", "--steps", "1"), "2 levels or more"),
        ((*PLAIN, "--solver", "annealed", "--discretization", "edm"), "evenly spaced in log sigma"),
        ((*PLAIN, "--alpha", "2"), "alpha is 2.0: expected 0 < alpha <= 1"),
        ((*PLAIN, "--s-noise", "-1"), "not negative"),
        ((*PLAIN, "--s-noise", "1.007"), "--s-noise would change nothing: without --s-churn"),
        ((*PLAIN, "--s-max", "50", "--s-churn", "0"), "--s-max would change nothing"),
        (
            (*PLAIN, "--parameters", "gaussian", "--eigenvalue-scale", "4"),
            "--parameters would change nothing: no step is skipped",
        ),
        ((*PLAIN, "--dtype", "float16"), "float16 is for GPUs"),
        ((*PLAIN, "--tf32", "--device", "cpu"), "--tf32 is for GPUs"),
        ((*PLAIN, "--eigenvalue-scale", "4"), "--eigenvalue-scale goes with --parameters"),
        ((*PLAIN, "--rho", "0.001"), "rho is 0.001"),
        ((*PLAIN, "--rho", "5", "--solver", "pc"), "--rho would change nothing: levels are spaced"),
        ((*PLAIN, "--device", "abacus"), "no such device"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing(run, tmp_path, capsys, words, said):
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_outdir_that_is_none_is_one_sentence(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").write_text("in the way")
    assert run(*PLAIN) == 2
    said = capsys.readouterr().err
    assert "out is a file: expected a folder" in said and said.count("\n") == 1
    monkeypatch.chdir(tmp_path)
    assert run(*PLAIN, out="") == 2
    assert "name of a folder is empty: expected one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_claims_at_once_one_holds(tmp_path, monkeypatch):
    """Each comes to write its settings before the other has; without turns both would."""
    meet, write, written = builders.meeting(0.5), generation.write_json, []

    def write_together(path, value):
        meet()
        write(path, value)
        written.append(path)

    monkeypatch.setattr(generation, "write_json", write_together)
    asked = [Generation(tiny.network(), (seed,), tmp_path / "out", CPU) for seed in (1, 2)]
    with ThreadPoolExecutor() as pool:
        errors = [pool.submit(generation._claim, each) for each in asked]
        refused = [str(each.exception()) for each in errors if each.exception()]
    assert len(refused) == 1 and "says that another seeds was used" in refused[0]
    assert len(written) == 1


def test_a_folder_that_holds_other_things_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".hidden").touch()
    assert run(*PLAIN, "--seeds", "0") == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert run(*PLAIN, "--seeds", "0", out=tmp_path / "mine") == 2
    assert "mine holds thesis.txt and no generation.json" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_nan_is_said_and_not_saved(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "edm.precondition.Preconditioned.forward", lambda self, x, sigma, **_: x * math.nan
    )
    assert run(*PLAIN, "--seeds", "0") == 1
    assert "NaN" in capsys.readouterr().err
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler": "rk4"}, "sampler is 'rk4': expected one of heun"),
        ({"settings": Ablation(scaling="vp")}, "sampler heun takes no schedule"),
        ({"skip": 1}, "needs the parameters"),
        ({"network": tiny.network(img_channels=2)}, "2 channels: PNG has 1 or 3"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        Generation(
            **{
                "network": tiny.network(),
                "seeds": (0,),
                "outdir": tmp_path,
                "machine": CPU,
            }
            | changes
        )


def test_the_classes_of_a_teleport_are_recorded(tmp_path):
    network, held = tiny.network(label_dim=2), Teleport(gaussian())
    by_class = Teleport(gaussian(), dict.fromkeys(range(2), Isotropic(torch.zeros(192).double())))
    plain, of_class = (
        Generation(network, (0,), tmp_path, CPU, skip=3, teleport=each).inputs
        for each in (held, by_class)
    )
    assert of_class == {**plain, **by_class.inputs}
    assert "by_class" in of_class and "by_class" not in plain


def test_the_type_that_is_recorded_is_the_networks(tmp_path):
    network = tiny.network()
    made = Generation(network, (0,), tmp_path, CPU)
    assert made.inputs["dtype"] == "as published"
    network.compute_dtype = torch.bfloat16
    assert made.inputs["dtype"] == "bfloat16"


def test_parameters_are_used_from_memory(tmp_path):
    held = gaussian()
    made = Generation(tiny.network(), (0,), tmp_path, CPU, skip=3, teleport=Teleport(held))
    assert made.teleport.model is held
    assert (made.inputs["skip"], made.inputs["parameters"]) == (3, parameters.digest(held))


def test_a_sampler_that_does_not_end_in_images_is_refused(run, tmp_path, monkeypatch, capsys):
    stops = dataclasses.replace(
        SAMPLERS["heun"], run=lambda *given: islice(SAMPLERS["unipc"].run(*given), 2)
    )
    monkeypatch.setitem(SAMPLERS, "heun", stops)
    assert run(*PLAIN, "--seeds", "0-2") == 2
    assert "the sampler ends at noise level" in capsys.readouterr().err
    assert not contents(tmp_path / "out")

"""The command `fid.py`: equal bits however the work is divided; one sentence for each mistake."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from PIL import Image

from edm.evaluation import extraction, features, fid
from edm.evaluation.extraction import Selection, subset
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.machine import Machine, set_threads

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "fid.py"
WEIGHTS = ROOT / "edm" / "weights" / "digits-features.safetensors"
SETTINGS = ("--features", str(WEIGHTS), "--batch", "100", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def script():
    return builders.module(SCRIPT)


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    """Type a command; returns exit code, output and complaints."""
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()

    def typed(*words):
        command, *rest = map(str, words)
        monkeypatch.setattr(sys, "argv", ["fid.py", command, *SETTINGS, *rest])
        code = run_command(script.main)
        return code, *capsys.readouterr()

    yield typed
    set_threads(threads)


def made(path):
    """What two runs of equal inputs must have in common, bit for bit."""
    statistics = fid.read(path)
    return statistics.digest, statistics.count, statistics.features


def start(*words):
    """The command as another program, of two processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    return subprocess.Popen(
        [sys.executable, *torchrun, str(SCRIPT), *map(str, words), *SETTINGS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_wait_for_an_equal_command_and_equal_it_bit_for_bit(
    run, tmp_path, monkeypatch
):
    words = ("calc", "--images", "digits", "--ref", "digits", "--num", "950", "--json")
    others, measure = [], extraction.Extractor.measure

    def measure_while_another_starts(*arguments):
        if not others:
            others.append(start(*words, tmp_path / "two.json"))
            for line in others[0].stderr:
                if "waiting for another process that computes the same features" in line:
                    break
        return measure(*arguments)

    monkeypatch.setattr(extraction.Extractor, "measure", measure_while_another_starts)
    assert run(*words, tmp_path / "one.json")[0] == 0
    _, complaints = others[0].communicate(timeout=120)
    assert others[0].returncode == 0, complaints
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one[0]["outputs"] == two[0]["outputs"]
    assert one[0]["inputs"] == two[0]["inputs"]
    assert [each[0]["made"]["processes"] for each in (one, two)] == [1, 2]
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_stopped_and_continued_equals_uninterrupted_bit_for_bit(run, tmp_path, monkeypatch):
    whole, continued = tmp_path / "whole.npz", tmp_path / "continued.npz"
    assert run("ref", "--images", "digits", "--out", whole)[0] == 0

    def stopping(name):
        def read(first, last):
            if first >= 700:
                raise KeyboardInterrupt
            return digits.read(first, last)

        digits = datasets._digits()
        return replace(digits, read=read)

    words = ("ref", "--images", "digits", "--out", continued, "--work", tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr(extraction.datasets, "load", stopping)
        code, _, complaint = run(*words)
    assert (code, continued.exists()) == (130, False)
    assert "continues" in complaint
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npy")}
    assert len(kept) == 7
    assert run(*words)[0] == 0
    assert made(continued) == made(whole)
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*")}.items()


def test_what_the_command_says_beside_its_work_does_not_matter_to_a_continuation(
    run, tmp_path, monkeypatch
):
    def stopping(self, images, block):
        if block == 5:
            raise KeyboardInterrupt
        return make(self, images, block)

    words, make = ("calc", "--images", "digits", "--ref", "digits"), extraction.Extractor._made
    with monkeypatch.context() as patch:
        patch.setattr(extraction.Extractor, "_made", stopping)
        assert run(*words)[0] == 130
    kept = list((tmp_path / "cache").rglob("*.npy"))
    made_again = []

    def making(self, images, block):
        made_again.append(block)
        return make(self, images, block)

    monkeypatch.setattr(extraction.Extractor, "_made", making)
    assert run(*words, "--json", tmp_path / "result.json")[0] == 0
    assert (len(kept), made_again) == (5, list(range(5, 18)))


def test_features_are_kept_until_the_result_is_written(run, script, tmp_path, monkeypatch):
    def fail(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    words = ("calc", "--images", "digits", "--ref", "digits", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(script, "write_json", fail)
        assert run(*words, tmp_path / "result.json")[0] == 1
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 18
    assert run(*words, tmp_path / "result.json")[0] == 0
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "other shape", "other type", "text"])
def test_a_damaged_block_is_made_again(run, tmp_path, damage):
    work = tmp_path / "work"
    words = ("ref", "--images", "digits", "--num", "300", "--work", work, "--out")
    assert run(*words, tmp_path / "before.npz")[0] == 0
    block = sorted(work.rglob("*.npy"))[1]
    whole = block.read_bytes()
    damages = {"cut": whole[:-1], "empty": b"", "header": whole[:40], "text": b"features" * 99}
    block.write_bytes(damages.get(damage, whole))
    if damage.startswith("other"):
        rows = np.load(block)
        np.save(block, rows[:-1] if damage == "other shape" else rows.astype(np.float64))
    assert run(*words, tmp_path / "after.npz")[0] == 0
    assert block.read_bytes() == whole
    assert made(tmp_path / "after.npz") == made(tmp_path / "before.npz")


def test_a_block_that_is_damaged_while_others_work_is_made_again(tmp_path):
    network = features.load(WEIGHTS)
    images = Selection.of("digits", 20)
    extract = extraction.Extractor(network, 10, Machine(torch.device("cpu"), 1), tmp_path)
    assert extract.compute(images) == 20
    next(tmp_path.rglob("000001.npy")).write_bytes(b"cut")
    found = torch.cat(list(extract.blocks(images)))
    assert torch.equal(found, images.features(network, images.chosen))
    assert extract.compute(images) == 0


def test_blocks_of_another_process_that_ended_are_made_in_the_end(tmp_path, monkeypatch):
    """Its files vanished after it had made them: nobody else would, however long one waits."""
    images, machine = Selection.of("digits", 40), Machine(torch.device("cpu"), 1)
    extract = extraction.Extractor(features.load(WEIGHTS), 10, machine, tmp_path)
    whole = extract.measure(images).statistics
    monkeypatch.setattr("linear_structure.system.machine.GRACE", 0.3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in (1, 3):  # of the second of two processes
        next(tmp_path.rglob(f"00000{number}.npy")).unlink()
    assert extract.measure(images).statistics.digest == whole.digest


def test_reference_measures_all_images_and_knows_its_network(run, tmp_path):
    code, output, _ = run("ref", "--images", "digits", "--out", tmp_path / "digits.npz")
    digest, count, network = made(tmp_path / "digits.npz")
    assert (code, count, network) == (0, 1797, features.load(WEIGHTS).digest)
    assert digest in output
    code, output, _ = run("calc", "--images", "digits", "--ref", tmp_path / "digits.npz")
    assert code == 0
    assert output.startswith("FD-digits ")
    assert "n = 1797" in output
    assert "peak memory" in output
    assert "images/s" in output


def test_an_npz_of_images_is_a_reference_too(run, tmp_path):
    """As the same images in a folder, with KID; statistics stay statistics."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array(["odd"] * 30))
    np.savez(tmp_path / "b.npz", pixels)
    save_images(tmp_path / "folder", 30)
    found = []
    for reference in ("a.npz", "b.npz", "folder"):
        words = ("calc", "--images", "digits", "--num", "30", "--ref", tmp_path / reference)
        code, output, said = run(*words, "--kid", "9")
        assert code == 0, said
        found.append(output.splitlines()[0])
    assert found[0] == found[1]
    assert "KID" in found[0]
    distance = float(found[0].split()[1])
    assert distance == pytest.approx(float(found[2].split()[1]), rel=0.2)


def test_images_of_another_size_are_brought_to_that_which_the_features_learned_on(run, tmp_path):
    """What is found is what is found of images that somebody resized before."""
    large = datasets.load("digits").images()[:80].repeat_interleave(2, 2).repeat_interleave(2, 3)
    np.save(tmp_path / "large.npy", large.squeeze(1).numpy())
    np.save(tmp_path / "small.npy", features.resized(large, 8).squeeze(1).numpy())
    found = []
    for name in ("large", "small"):
        words = ("--images", tmp_path / f"{name}.npy", "--ref", "digits", "--num", 80)
        code, _, said = run("calc", *words, "--json", tmp_path / f"{name}.json")
        assert code == 0
        assert ("note: FD-digits is of images brought to 8 x 8" in said) == (name == "large")
        found += json.loads((tmp_path / f"{name}.json").read_text())
    large, small = (each["inputs"]["features"] for each in found)
    assert (large, small) == ("classifier-digits-of-8-pixels", "classifier-digits")
    assert found[0]["outputs"] == found[1]["outputs"]
    statistics = tmp_path / "large.npz"
    assert run("ref", "--images", tmp_path / "large.npy", "--out", statistics)[0] == 0
    code, _, said = run("calc", "--images", tmp_path / "small.npy", "--ref", statistics)
    assert code == 2 and "brought to another size" in said


def test_labels_that_nobody_needs_do_not_stop_a_distance(run, tmp_path):
    folder = save_images(tmp_path / "images", 9)
    assert run("ref", "--images", folder, "--out", tmp_path / "plain.npz")[0] == 0
    for labels in ("[[", '{"labels": [["0-0.png", [0.5]], ["0-0.png", 3]]}'):
        (folder / "dataset.json").write_text(labels)
        assert run("ref", "--images", folder, "--out", tmp_path / "odd.npz")[0] == 0
        assert made(tmp_path / "odd.npz") == made(tmp_path / "plain.npz")


def test_repetitions_show_mean_spread_and_minimum(run, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        save_images(tmp_path / name, 30, seed)
    sets = (tmp_path / "a", tmp_path / "b")
    code, output, note = run("calc", "--images", *sets, "--ref", "digits", "--json", tmp_path / "r")
    distances = [r["outputs"]["distance"] for r in json.loads((tmp_path / "r").read_text())]
    assert code == 0
    assert f"FD-digits {sum(distances) / 2:.6g} +- " in output
    assert f"published convention: {min(distances):.6g}" in output
    assert "30 images give a singular covariance" in note


def test_kid_precision_and_recall_from_the_same_features(run, tmp_path):
    words = ("calc", "--images", "digits", "--ref", "digits", "--kid", "200", "--precision-recall")
    assert run(*words, "--json", tmp_path / "result.json")[0] == 0
    outputs = json.loads((tmp_path / "result.json").read_text())[0]["outputs"]
    assert abs(outputs["kid"]["mean"]) < outputs["kid"]["deviation"]
    assert (outputs["precision"], outputs["recall"]) == (1, 1)
    assert outputs["distance"] < 1e-9


def save_images(folder, count, seed=0, size=8):
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{seed}-{index}.png")
    return folder


def test_mistakes_are_one_sentence_before_any_work(run, tmp_path, monkeypatch):
    few = save_images(tmp_path / "few", 5)
    save_images(tmp_path / "lone", 1)
    mixed = save_images(save_images(tmp_path / "mixed", 5), 5, seed=1, size=9)
    np.savez(tmp_path / "other.npz", mean=np.zeros(2))
    fid.write(tmp_path / "narrow.npz", fid.measure([torch.randn(9, 3)]))
    other = fid.measure([torch.randn(9, features.load(WEIGHTS).dim)], "another network")
    fid.write(tmp_path / "foreign.npz", other)
    np.save(tmp_path / "colour.npy", np.zeros((9, 8, 8, 3), np.uint8))
    cases = {
        "colour does not suit the features": (tmp_path / "colour.npy", "digits"),
        "--seed would change nothing: all images are taken": (few, few, "--seed", "1"),
        "--seed would change nothing: all": (few, few, "--num", "5", "--seed", "0"),
        "--tf32 would change nothing: it is of Inception on NVIDIA": (few, few, "--tf32"),
        "--tf32 would change nothing": (few, few, "--tf32", "--features", "inception"),
        "few has 5 images, not the 6 asked for": (few, "digits", "--num", "6"),
        "n = 5, 1797 do not compare": (few, "digits", "digits"),
        "two networks": (few, tmp_path / "foreign.npz"),
        "1 of few: a distance needs two images": (few, "digits", "--num", "1"),
        "1 of lone: a distance needs two images": (tmp_path / "lone", "digits"),
        "0 of few: a distance needs two images": (few, "digits", "--num", "0"),
        "--threads 0: expected 1 to 1024": (few, "digits", "--threads", "0"),
        "--device abacus: there is no such device": (few, "digits", "--device", "abacus"),
        "few is a folder: expected the name of a file": (few, "digits", "--json", few),
        "neither a known dataset": (tmp_path / "nowhere", "digits"),
        "holds mean: expected mu and sigma": (few, tmp_path / "other.npz"),
        "3 and 64 dimensions": (few, tmp_path / "narrow.npz"),
        "is not a file": (few, tmp_path / "missing.npz"),
        "KID, precision and recall compare with images": (few, tmp_path / "other.npz", "--kid"),
        "subsets of 9 images": (few, "digits", "--kid", "9"),
        "subsets of 1 images": (few, "digits", "--kid", "1"),
        "need more than 5 images": (few, "digits", "--precision-recall", "5"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(extraction.Extractor, "compute", lambda *_: pytest.fail("work has begun"))
        for complaint, words in cases.items():
            images, reference, options = split(words)
            code, _, error = run("calc", "--images", *images, "--ref", reference, *options)
            assert (code, error.count("\n")) == (2, 1), error
            assert complaint in error
    assert run("calc", "--images", mixed, "--ref", "digits")[0] == 2  # seen where it is read


@pytest.mark.parametrize("name, complaint", [("", "is a folder"), ("plain", "ends in .npz")])
def test_statistics_go_to_an_npz_file(run, tmp_path, name, complaint):
    code, _, error = run("ref", "--images", "digits", "--out", tmp_path / name)
    assert (code, error.count("\n")) == (2, 1)
    assert complaint in error


def test_images_are_not_written_over(run, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", pixels)
    (tmp_path / "link.npz").symlink_to("a.npz")
    folder = save_images(tmp_path / "images", 9)
    (folder / "dataset.json").write_text('{"labels": null}')
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(extraction.Extractor, "compute", lambda *_: pytest.fail("work has begun"))
    a, calc = tmp_path / "a.npz", ("calc", "--images", folder, "--ref")
    for words in (
        ("ref", "--images", a, "--out", tmp_path / "link.npz"),
        ("ref", "--images", a, "--out", tmp_path / "images" / ".." / "a.npz"),
        (*calc, a, "--json", a),
        (*calc, "digits", "--json", folder / "0-1.png"),
        (*calc, "digits", "--json", folder / "dataset.json"),
    ):
        code, _, error = run(*words)
        assert (code, error.count("\n")) == (2, 1) and "is what is read" in error
    assert all(path.read_bytes() == content for path, content in kept.items())


def split(words):
    """Images, reference and options of a case; the reference is the last word before options."""
    end = next((i for i, word in enumerate(words) if str(word).startswith("--")), len(words))
    return words[: end - 1], words[end - 1], words[end:]


def numbers(count):
    return Dataset.of("numbers", torch.zeros(count, 1, 1, 1, dtype=torch.uint8))


def test_subset_is_the_published_one():
    # numpy.random.RandomState(0).shuffle(arange(10)) begins 2, 8, 4, 9
    assert subset(numbers(10), 4, 0) == [2, 4, 8, 9]
    assert subset(numbers(10), 4, 2**31) == [2, 4, 8, 9]
    assert subset(numbers(10), 4, 1) != [2, 4, 8, 9]
    assert subset(numbers(10), 10, 1) == subset(numbers(10), None, 0) == list(range(10))
    with pytest.raises(UsageError, match="10 images, not the 11"):
        subset(numbers(10), 11, 0)


def test_images_that_are_replaced_without_a_trace_are_computed_again(run, tmp_path):
    """Behind a link, at another place, or with the size and times of what was there."""
    work, folder, sets = tmp_path / "work", tmp_path / "images", [tmp_path / "a", tmp_path / "b"]
    for each, grey in zip(sets, (0, 200), strict=True):
        save_images(each, 30)
        Image.new("L", (8, 8), grey).save(each / "0-0.png", compress_level=0)
        os.utime(each / "0-0.png", ns=(0, 0))
    sizes = {(each / "0-0.png").stat().st_size for each in sets}
    assert len(sizes) == 1  # nothing but the content tells the two

    def found(images):
        assert run("ref", "--images", images, "--work", work, "--out", tmp_path / "s.npz")[0] == 0
        return made(tmp_path / "s.npz")[0]

    folder.mkdir()
    (folder / "link").symlink_to(sets[0])
    first = found(folder)
    count = len(list(work.rglob("*.npy")))
    assert found(sets[0]) == first  # the same images elsewhere: nothing is computed again
    assert len(list(work.rglob("*.npy"))) == count
    (folder / "link").unlink()
    (folder / "link").symlink_to(sets[1])
    second = found(folder)
    assert second != first
    shutil.copy2(sets[1] / "0-0.png", sets[0] / "0-0.png")
    assert found(sets[0]) == second


def test_changed_images_are_computed_again(run, tmp_path):
    folder, work = save_images(tmp_path / "images", 30), tmp_path / "work"
    words = ("ref", "--images", folder, "--work", work, "--out")
    assert run(*words, tmp_path / "before.npz")[0] == 0
    Image.new("L", (8, 8)).save(folder / "0-0.png")
    assert run(*words, tmp_path / "after.npz")[0] == 0
    assert made(tmp_path / "before.npz")[0] != made(tmp_path / "after.npz")[0]

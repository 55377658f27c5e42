"""Seeds: the published draws, and that a sample's randomness is its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from linear_structure.sampling.seeds import Seeds, check_class, format_seeds, parse_seeds
from linear_structure.system.errors import UsageError

GOLDEN = Path(__file__).parents[2] / "golden"


def test_latents_are_the_published_ones():
    golden = np.load(GOLDEN / "latents_cpu.npz")
    latents = Seeds.of(golden["seeds"].tolist()).latents((3, 4, 4))
    assert latents.dtype == torch.float32
    assert np.array_equal(latents.numpy(), golden["latents"])


def test_full_size_latents_and_labels_are_the_published_ones():
    seeds = Seeds.of(range(8))
    latents = seeds.latents((3, 32, 32))
    first = [[-1.1258398, -1.1523602, -0.25057858, -0.43387881]]
    first += [[-1.5255960, -0.75023180, -0.65398091, -1.6094848]]
    assert torch.allclose(latents[:2, 0, 0, :4], torch.tensor(first), rtol=1e-7, atol=0)
    assert seeds.labels(10).tolist() == [7, 9, 4, 3, 5, 0, 9, 6]


def test_a_chosen_class_still_draws_one():
    free, fixed = Seeds.of(range(3)), Seeds.of(range(3))
    x = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    free.labels(10)
    assert fixed.labels(10, chosen=4).tolist() == [4, 4, 4]
    assert torch.equal(free.noise(x), fixed.noise(x))


@pytest.mark.parametrize("chosen", [-1, 10])
def test_a_class_that_the_network_lacks_is_refused(chosen):
    with pytest.raises(UsageError, match="expected 0 to 9"):
        Seeds.of([0]).labels(10, chosen)


def test_noise_does_not_depend_on_the_batch():
    def draws(seeds: list[int]) -> torch.Tensor:
        batch = Seeds.of(seeds)
        x = batch.latents((1, 4, 4)).double()
        return torch.stack([batch.noise(x) for _ in range(3)], 1)

    together = draws([5, 6, 7])
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.cat([draws([5]), draws([6, 7])]))
    assert torch.equal(together.flip(0), draws([7, 6, 5]))


def test_uniform_draws_are_the_samples_own():
    x = torch.zeros(200, 1, 4, 4, dtype=torch.float64)
    drawn = Seeds.of(range(200)).uniform(x)
    assert (drawn.dtype, drawn.shape) == (x.dtype, x.shape)
    assert 0 <= drawn.min() < 0.01 and 0.99 < drawn.max() < 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=4 / (12 * drawn.numel()) ** 0.5)
    assert torch.equal(drawn[7:9], Seeds.of([7, 8]).uniform(x[7:9]))


def test_noise_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="2 samples for 3 seeds"):
        Seeds.of(range(3)).noise(torch.zeros(2, 1))


def test_seeds_are_taken_modulo_two_to_the_32():
    assert torch.equal(Seeds.of([2**32 + 3]).latents((4,)), Seeds.of([3]).latents((4,)))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0-3,7", [0, 1, 2, 3, 7]),
        ("9, 2-2", [9, 2]),
        ("49998-50000", [49998, 49999, 50000]),
    ],
)
def test_parse_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty part"),
        ("1,,2", "empty part"),
        ("1,", "empty part"),
        ("one", "'one'"),
        ("-3", "'-3'"),
        ("3-", "'3-'"),
        ("1.5", "'1.5'"),
        ("1-2-3", "'1-2-3'"),
        ("4,9-3", "backwards in '9-3': expected 3-9"),
        ("1-5,3", "twice"),
        ("0-99999999999999999999", "at most 10,000,000"),
        ("0,4294967296", "hold 4294967296: expected each of them below"),
        ("4294967290-4294967297", "hold 4294967297"),
        ("0-5999999,6000000-11999999", "are 12,000,000: expected at most 10,000,000"),
    ],
)
def test_parse_seeds_names_the_mistake(text, message):
    with pytest.raises(UsageError, match=message):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["0", "0-63,70", "5,3,9", "4-6,0-1,7", "9,8,7"])
def test_seeds_are_written_as_they_are_read(text):
    assert format_seeds(parse_seeds(text)) == text


def test_neighbours_are_written_as_a_range():
    assert format_seeds([0, 1, 2, 4]) == format_seeds(parse_seeds("0-1,2,4-4")) == "0-2,4"


def test_a_network_without_classes_takes_none():
    with pytest.raises(UsageError, match="class 0 of an unconditional network"):
        check_class(0, 0)

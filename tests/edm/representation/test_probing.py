"""Probing: what is learnt is chosen on validation, repeats to the bit, and is compared in pairs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from sklearn.neighbors import KNeighborsClassifier

from edm.representation.heads import Attentive, Concatenated, Linear, PerLevel, Recurrent
from edm.representation.probing import (
    Part,
    Recipe,
    Split,
    best_single,
    fit,
    nearest_neighbours,
    paired,
)
from linear_structure.system.errors import UsageError

LONG = Recipe(epochs=40, batch=100, learning_rates=(8e-3,))
SHORT = replace(LONG, epochs=4, learning_rates=(1e-3,))
ONE = replace(LONG, epochs=1)
SIZES = torch.tensor([1.0, 1000.0, 1.0])[:, None]

pytestmark = pytest.mark.usefixtures("one_thread")


def accuracy(head, split, recipe, visible=None):
    return fit(head, split, recipe, 0, visible).test


@pytest.mark.parametrize("dropout", (0.0, 0.25))
def test_a_head_of_each_level_learns_as_if_each_were_alone(rings, dropout):
    """One training of three levels, and three of one with the same start, order and dropout."""
    split, recipe = rings(dtype=torch.float64), replace(SHORT, dropout=dropout)
    torch.manual_seed(0)
    start = PerLevel(3, 2, 3, dropout)
    whole = fit(lambda *_: copy.deepcopy(start), split, recipe, 0)
    for level in range(3):
        alone = PerLevel(1, 2, 3, dropout)
        alone.load_state_dict({k: v[level : level + 1] for k, v in start.state_dict().items()})
        found = fit(lambda *_, alone=alone: alone, split.only(level), recipe, 0)
        for name, value in found.head.state_dict().items():
            assert torch.allclose(whole.head.state_dict()[name][level], value[0], atol=1e-6)
        assert torch.equal(whole.predictions[:, level], found.predictions[:, 0])
        assert torch.equal(whole.test[level], found.test[0])


@pytest.mark.parametrize("head", (PerLevel, Linear, Concatenated, Recurrent, Attentive))
def test_a_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(rings, head):
    split = rings()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = fit(head, split, ONE, 1)
    assert torch.equal(torch.rand(3), expected)
    again, other = fit(head, split, ONE, 1), fit(head, split, ONE, 2)
    states = [found.head.state_dict() for found in (first, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert torch.equal(first.predictions, again.predictions)
    assert first.digest == again.digest != other.digest


def test_the_digest_tells_what_results_follow_from(rings):
    split = rings()
    visible = torch.tensor([True, True, False])
    digests = {
        fit(*given).digest
        for given in (
            (Linear, split, ONE, 0),
            (Linear, split, replace(ONE, learning_rates=(1e-3,)), 0),
            (Linear, split, ONE, 0, visible),
            (Linear, split.repeated(0), ONE, 0),
            (PerLevel, split, ONE, 0),
        )
    }
    assert len(digests) == 5


def test_learning_rates_are_chosen_for_each_level_on_validation(rings):
    """Levels of other sizes want other rates; the test part says the opposite of validation."""
    split = rings()
    train, validation = (
        Part(part.z * SIZES, part.labels % 2) for part in (split.train, split.validation)
    )
    split = Split(train, validation, Part(validation.z, 1 - validation.labels))
    rates = (1e-4, 1e-2)
    both = fit(PerLevel, split, replace(SHORT, learning_rates=rates), 0)
    alone = [fit(PerLevel, split, replace(SHORT, learning_rates=(rate,)), 0) for rate in rates]
    best = torch.stack([found.validation for found in alone]).argmax(0)
    assert torch.equal(both.chosen, torch.tensor(rates, dtype=torch.float64)[best])
    assert best.tolist()[:2] == [1, 0]
    for level, rate in enumerate(best.tolist()):
        assert both.test[level] == alone[rate].test[level] < alone[1 - rate].test[level]
        assert both.validation[level] == alone[rate].validation[level]
    whole = fit(Concatenated, rings(), replace(SHORT, learning_rates=rates), 0)
    assert whole.chosen.shape == whole.validation.shape == whole.test.shape == ()
    assert float(whole.chosen) in rates


def test_accuracies_are_those_of_the_predictions(rings):
    split = rings()
    found = fit(PerLevel, split, SHORT, 0)
    scores = found.head(split.test.z)
    assert torch.equal(found.predictions, scores.argmax(-1))
    for level in range(3):
        right = np.mean(found.predictions[:, level].numpy() == split.test.labels.numpy())
        assert float(found.test[level]) == pytest.approx(right)


def test_the_single_level_is_the_best_on_validation_whatever_the_test_says(rings):
    found = fit(Linear, rings(), ONE, 0)
    told = torch.tensor([[0.1, 0.3, 0.2], [0.9, 0.0, 0.5], [0.4, 0.4, 0.1]])
    assert best_single(replace(found, validation=told[0], test=told[1])) == 1
    assert best_single(replace(found, validation=told[2], test=told[1])) == 0
    with pytest.raises(UsageError, match="answers for each"):
        best_single(replace(found, validation=torch.tensor(0.5)))


def test_a_level_and_the_same_level_repeated_differ_by_a_short_budget_alone(rings):
    split = rings().only(0)
    repeated = rings().repeated(0)
    gains = [
        float(accuracy(Concatenated, repeated, recipe) - accuracy(PerLevel, split, recipe)[0])
        for recipe in (SHORT, LONG)
    ]
    assert abs(gains[0]) > 0.04
    assert abs(gains[1]) < 0.01  # standard error of one accuracy: .002


def test_attention_to_one_level_reads_what_the_level_s_own_head_reads(rings):
    """And not so while training is too short for that head."""
    split, first = rings(), torch.tensor([True, False, False])
    for recipe, low, high in ((SHORT, 0.1, 1.0), (LONG, -0.03, 0.03)):
        own = accuracy(PerLevel, split.only(0), recipe)[0]
        assert low < float(accuracy(Attentive, split, recipe, first) - own) < high


def test_nearest_neighbours_are_those_of_scikit_learn(rings):
    split = rings()
    found = nearest_neighbours(split, (1, 5, 20))
    for level, count in enumerate(found.chosen.tolist()):
        z, labels = split.train.z[:, level].numpy(), split.train.labels.numpy()
        votes = {n: KNeighborsClassifier(n).fit(z, labels) for n in (1, 5, 20)}
        theirs = votes[count].predict(split.test.z[:, level].numpy())
        assert np.array_equal(theirs, found.predictions[:, level].numpy())
        scores = [
            each.score(split.validation.z[:, level].numpy(), split.validation.labels.numpy())
            for each in votes.values()
        ]
        assert float(found.validation[level]) == pytest.approx(max(scores))
    for counts in ((), (0,), (601,)):
        with pytest.raises(UsageError, match="from 1 to 600"):
            nearest_neighbours(split, counts)


def test_a_difference_is_that_of_a_paired_t_test():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    found, theirs = paired(a, b), ttest_rel(a.numpy(), b.numpy())
    interval = theirs.confidence_interval(0.95)
    assert found.n == 5
    assert found.mean == pytest.approx(float((a - b).mean()))
    assert found.t == pytest.approx(theirs.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    for few in ((a[:1], b[:1]), (a, b[:4]), (a[0], b[0])):
        with pytest.raises(UsageError, match="two seeds or more"):
            paired(*few)


def test_the_training_part_gives_each_level_and_number_mean_0_and_variance_1():
    z = torch.randn(60, 2, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    z[:, 1, 2] = 5.0
    part = torch.arange(60) % 3
    split = Split.of(z, torch.arange(60) // 3 % 2, part, torch.arange(60))
    found = split.standardised()
    assert torch.allclose(found.train.z.mean(0), torch.zeros(2, 3), atol=1e-5)
    expected = torch.ones(2, 3)
    expected[1, 2] = 0  # a constant
    assert torch.allclose(found.train.z.std(0, correction=0), expected, atol=1e-5)
    own = z[part == 0]
    moved = (z[part == 2] - own.mean(0)) / own.std(0, correction=0)
    assert torch.allclose(found.test.z[:, 0], moved[:, 0], atol=1e-4)


def test_levels_alone_repeated_and_joined():
    z = torch.arange(48.0).reshape(8, 3, 2)
    part = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    split = Split.of(z, torch.arange(8) % 2, part, torch.arange(8))
    assert torch.equal(split.only(1).test.z, z[6:, 1:2])
    assert torch.equal(split.repeated(2).train.z, z[:4, [2, 2, 2]])
    assert torch.equal(split.joined().validation.z, z[4:6].reshape(2, 1, 6))
    assert (split.levels, split.dim, split.classes) == (3, 2, 2)
    assert len({each.digest for each in (split, split.joined(), split.only(0))}) == 3


def test_one_source_in_two_parts_is_refused():
    z, labels = torch.randn(8, 3, 2), torch.arange(8) % 2
    part, source = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.arange(8) // 2
    Split.of(z, labels, part, source)
    with pytest.raises(UsageError, match="images of source 2 are in more than one part"):
        Split.of(z, labels, part.index_fill(0, torch.tensor([5]), 2), source)
    for wrong in (part[:7], part - 1, part + 1):
        with pytest.raises(UsageError, match="parts from 0 to 2"):
            Split.of(z, labels, wrong, source)


@pytest.mark.parametrize(
    ("z", "labels", "words"),
    [
        (torch.zeros(4, 0, 2), [0, 1, 0, 1], "K levels and d numbers each, 1 or more"),
        (torch.zeros(4, 3, 0), [0, 1, 0, 1], "K levels and d numbers each, 1 or more"),
        (torch.zeros(4, 6), [0, 1, 0, 1], "K levels and d numbers each, 1 or more"),
        (torch.zeros(4, 4, 2), [0, 1, 0, 1], "equal in all parts"),
        (torch.zeros(0, 3, 2), [], "expected one or more, with a label each"),
        (torch.zeros(4, 3, 2), [0, 1], "expected one or more, with a label each"),
        (torch.zeros(4, 3, 2), [0, 1, 2, 4], "no image of class 2, 4 is in the training part"),
        (torch.zeros(4, 3, 2), [0, 1, -1, 1], "0 or more"),
        (torch.full((4, 3, 2), torch.nan), [0, 1, 0, 1], "NaN or infinity"),
    ],
)
def test_parts_that_cannot_be_are_refused_in_a_sentence(z, labels, words):
    good = Part(torch.zeros(4, 3, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(UsageError, match=words):
        Split(good, good, Part(z, torch.tensor(labels, dtype=torch.int64)))


def test_one_class_alone_is_refused():
    alone = Part(torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UsageError, match="two classes or more"):
        Split(alone, alone, alone)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch": 0},
        {"dropout": 1.0},
        {"weight_decay": -1.0},
        {"learning_rates": ()},
        {"learning_rates": (1e-3, 0.0)},
    ],
)
def test_a_recipe_out_of_range_is_refused(changes):
    with pytest.raises(UsageError, match="expected"):
        Recipe(**changes)

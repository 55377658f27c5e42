"""Pictures that can be read: numbers apart, images apart, what lies outside marked."""

import pytest
import torch

from experiments import figures
from experiments.comparison import GAUSSIAN, Key
from experiments.reproduction import shown_skips
from experiments.style import drawn


@pytest.fixture
def kept(monkeypatch):
    """Figures in place of their files."""
    figures = []

    def save(figure, path, **_):
        figures.append(figure)
        path.touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
    return figures


def numbers(axis):
    """What stands beside an axis, minor ticks too."""
    axis.figure.draw_without_rendering()
    shown = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
    return [label.get_text() for label in shown if label.get_text()]


@pytest.mark.parametrize(
    "values, wanted",
    [
        ([8.4, 80], ["10", "20", "50"]),
        ([0.21, 0.9], ["0.2", "0.5"]),
        ([1.09, 80], ["1", "2", "5", "10", "20", "50"]),
    ],
)
def test_a_logarithmic_axis_of_few_decades_has_numbers_that_do_not_meet(
    tmp_path, kept, values, wanted
):
    with drawn(tmp_path / "p.png", "t", 3, 3) as figure:
        axes = figure.subplots()
        axes.plot(values, values)
        axes.set(xscale="log", yscale="log")
    found = numbers(kept[0].axes[0].xaxis)
    assert set(wanted) <= set(found) and not any("times" in each for each in found)


@pytest.mark.parametrize("width", [4.2, 7.2, 9.6])
def test_a_long_title_stays_within_its_picture(tmp_path, kept, width):
    with drawn(tmp_path / "p.png", "a network with another dataset, " * 5, width, 4) as figure:
        figure.subplots()
    figure = kept[0]
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_a_title_keeps_the_lines_that_it_has(tmp_path, kept):
    with drawn(
        tmp_path / "p.png", "attention, in bits\ntwo seeds: 0.012 on average", 4, 4
    ) as figure:
        figure.subplots()
    assert kept[0]._suptitle.get_text() == "attention, in bits\ntwo seeds: 0.012 on average"


def test_images_of_a_row_do_not_touch(tmp_path, kept):
    rows = {"black": -torch.ones(3, 1, 8, 8)}
    figures.image_rows(tmp_path / "p.png", rows, ["1", "2", "3"], "seed", "t")
    row = kept[0].axes[0].images[0].get_array()[5, :, 0]
    assert row.reshape(3, 10).tolist() == [[255] + [0] * 8 + [255]] * 3
    assert kept[0].axes[0].get_xticks().tolist() == [4.5, 14.5, 24.5]


def test_components_that_never_settle_are_marked(tmp_path, kept):
    settled = {
        "sigma": [80.0, 8.0, 0.8],
        "gain": [[1.0, 0.5, 0.2]] * 3,
        "expected": [[1.0, 0.5, 0.2]] * 3,
        "half": [4.0, 80.0, 0.8],
        "expected_half": [4.0, 2.0, 1.0],
        "order": 1.0,
    }
    figures.settling_order(tmp_path / "p.png", settled, "t")
    lines = {line.get_label(): line for line in kept[0].axes[0].lines}
    assert lines["network"].get_xydata().tolist() == [[4, 4]]
    assert lines["not in the grid"].get_xydata().tolist() == [[2, 80], [1, 0.8]]


def test_few_mixtures_are_drawn():
    keys = [
        GAUSSIAN,
        *(Key("mixture", k, r) for k in (1, 2, 5, 10, 20, 50, 100) for r in (None, 9)),
    ]
    shown = figures._told_apart({key: {} for key in keys})
    assert GAUSSIAN in shown and len(shown) == 1 + 6


def test_a_picture_of_two_skips_shows_both():
    assert shown_skips((0, 8)) == [0, 8]
    assert shown_skips((0, 2, 4, 6, 7, 8, 9)) == [0, 4, 7, 9]

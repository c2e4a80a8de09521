import io

import numpy as np
import pytest
from matplotlib.text import Annotation, Text
from PIL import Image
from simulated import NEED, entry, leaderboard

from cifar_lightning.comparison import plots, scatter


def labels_of(figure):
    figure.draw_without_rendering()
    return [child for child in figure.axes[0].texts if isinstance(child, Annotation)]


@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_neither_each_other_nor_the_points(seed):
    rng = np.random.default_rng(seed)
    entries = [
        entry(f"network-{i}", 90 + rng.normal(0, 0.3), 1 + rng.uniform(0, 0.2)) for i in range(12)
    ]
    found = leaderboard(*entries)
    figure = scatter.accuracy_latency(found, 1, NEED)
    labels = labels_of(figure)
    assert [label.get_text() for label in labels] == [one.name for one in found.pareto_front(1)]
    boxes = [Text.get_window_extent(label) for label in labels]
    assert all(box.x0 >= figure.axes[0].bbox.x0 for box in boxes)
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:number])
    places = figure.axes[0].transData.transform(
        [(one.relative, one.accuracy.mean) for one in found.entries]
    )
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_the_choice_is_bold():
    figure = scatter.accuracy_latency(
        leaderboard(entry("a", 90, 2.0), entry("b", 80, 1.0)), 1, NEED
    )
    weights = {label.get_text(): label.get_fontweight() for label in labels_of(figure)}
    assert weights == {"a fp32": "bold", "b fp32": "normal"}


def figures():
    found = leaderboard(entry("a", 90, 2.0), entry("b", 80, 0.1))
    curve = plots.Curve("a", [2.0, 1.0], [50.0, 60.0])
    once = plots.Curve("b", [2.0], [])
    confusion = [[5, 1], [0, 0]]
    image = np.zeros((32, 32, 3), np.uint8)
    yield scatter.accuracy_latency(found, 1, NEED)
    yield plots.latency_distributions(found)
    yield plots.training_curves([curve, once])
    yield plots.confusion_matrix(confusion, ["cat", "<dog>"])
    yield plots.class_accuracies({"a": confusion}, ["cat", "dog"])
    yield plots.named_images([image] * 9, ["cat\n→ dog"] * 9)


@pytest.mark.parametrize("figure", figures())
def test_every_figure_can_be_drawn(figure):
    drawing = plots.Drawing.of(figure)
    drawn = Image.open(io.BytesIO(drawing.png))
    assert drawn.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert np.asarray(drawn.convert("L")).std() > 5
    assert drawing.svg.startswith("<?xml")
    inline = drawing.inline
    assert inline.startswith("<svg")
    assert plots.INK not in inline
    assert "<dog>" not in inline


def test_the_matrix_shows_shares_of_the_true_class():
    figure = plots.confusion_matrix([[3, 1], [0, 8]], ["cat", "dog"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100"]


def test_networks_keep_their_colours():
    assert len({plots.color_of(name, "abc") for name in "abc"}) == 3
    assert plots.color_of("b", "abc") == plots.color_of("b", "cbab")


def test_epochs_are_integers_also_where_there_is_one():
    figure = plots.training_curves([plots.Curve("a", [1.0], [50.0])])
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_a_hundred_classes_have_names_that_do_not_overlap():
    names = [f"class number {number}" for number in range(100)]
    matrix = [[int(row == column) for column in range(100)] for row in range(100)]
    for figure in (
        plots.confusion_matrix(matrix, names),
        plots.class_accuracies({"a": matrix}, names),
    ):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        labels = [axes.xaxis, axes.yaxis] if len(figure.axes) == 2 else [axes.xaxis]
        for axis in labels:
            places = axis.get_ticklocs()
            first, second = axes.transData.transform([(places[0],) * 2, (places[1],) * 2])
            (tick, *_) = axis.get_ticklabels()
            apart = abs(second - first).max() * 72 / figure.dpi
            assert apart > tick.get_fontsize()

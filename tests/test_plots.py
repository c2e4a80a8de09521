import io
import re
from functools import partial

import numpy as np
import pytest
from matplotlib.text import Annotation, Text
from PIL import Image
from simulated import NEED, entry, leaderboard

from cifar_lightning.comparison import interactive, plots, scatter
from cifar_lightning.comparison.drawing import Drawing
from cifar_lightning.comparison.marks import Marks


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
    figure = scatter.accuracy_latency(found, 1, NEED, Marks.of(found.entries))
    labels = labels_of(figure)
    assert [label.get_text() for label in labels] == [one.name for one in found.pareto_front(1)]
    boxes = [Text.get_window_extent(label) for label in labels]
    assert all(box.x0 >= figure.axes[0].bbox.x0 for box in boxes)
    assert all(box.y1 <= figure.axes[0].bbox.y1 + 1 for box in boxes)
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:number])
    places = figure.axes[0].transData.transform(
        [(one.relative, one.accuracy.mean) for one in found.entries]
    )
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_a_network_far_below_does_not_squeeze_many_others():
    entries = [entry(f"n{i}", 88 + i / 10, 1 + i / 10) for i in range(50)]
    plain, with_bad = leaderboard(*entries), leaderboard(*entries, entry("bad", 20, 1.05))
    lows = []
    for found in (plain, with_bad):
        figure = scatter.accuracy_latency(found, 1, NEED, Marks.of(found.entries))
        lows.append(figure.axes[0].get_ylim()[0])
        told = "not drawn, far below: 1 row" in figure.axes[0].get_xlabel()
        assert told == (found is with_bad)
    assert lows[1] > 80
    drawn = interactive.interactive(with_bad, 1, NEED, Marks.of(with_bad.entries), "x")
    assert "not drawn, far below: 1 row" in drawn
    few = leaderboard(*entries[:3], entry("bad", 20, 1.05))
    figure = scatter.accuracy_latency(few, 1, NEED, Marks.of(few.entries))
    assert figure.axes[0].get_ylim()[0] < 20


def test_the_choice_is_bold():
    found = leaderboard(entry("a", 90, 2.0), entry("b", 80, 1.0))
    figure = scatter.accuracy_latency(found, 1, NEED, Marks.of(found.entries))
    weights = {label.get_text(): label.get_fontweight() for label in labels_of(figure)}
    assert weights == {"a fp32": "bold", "b fp32": "normal"}


def figures():
    found = leaderboard(entry("a", 90, 2.0), entry("b", 80, 0.1))
    marks = Marks.of(found.entries)
    curves = [plots.Curve("a", "net", [2.0, 1.0], [50.0, 60.0])]
    curves += [plots.Curve("b", "net", [2.0], [])]
    confusion = [[5, 1], [0, 0]]
    image = np.zeros((32, 32, 3), np.uint8)
    both = {"a": confusion, "b": confusion}
    yield partial(scatter.accuracy_latency, found, 1, NEED, marks)
    yield partial(plots.latency_distributions, found.entries, marks)
    yield partial(plots.training_curves, curves, marks)
    yield partial(plots.confusion_matrix, confusion, ["cat", "<dog>"])
    yield partial(plots.class_accuracies, both, ["cat", "dog"], ["#4477aa"] * 2)
    yield lambda width: plots.named_images([image] * 9, ["cat\n→ dog"] * 9)


@pytest.mark.parametrize("draw", figures())
def test_every_figure_can_be_drawn(draw):
    drawing = Drawing.of(draw)
    drawn = Image.open(io.BytesIO(drawing.png))
    assert drawn.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert np.asarray(drawn.convert("L")).std() > 5
    assert drawing.svg.startswith("<?xml")
    inline = drawing.inline
    assert inline.startswith("<svg")
    assert plots.INK not in inline
    assert "<dog>" not in inline
    for svg in (drawing.svg, drawing.narrow):  # in points: 11 of a page's pixels are 8.25
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: *(?:\w+ )?([\d.]+)px", svg)]
        assert min(sizes) >= 8.25
        assert len(sizes) >= svg.count("<text") > 0


def test_the_matrix_shows_shares_of_the_true_class():
    figure = plots.confusion_matrix([[3, 1], [0, 8]], ["cat", "dog"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100"]


@pytest.mark.parametrize("count", [3, 12, 30])
def test_a_colour_is_a_network_and_a_shape_a_variant(count):
    names = [f"network {number}" for number in range(count)]
    marks = Marks(names, names[:12])
    assert len({marks.color(name) for name in names}) == count
    shapes = [marks.shape(name) for name in names[:12]]
    for kind in zip(*shapes, strict=True):
        assert len({*kind}) == len(shapes)


def test_marks_are_those_of_the_entries():
    found = leaderboard(entry("a", 90, 2.0, variant="onnx"), entry("b", 80, 1.0))
    again = leaderboard(entry("b", 80, 1.0), entry("a", 90, 2.0, variant="onnx"))
    assert Marks.of(found.entries) == Marks.of(again.entries)
    assert Marks.of(found.entries).variants == ["fp32", "onnx"]


def test_seeds_share_a_line_style_and_networks_a_colour():
    runs = [("a", "x"), ("a", "x"), ("b", "x"), ("c", "y")]
    curves = [plots.Curve(label, network, [2.0, 1.0], []) for label, network in runs]
    figure = plots.training_curves(curves, Marks(["x", "y"], []))
    lines = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert lines[0] == lines[1]
    assert lines[0][0] == lines[2][0] != lines[3][0]
    assert lines[0][1] != lines[2][1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]


def test_epochs_are_integers_also_where_there_is_one():
    figure = plots.training_curves([plots.Curve("a", "x", [1.0], [50.0])], Marks(["x"], []))
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_a_hundred_classes_have_names_that_do_not_overlap():
    names = [f"class number {number}" for number in range(100)]
    matrix = [[int(row == column) for column in range(100)] for row in range(100)]
    for figure in (
        plots.confusion_matrix(matrix, names),
        plots.class_accuracies({"a": matrix}, names, ["#4477aa"]),
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

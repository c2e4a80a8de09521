"""How all plots look; latency distributions, training curves, confusions and classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Literal
from unicodedata import east_asian_width

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.fonts import Lettering, take_fonts
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.system.escaping import terminal, visible

INK = "#1f2328"  # of text and axes; `svg` can make it follow the page
GRID = "#8c959f"
MARKER_SIZE = 8  # points
LINES: tuple[Any, ...] = (
    "-", "--", ":", "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (6, 2, 2, 2)),
)  # fmt: skip

# Inches of a file's drawing, and of a phone's screen, where letters are as large.
WIDTH, NARROW = 8.0, 3.6
LETTERS = 9  # points: 12 of a page's pixels
LATENCY_AXIS, ACCURACY_AXIS = "mean latency at batch 1 (ms)", "test accuracy (%)"
Place = Literal["outside lower right", "outside lower center", "outside upper right"]
MATRIX_LABELS_UP_TO = 20  # classes whose counts can be read in a confusion matrix
NAME = 0.27  # inches that a class takes at an axis; figures of many classes are larger

mpl.rc("svg", fonttype="none")  # text stays text: searchable, in the page's font
mpl.rc("svg", hashsalt="cifar-lightning")  # the same figure gives the same file
mpl.rc("text", parse_math=False)  # a $ in a name is a $
mpl.rc("figure", facecolor="none")
mpl.rc("axes", facecolor="none", edgecolor=INK, labelcolor=INK, titlecolor=INK, titlesize=10)
mpl.rc("axes", grid=True, axisbelow=True)
mpl.rc("axes.spines", top=False, right=False)
mpl.rc("grid", color=GRID, alpha=0.3, linewidth=0.6)
mpl.rc("xtick", color=INK, labelsize=LETTERS)
mpl.rc("ytick", color=INK, labelsize=LETTERS)
mpl.rc("legend", fontsize=LETTERS, labelcolor=INK, frameon=False)


@dataclass(frozen=True)
class Curve:
    """A run's training: each figure's value at the end of each epoch, accuracies in percent.

    Attributes:
        label: Seeds of one group share it.
    """

    label: str
    network: str
    train_loss: Sequence[float]
    val_acc: Sequence[float]


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def draw_legend(
    figure: Figure, named: Sequence[tuple[str, Artist]], place: Place, columns: int = 4
) -> None:
    """Name what is drawn; names are given here, as matplotlib hides labels that begin with _."""
    figure.legend(
        [artist for _, artist in named],
        [visible(name) for name, _ in named],
        loc=place,
        ncols=columns,
    )


def wide(latencies: Sequence[float]) -> bool:
    """Tell whether latencies lie so far apart that they want a logarithmic axis."""
    return max(latencies) > 5 * min(latencies)


def scale_latency(axes: Axes, latencies: Sequence[float]) -> None:
    """Let the axis of latencies be logarithmic where they differ much."""
    if wide(latencies):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")


def latency_distributions(timed: Sequence[Entry], marks: Marks, width: float = WIDTH) -> Figure:
    """Draw all calls of each entry: the box holds half of them, the whiskers 5 % to 95 %."""
    entries = sorted(timed, key=lambda entry: -entry.latency.mean_ms)
    figure, axes = new_figure(1.0 + 0.35 * len(entries), width)
    boxes = axes.boxplot(
        [entry.timings.timed[0].calls_ms for entry in entries],
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        widths=0.6,
        medianprops={"color": INK},
        meanprops={"marker": "|", "markeredgecolor": INK, "markersize": 12},
        whiskerprops={"color": GRID},
        capprops={"color": GRID},
    )
    for box, entry in zip(boxes["boxes"], entries, strict=True):
        box.set(facecolor=marks.color(entry.network), edgecolor=GRID)
    axes.set_yticks(range(1, len(entries) + 1), [visible(entry.name) for entry in entries])
    scale_latency(axes, [entry.latency.mean_ms for entry in entries])
    axes.set_xlabel("latency at batch 1 (ms)")
    return figure


def training_curves(curves: Sequence[Curve], marks: Marks, width: float = WIDTH) -> Figure:
    """Draw training loss and validation accuracy over the epochs, a line style for each group."""
    styles: dict[str, Any] = {}
    for network in marks.networks:
        labels = dict.fromkeys(one.label for one in curves if one.network == network)
        styles |= {label: LINES[number % len(LINES)] for number, label in enumerate(labels)}
    columns = max(1, int(11 * width / (max(len(visible(label)) for label in styles) + 6)))
    rows = -(-len(styles) // columns)
    beside = width > NARROW
    size = width, (3.2 if beside else 5.6) + 0.2 * rows
    figure = Figure(figsize=size, layout="constrained")
    first, second = figure.subplots(*((1, 2) if beside else (2, 1)))
    for axes, label in ((first, "training loss"), (second, "validation accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    named = {}
    for curve in curves:
        drawn = {"color": marks.color(curve.network), "linestyle": styles[curve.label]}
        for axes, values in ((first, curve.train_loss), (second, curve.val_acc)):
            marker = "o" if len(values) == 1 else ""
            (line,) = axes.plot(range(1, len(values) + 1), values, marker=marker, **drawn)
        named[curve.label] = line
    draw_legend(figure, [*named.items()], "outside lower center", columns)
    return figure


def confusion_matrix(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], width: float = WIDTH
) -> Figure:
    """Draw how often each true class (rows) is taken for each other one, in percent of the row."""
    count = len(confusion)
    size = max(min(width, 0.8 * WIDTH), count * NAME)
    figure, axes = new_figure(size * 0.875, size)
    axes.grid(visible=False)
    shares = [[100 * n / max(sum(row), 1) for n in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, shrink=0.8, label="% of the true class")
    classes = [visible(name) for name in classes]
    axes.set_xticks(range(count), classes, rotation=45, ha="right")
    axes.set_yticks(range(count), classes)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= MATRIX_LABELS_UP_TO:
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                if confusion[row][column]:
                    ink = "#ffffff" if share > 50 else "#000000"
                    axes.text(
                        column, row, f"{share:.0f}" if share >= 1 else "<1",
                        ha="center", va="center", fontsize=LETTERS, color=ink, in_layout=False,
                    )  # fmt: skip
    return figure


def class_accuracies(
    confusions: Mapping[str, Sequence[Sequence[int]]],
    classes: Sequence[str],
    colors: Sequence[str],
    width: float = WIDTH,
) -> Figure:
    """Draw each class's accuracy under a label, filled, and beside it under others, hatched.

    Args:
        confusions: By their labels.
        classes: Their names.
        colors: One a label.
        width: In inches; many classes take more.
    """
    figure, axes = new_figure(3.6, max(width, len(classes) * NAME))
    of_bar = 0.8 / len(confusions)
    named = []
    for number, (label, confusion) in enumerate(confusions.items()):
        shares = [100 * row[k] / max(sum(row), 1) for k, row in enumerate(confusion)]
        places = [k + (number - (len(confusions) - 1) / 2) * of_bar for k in range(len(shares))]
        bars = axes.bar(places, shares, of_bar * 0.9, color=colors[number])
        if number:
            for bar in bars:
                bar.set(fill=False, edgecolor=colors[number], hatch="////")
        named.append((label, bars[0]))
    axes.set_xticks(
        range(len(classes)), [visible(name) for name in classes], rotation=30, ha="right"
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(ACCURACY_AXIS)
    draw_legend(figure, named, "outside upper right")
    return figure


def named_images(images: Sequence[np.ndarray[Any, Any]], names: Sequence[str]) -> Figure:
    """Draw images, (height, width, 3), uint8, each with a name, of several lines perhaps."""
    columns = 8
    rows = -(-len(images) // columns)
    lettering = Lettering.of(names)
    wrapped = [_wrapped(lettering.spelled(terminal(name))) for name in names]
    side, line = WIDTH / columns, 1.3 * LETTERS / 72  # in inches
    height = side + line * max(name.count("\n") + 1 for name in wrapped) + 0.1  # of a cell
    figure = Figure(figsize=(WIDTH, height * rows), facecolor="white")
    # One pair of axes, in inches: with a pair for each image, drawing takes four times as long.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (image, name) in enumerate(zip(images, wrapped, strict=True)):
        row, column = divmod(number, columns)
        left, bottom, drawn = column * side + 0.04, (row + 1) * height - 0.05, side - 0.08
        axes.imshow(image, extent=(left, left + drawn, bottom, bottom - drawn))
        middle, above = left + drawn / 2, bottom - drawn - 0.05
        axes.text(middle, above, name, fontsize=LETTERS, ha="center", va="bottom")
    axes.set(xlim=(0, WIDTH), ylim=(height * rows, 0))
    take_fonts(figure)
    return figure


def _wrapped(name: str) -> str:
    """Break a name's lines to the width of an image of an inch; Chinese letters are wide."""

    def parts(line: str) -> list[str]:
        wide = any(east_asian_width(letter) in "WF" for letter in line)
        return wrap(line, 7 if wide else 12) or [""]

    return "\n".join(part for line in name.split("\n") for part in parts(line))

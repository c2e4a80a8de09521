"""Plots of the comparison, of one run, and of what a network confuses.

Each function draws one figure; nothing is shown, saved or kept in matplotlib's global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from cifar_lightning.comparison import Arena, Entry
from cifar_lightning.escaping import terminal, visible

INK = "#1f2328"  # of text and axes; `svg` can make it follow the page
GRID = "#8c959f"
COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#888888",
)  # distinct to the colour-blind too (Paul Tol's bright scheme)  # fmt: skip
MARKERS = "osD^vPX*"
MARKER_SIZE = 8  # points
WIDTH = 8.0  # inches
Place = Literal["outside lower right", "outside lower center", "outside upper right"]
MATRIX_LABELS_UP_TO = 20  # classes whose counts can be read in a confusion matrix

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: searchable, in the page's font
mpl.rcParams["text.parse_math"] = False  # a $ in a name is a $
mpl.rcParams["svg.hashsalt"] = "cifar-lightning"  # the same figure gives the same file


@dataclass(frozen=True)
class Curve:
    """A run's training: each figure's value at the end of each epoch, accuracies in percent."""

    label: str
    train_loss: Sequence[float]
    val_acc: Sequence[float]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.grid(visible=True, color=GRID, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.title.set_color(INK)


def _legend(
    figure: Figure, named: Sequence[tuple[str, Artist]], place: Place, columns: int = 4
) -> None:
    """Name what is drawn; names are given here, as matplotlib hides labels that begin with _."""
    figure.legend(
        [artist for _, artist in named],
        [visible(name) for name, _ in named],
        loc=place,
        ncols=columns,
        fontsize=8,
        labelcolor=INK,
        frameon=False,
    )


def wide(arena: Arena) -> bool:
    """Tell whether the latencies lie so far apart that they want a logarithmic axis."""
    values = [entry.mean_ms.mean for entry in arena.entries]
    return max(values) > 5 * min(values)


def _scale_latency(axes: Axes, arena: Arena) -> None:
    if wide(arena):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")


def color_of(network: str, networks: Sequence[str]) -> str:
    """Give each network its colour."""
    return COLORS[sorted(set(networks)).index(network) % len(COLORS)]


def accuracy_latency(arena: Arena, min_acc: float) -> Figure:
    """Draw accuracy against mean latency with 95 % intervals, the front and its choice."""
    figure, axes = _figure(5.0)
    networks = [entry.network for entry in arena.entries]
    variants = list(dict.fromkeys(entry.variant for entry in arena.entries))
    for entry in arena.entries:
        x, y = entry.mean_ms, entry.accuracy
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=[[side] for side in x.reach],
            yerr=[[side] for side in y.reach],
            fmt=MARKERS[variants.index(entry.variant) % len(MARKERS)],
            color=color_of(entry.network, networks),
            markersize=MARKER_SIZE,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
    front = arena.front
    axes.step(
        [entry.mean_ms.mean for entry in front],
        [entry.accuracy.mean for entry in front],
        where="post",
        color=INK,
        linestyle="--",
        linewidth=1,
        zorder=2,
    )
    _scale_latency(axes, arena)
    axes.margins(0.12, 0.12)
    low, high = axes.get_ylim()
    if low < min_acc < high:
        axes.axhline(min_acc, color=GRID, linewidth=1, linestyle=":")
    axes.set_xlabel("mean latency at batch 1 (ms)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(visible(arena.name), fontsize=10)
    marks = [
        (network, axes.plot([], [], "o", color=color_of(network, networks))[0])
        for network in dict.fromkeys(networks)
    ]
    _legend(figure, marks, "outside lower right")
    _label_points(figure, axes, arena.entries, arena.choice(min_acc))
    return figure


def _label_points(
    figure: Figure, axes: Axes, entries: Sequence[Entry], chosen: Entry | None
) -> None:
    """Name each point in the nearest free place; the chosen one in bold.

    A label covers no point and no other label as long as there is a free place at all.
    """
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]  # the layout has to be final
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    points = [axes.transData.transform((e.mean_ms.mean, e.accuracy.mean)) for e in entries]
    reach = MARKER_SIZE / 2 * figure.dpi / 72
    taken = [Bbox([point - reach, point + reach]) for point in points]
    for entry, point in zip(entries, points, strict=True):
        text = axes.annotate(
            visible(entry.name),
            (entry.mean_ms.mean, entry.accuracy.mean),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            fontweight="bold" if entry is chosen else "normal",
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.6, "shrinkB": 5},
        )
        # Of the text alone: an annotation's own extent includes its arrow.
        size = Text.get_window_extent(text)
        places = [
            Bbox([point + offset, point + offset + size.size])
            for offset in _offsets(size.width, size.height, reach)
        ]
        free = (
            place
            for place in places
            if inside.x0 <= place.x0
            and place.x1 <= inside.x1
            and inside.y0 <= place.y0
            and place.y1 <= inside.y1
            and not place.count_overlaps(taken)
        )
        place = next(free, None) or _within(places[0], inside)
        taken.append(place)
        text.set_position(tuple((place.p0 - point) * 72 / figure.dpi))


def _within(place: Bbox, inside: Bbox) -> Bbox:
    """Move a place as little as it takes to lie inside."""
    x = min(max(place.x0, inside.x0), inside.x1 - place.width)
    y = min(max(place.y0, inside.y0), inside.y1 - place.height)
    return Bbox.from_bounds(x, y, place.width, place.height)


def _offsets(width: float, height: float, reach: float) -> list[np.ndarray[Any, Any]]:
    """List where a label's lower left corner may lie from its point, the nearest first."""
    offsets = []
    for distance in range(round(reach) + 4, 200, 6):
        for angle in np.pi / 4 + np.arange(0, 2 * np.pi, np.pi / 8):
            x, y = np.cos(angle), np.sin(angle)
            # The label's side that faces the point touches the circle.
            offsets.append(
                np.array([distance * x - width * (1 - x) / 2, distance * y - height * (1 - y) / 2])
            )
    return offsets


def latency_distributions(arena: Arena) -> Figure:
    """Draw every entry's samples: the box holds half of them, the whiskers 5 % to 95 %."""
    entries = sorted(arena.entries, key=lambda entry: -entry.mean_ms.mean)
    figure, axes = _figure(1.0 + 0.35 * len(entries))
    networks = [entry.network for entry in entries]
    boxes = axes.boxplot(
        [[sample for m in entry.measurements for sample in m.samples_ms] for entry in entries],
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
        box.set(facecolor=color_of(entry.network, networks), edgecolor=GRID)
    axes.set_yticks(
        range(1, len(entries) + 1), [visible(entry.name) for entry in entries], fontsize=8
    )
    _scale_latency(axes, arena)
    axes.set_xlabel("latency at batch 1 (ms): median, half of the samples, 5 % to 95 %; | mean")
    axes.set_title(visible(arena.name), fontsize=10)
    return figure


def training_curves(curves: Sequence[Curve]) -> Figure:
    """Draw training loss and validation accuracy over the epochs."""
    columns = max(1, 90 // (max(len(visible(curve.label)) for curve in curves) + 6))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * rows), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = figure.subplots(1, 2)
    for axes, label in ((left, "training loss"), (right, "validation accuracy (%)")):
        _dress(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
    named = []
    for number, curve in enumerate(curves):
        style = {
            "color": COLORS[number % len(COLORS)],
            "linestyle": ("-", "--", ":", "-.")[number // len(COLORS) % 4],
            "linewidth": 1.5,
        }
        for axes, values in ((left, curve.train_loss), (right, curve.val_acc)):
            marker = "o" if len(values) == 1 else ""
            (line,) = axes.plot(range(1, len(values) + 1), values, marker=marker, **style)
        named.append((curve.label, line))
    _legend(figure, named, "outside lower center", columns)
    return figure


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draw how often each true class (rows) is taken for each other one, in percent of the row."""
    count = len(confusion)
    figure = Figure(figsize=(WIDTH * 0.8, WIDTH * 0.7), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    _dress(axes)
    axes.grid(visible=False)
    shares = [[100 * n / max(sum(row), 1) for n in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(image, shrink=0.8)
    bar.ax.tick_params(colors=INK)
    bar.set_label("% of the true class", color=INK)
    classes = [visible(name) for name in classes]
    axes.set_xticks(range(count), classes, rotation=45, ha="right")
    axes.set_yticks(range(count), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= MATRIX_LABELS_UP_TO:
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                if confusion[row][column]:
                    ink = "#ffffff" if share > 50 else "#000000"
                    axes.text(
                        column, row, f"{share:.0f}" if share >= 1 else "<1",
                        ha="center", va="center", fontsize=8, color=ink,
                    )  # fmt: skip
    return figure


def class_accuracies(
    confusions: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str]
) -> Figure:
    """Draw each class's accuracy under each of several labels."""
    figure, axes = _figure(3.6)
    width = 0.8 / len(confusions)
    named = []
    for number, (label, confusion) in enumerate(confusions.items()):
        shares = [100 * row[k] / max(sum(row), 1) for k, row in enumerate(confusion)]
        places = [k + (number - (len(confusions) - 1) / 2) * width for k in range(len(shares))]
        bars = axes.bar(places, shares, width * 0.9, color=COLORS[number % len(COLORS)])
        named.append((label, bars[0]))
    axes.set_xticks(
        range(len(classes)), [visible(name) for name in classes], rotation=30, ha="right"
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("test accuracy (%)")
    _legend(figure, named, "outside upper right")
    return figure


def named_images(images: Sequence[np.ndarray[Any, Any]], names: Sequence[str]) -> Figure:
    """Draw images, (height, width, 3), uint8, each with a name, of several lines perhaps."""
    columns = 8
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(WIDTH, 1.5 * rows), layout="constrained")
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(image)
        axes.set_title(terminal(name), fontsize=7)
        axes.axis("off")
    return figure


def png(figure: Figure) -> bytes:
    """Draw a figure as PNG on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, facecolor="white")
    return stream.getvalue()


def svg(figure: Figure, inline: bool = False) -> str:
    """Draw a figure as SVG.

    Args:
        figure: What to draw.
        inline: For a place in an HTML page: without XML's prologue, in the page's text colour.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    if not inline:
        return text
    return text[text.index("<svg") :].replace(INK, "currentColor")

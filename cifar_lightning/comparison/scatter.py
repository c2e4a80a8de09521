"""Accuracy against latency, the Pareto front drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.plots import (
    GRID,
    INK,
    MARKER_SIZE,
    MARKERS,
    color_of,
    draw_legend,
    new_figure,
    scale_latency,
)
from cifar_lightning.system.escaping import visible


def accuracy_latency(leaderboard: Leaderboard, min_acc: float) -> Figure:
    """Draw accuracy against mean latency with 95 % intervals, the front and its choice."""
    figure, axes = new_figure(5.0)
    networks = [entry.network for entry in leaderboard.entries]
    variants = list(dict.fromkeys(entry.variant for entry in leaderboard.entries))
    for entry in leaderboard.entries:
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
    front = leaderboard.pareto_front
    axes.step(
        [entry.mean_ms.mean for entry in front],
        [entry.accuracy.mean for entry in front],
        where="post",
        color=INK,
        linestyle="--",
        linewidth=1,
        zorder=2,
    )
    scale_latency(axes, leaderboard)
    axes.margins(0.12, 0.12)
    low, high = axes.get_ylim()
    if low < min_acc < high:
        axes.axhline(min_acc, color=GRID, linewidth=1, linestyle=":")
    axes.set_xlabel("mean latency at batch 1 (ms)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(visible(leaderboard.name), fontsize=10)
    marks = [
        (network, axes.plot([], [], "o", color=color_of(network, networks))[0])
        for network in dict.fromkeys(networks)
    ]
    draw_legend(figure, marks, "outside lower right")
    _label_points(figure, axes, leaderboard.entries, leaderboard.recommend(min_acc))
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

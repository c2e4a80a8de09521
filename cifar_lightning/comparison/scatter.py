"""Accuracy against latency, the Pareto front drawn."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cifar_lightning.comparison import plots
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.system.escaping import visible

MARKERS = "osD^vPX*"
MARKER_SIZE = 8  # points


def accuracy_latency(leaderboard: Leaderboard, min_acc: float) -> Figure:
    """Draw accuracy against mean latency with 95 % intervals, the front and its choice."""
    figure, axes = plots.new_figure(5.0)
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
            color=plots.color_of(entry.network, networks),
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
        color=plots.INK,
        linestyle="--",
        linewidth=1,
        zorder=2,
    )
    plots.scale_latency(axes, leaderboard)
    axes.margins(0.12, 0.12)
    low, high = axes.get_ylim()
    if low < min_acc < high:
        axes.axhline(min_acc, color=plots.GRID, linewidth=1, linestyle=":")
    title = visible(leaderboard.name)
    axes.set(xlabel=plots.LATENCY_AXIS, ylabel=plots.ACCURACY_AXIS, title=title)
    marks = [
        (network, axes.plot([], [], "o", color=plots.color_of(network, networks))[0])
        for network in dict.fromkeys(networks)
    ]
    plots.draw_legend(figure, marks, "outside lower right")
    _name_front(axes, front, leaderboard.recommend(min_acc))
    return figure


def _name_front(axes: Axes, front: Sequence[Entry], recommended: Entry | None) -> None:
    """Name the points of the front: nothing lies above and left of it.

    Each label begins above the one before, as far as that is in its way, and the axis begins where
    all fit; the recommended entry's is bold.
    """
    FigureCanvasAgg(axes.figure).draw()  # type: ignore[no-untyped-call,arg-type]  # final layout
    pixel = 72 / axes.figure.dpi
    top, begin, width = -math.inf, 0.0, axes.bbox.width
    for entry in front:
        x, y = axes.transData.transform((entry.mean_ms.mean, entry.accuracy.mean))
        lift = max(0.0, top - y)
        text = axes.annotate(
            visible(entry.name),
            (entry.mean_ms.mean, entry.accuracy.mean),
            xytext=(-8, 5 + lift * pixel),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=plots.INK,
            fontweight="bold" if entry is recommended else "normal",
            arrowprops={"arrowstyle": "-", "color": plots.GRID, "linewidth": 0.6, "shrinkB": 5},
        )
        # Of the text alone: an annotation's own extent includes its arrow.
        size = Text.get_window_extent(text)
        top = y + lift + 5 / pixel + size.height
        needed = min(size.width + 12 / pixel, width / 2)
        begin = max(begin, width * (needed - (x - axes.bbox.x0)) / (width - needed))
    left = axes.transData.inverted().transform((axes.bbox.x0 - begin, 0))[0]
    axes.set_xlim(left=left)

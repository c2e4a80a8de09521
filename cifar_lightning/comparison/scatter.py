"""Accuracy against latency, the Pareto front drawn."""

import math
from collections import defaultdict
from collections.abc import Sequence
from textwrap import wrap

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.floors import floors
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.plots import (
    GRID,
    INK,
    LETTERS,
    MARKER_SIZE,
    WIDTH,
    draw_legend,
    new_figure,
    scale_latency,
)
from cifar_lightning.runs.paired import two_sided
from cifar_lightning.system.escaping import visible
from cifar_lightning.system.formatting import counted

NAMED = 12  # entries of the front that are named
AN_INCH = 11  # letters
LATENCY_LABEL = "relative latency (ResNet-8, fp32 = 1)"


def latency_reach(entry: Entry) -> tuple[float, float]:
    """Tell how far the interval reaches below and above; 0 where it is not bounded."""
    centre, low, high = entry.timings.relative.ratio
    return (centre - low, high - centre) if math.isfinite(high) else (0.0, 0.0)


def accuracy_reach(leaderboard: Leaderboard, entry: Entry) -> float:
    """Tell how far a 95 % interval reaches to either side; 0 where it is not known."""
    reach = two_sided() * leaderboard.error(entry)
    return reach if math.isfinite(reach) else 0.0


def accuracy_latency(
    leaderboard: Leaderboard, threads: int, need: Need, marks: Marks, width: float = WIDTH
) -> Figure:
    """Draw accuracy against relative latency with 95 % intervals, the front and what is taken."""
    figure, axes = new_figure(5.0, width)
    exactly = leaderboard.listed(threads)
    entries, left_out = without_far_below(leaderboard.peers(threads), exactly)
    if len(exactly) < len(entries):
        draw_points(axes, entries, marks)
    for entry in exactly:
        axes.errorbar(
            entry.relative,
            entry.accuracy.mean,
            xerr=[[side] for side in latency_reach(entry)],
            yerr=accuracy_reach(leaderboard, entry),
            fmt=marks.shape(entry.variant).matplotlib,
            color=marks.color(entry.network),
            markersize=MARKER_SIZE,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
    front = leaderboard.named_front(threads, NAMED)
    (stairs,) = axes.step(
        [entry.relative for entry in front],
        [entry.accuracy.mean for entry in front],
        where="post",
        color=INK,
        linestyle="--",
        linewidth=1,
        zorder=2,
    )
    scale_latency(axes, [entry.relative for entry in entries])
    axes.margins(0.12, 0.12)
    low, high = axes.get_ylim()
    if need.max_ms is None and low < need.min_acc < high:
        axes.axhline(need.min_acc, color=GRID, linewidth=1, linestyle=":")
    axes.set_xlabel("\n".join([LATENCY_LABEL, *_floors(entries, axes), *filter(None, [left_out])]))
    axes.set_ylabel("test accuracy (%)")
    threads_told = f", {threads} threads" if threads > 1 else ""
    axes.set_title(visible(f"{leaderboard.name}{threads_told}"), fontsize=10)
    here = Marks.of(entries)
    named: list[tuple[str, Artist]] = [
        (network, Patch(color=marks.color(network))) for network in here.networks
    ]
    for variant in here.variants:
        shape = marks.shape(variant).matplotlib
        named += [(variant, Line2D([], [], marker=shape, linestyle="", color=GRID))]
    draw_legend(figure, [*named, ("Pareto front", stairs)], "outside lower right")
    _name_front(axes, front, leaderboard.choices[threads].entry)
    return figure


def without_far_below(
    entries: Sequence[Entry], exactly: Sequence[Entry]
) -> tuple[list[Entry], str]:
    """Leave out of many entries those that are so far below that they would squeeze the others.

    Args:
        entries: All that are ranked.
        exactly: Those that are drawn with their intervals, and never left out.

    Returns:
        Those to draw, and a line that tells of the others.
    """
    highest = max(entry.accuracy.mean for entry in entries)
    lowest = min(entry.accuracy.mean for entry in exactly)
    low = lowest - 0.3 * (highest - lowest)
    kept = [entry for entry in entries if entry.accuracy.mean >= low]
    lost = len(entries) - len(kept)
    return kept, f"not drawn, far below: {counted(lost, 'row')}" if lost else ""


def draw_points(axes: Axes, entries: Sequence[Entry], marks: Marks) -> None:
    """Draw many entries as points alone."""
    kinds: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        kinds[entry.network, entry.variant].append(entry)
    for (network, variant), alike in kinds.items():
        axes.plot(
            [entry.relative for entry in alike],
            [entry.accuracy.mean for entry in alike],
            marks.shape(variant).matplotlib,
            color=marks.color(network),
            markersize=MARKER_SIZE / 3,
            markeredgewidth=0,
            alpha=0.5,
            zorder=1,
        )


def _floors(entries: Sequence[Entry], axes: Axes) -> list[str]:
    """Tell how much of it a call takes by itself, in lines of the figure's width, if known."""
    told = ", ".join(f"{one.name} {one.relative:.3f}" for one in floors(entries))
    figure = axes.get_figure(root=True)
    assert figure is not None
    letters = int(AN_INCH * figure.get_figwidth())
    return wrap(visible(f"of which a call by itself: {told}"), letters) if told else []


def _name_front(axes: Axes, front: Sequence[Entry], taken: Entry) -> None:
    """Name the points of the front: nothing lies above and left of it.

    The axes begin and end where all names fit; that of what is taken is bold.
    """
    FigureCanvasAgg(axes.figure).draw()  # type: ignore[no-untyped-call,arg-type]  # final layout
    for _ in range(3):  # an axis that ends higher has its points nearer to each other
        texts, begin, top = _names(axes, front, taken)
        over, height = top - axes.bbox.y1, axes.bbox.height
        if over <= 0:
            break
        for text in texts:
            text.remove()
        low, high = axes.get_ylim()
        over = min(over, height / 2)
        axes.set_ylim(low, high + (high - low) * over / (height - over))
    else:
        _, begin, _ = _names(axes, front, taken)
    left = axes.transData.inverted().transform((axes.bbox.x0 - begin, 0))[0]
    axes.set_xlim(left=left)


def _names(
    axes: Axes, front: Sequence[Entry], taken: Entry
) -> tuple[list[Annotation], float, float]:
    """Write the names of points, each above the one before, as far as that is in its way.

    Returns:
        They; how much further left the axis has to begin, and where the highest ends, in pixels.
    """
    pixel = 72 / axes.figure.dpi
    top, begin, width = -math.inf, 0.0, axes.bbox.width
    texts = []
    for entry in front:
        x, y = axes.transData.transform((entry.relative, entry.accuracy.mean))
        lift = max(0.0, top - y)
        text = axes.annotate(
            visible(entry.name_among_peers),
            (entry.relative, entry.accuracy.mean),
            xytext=(-8, 5 + lift * pixel),
            textcoords="offset points",
            ha="right",
            fontsize=LETTERS,
            color=INK,
            fontweight="bold" if entry is taken else "normal",
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.6, "shrinkB": 5},
        )
        texts.append(text)
        # Of the text alone: an annotation's own extent includes its arrow.
        size = Text.get_window_extent(text)
        top = y + lift + 5 / pixel + size.height
        needed = min(size.width + 12 / pixel, width / 2)
        begin = max(begin, width * (needed - (x - axes.bbox.x0)) / (width - needed))
    return texts, begin, top

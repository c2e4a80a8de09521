"""Accuracy against latency on the page: points can be hovered, the plot can be zoomed."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.tables import known
from cifar_lightning.system import escaping

HEIGHT, MARGIN = 460, {"l": 55, "r": 12, "t": 10, "b": 45}  # pixels
LETTERS, LINE = 12, 16  # of the front's names, in pixels
NAME_LETTERS = 16  # in a line of a name, which leaves room for points on a phone's screen, too
GRID = {"gridcolor": "rgba(140,149,159,0.3)", "zeroline": False}


def interactive(
    leaderboard: Leaderboard, threads: int, need: Need, marks: Marks, name: str
) -> Markup:
    """Draw what is ranked together; the page's script gives the front's names their room."""
    listed = leaderboard.listed(threads)
    peers, left_out = scatter.without_far_below(leaderboard.peers(threads), listed)
    front = leaderboard.named_front(threads, scatter.NAMED)
    exactly = {*listed}
    figure = go.Figure()
    figure.add_scatter(
        x=[entry.relative for entry in front],
        y=[entry.accuracy.mean for entry in front],
        mode="lines",
        line={"dash": "dash", "width": 1, "shape": "hv", "color": plots.GRID},
        hoverinfo="skip",
    )
    kinds: dict[tuple[str, str, bool], list[Entry]] = defaultdict(list)
    for entry in peers:
        kinds[entry.network, entry.variant, entry in exactly].append(entry)
    # The points that stand for themselves alone lie below the others.
    for (network, variant, exact), entries in sorted(kinds.items(), key=lambda kind: kind[0][2]):
        marker = {"color": marks.color(network), "symbol": marks.shape(variant).plotly}
        if not exact:
            figure.add_scatter(
                x=[round(entry.relative, 4) for entry in entries],
                y=[round(entry.accuracy.mean, 3) for entry in entries],
                mode="markers",
                marker=marker | {"size": 5, "opacity": 0.5},
                text=[_short(entry) for entry in entries],
                hovertemplate="%{text}<br>%{y} %, %{x} times the reference<extra></extra>",
            )
            continue
        below, above = zip(*(scatter.latency_reach(entry) for entry in entries), strict=True)
        figure.add_scatter(
            x=[entry.relative for entry in entries],
            y=[entry.accuracy.mean for entry in entries],
            error_x={"symmetric": False, "array": above, "arrayminus": below, "thickness": 1},
            error_y={
                "array": [scatter.accuracy_reach(leaderboard, entry) for entry in entries],
                "thickness": 1,
            },
            mode="markers",
            marker=marker | {"size": 11},
            text=[_hover(leaderboard, entry) for entry in entries],
            hovertemplate="%{text}<extra></extra>",
        )
    logarithmic = plots.wide([entry.relative for entry in peers])
    along = math.log10 if logarithmic else float
    spots = [(along(entry.relative), entry.accuracy.mean) for entry in front]
    reach = [(e.accuracy.mean, scatter.accuracy_reach(leaderboard, e)) for e in peers]
    low, high = min(y - side for y, side in reach), max(y + side for y, side in reach)
    names = [_name(entry, leaderboard.choices[threads].entry) for entry in front]
    lifts, top = _stacked([y for _, y in spots], names, low, high)
    figure.update_layout(
        xaxis=GRID
        | {
            "title": "<br>".join(filter(None, [scatter.LATENCY_LABEL, left_out])),
            "type": "log" if logarithmic else "linear",
            "tickvals": _ticks([entry.relative for entry in peers]),
        },
        yaxis=GRID | {"title": plots.ACCURACY_AXIS, "range": [low - (high - low) / 20, top]},
        annotations=[
            {
                "x": x,
                "y": y,
                "text": text,
                "ax": -12,
                "ay": -lift,
                "xanchor": "right",
                "yanchor": "bottom",
                "align": "right",
                "font": {"size": LETTERS},
                "arrowwidth": 0.6,
                "arrowhead": 0,
                "standoff": 5,
            }
            for (x, y), text, lift in zip(spots, names, lifts, strict=True)
        ],
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin=MARGIN,
        showlegend=False,  # the page has one
        height=HEIGHT,
    )
    if need.max_ms is None and low < need.min_acc < high:
        line = {"dash": "dot", "width": 1, "color": plots.GRID}
        figure.add_hline(y=need.min_acc, line=line)
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return Markup(drawn)  # plotly escapes what it embeds


def _ticks(latencies: Sequence[float]) -> list[float] | None:
    """Choose ticks where points are, as the room for the front's names may reach below 0.

    None leaves it to plotly, where points are too close for that.
    """
    if max(latencies) < 1.2 * min(latencies):
        return None
    low, high = min(latencies) / 1.2, max(latencies) * 1.2
    locator = LogLocator(subs=(1, 2, 5)) if plots.wide(latencies) else MaxNLocator(6)
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def _name(entry: Entry, taken: Entry) -> str:
    name, label = map(escaping.visible, (entry.name_among_peers, entry.label))
    parts = [name] if len(name) <= NAME_LETTERS else [label, name.removeprefix(label)]
    lines = [line for part in parts for line in textwrap.wrap(part, NAME_LETTERS)]
    text = "<br>".join(str(escape(line)) for line in lines)
    return f"<b>{text}</b>" if entry is taken else text


def _stacked(
    heights: Sequence[float], names: Sequence[str], low: float, high: float
) -> tuple[list[float], float]:
    """Place names above points, and each above the one before it; leave room for all on top.

    Args:
        heights: Of the points, in the axis's unit.
        names: Of one or more lines.
        low: Where the points begin.
        high: Where they end.

    Returns:
        How many pixels each name is above its point, and where the axis ends.
    """
    pixels = HEIGHT - MARGIN["t"] - MARGIN["b"]
    lifts: list[float] = []
    for room in range(25, pixels // 2, 5):
        scale = (pixels - room) / (1.05 * (high - low) or 1.0)
        top, lifts = -math.inf, []
        for height, name in zip(heights, names, strict=True):
            lift = max(8.0, top - height * scale)
            lifts.append(lift)
            top = height * scale + lift + LINE * (1 + name.count("<br>"))
        if top - high * scale <= room:
            break
    return lifts, high + room / scale


def _hover(leaderboard: Leaderboard, entry: Entry) -> str:
    lines = [f"<b>{escape(escaping.visible(entry.name))}</b>"]
    lines += [
        f"{column.header}: {escape(escaping.visible(column.shown(leaderboard, entry)))}"
        for name, column in known([(leaderboard, entry)]).items()
        if name not in ("id", "variant")
    ]
    return "<br>".join(lines)


def _short(entry: Entry) -> str:
    return str(escape(escaping.visible(entry.name)))


def legend(leaderboard: Leaderboard, threads: int, marks: Marks) -> dict[str, Any]:
    """List the colours and shapes of what is ranked together."""
    here = Marks.of(leaderboard.peers(threads))
    return {
        "networks": [(name, marks.color(name)) for name in here.networks],
        "variants": [(name, marks.shape(name).text) for name in here.variants],
    }

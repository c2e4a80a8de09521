"""The report's page, which needs no network."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from cifar_lightning.comparison import plots
from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import SHOWN
from cifar_lightning.comparison.entry import Entry, Estimate
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.section import Section, unranked_lines
from cifar_lightning.system import environment, escaping

LOG_TICKS = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]


def interactive(section: Section, min_acc: float, number: int) -> Markup:
    """Draw accuracy against latency so that points can be hovered and zoomed."""
    leaderboard = section.leaderboard
    networks = [entry.network for entry in leaderboard.entries]
    figure = go.Figure()
    front = leaderboard.pareto_front
    figure.add_scatter(
        x=[entry.mean_ms.mean for entry in front],
        y=[entry.accuracy.mean for entry in front],
        mode="lines",
        line={"dash": "dash", "width": 1, "shape": "hv", "color": plots.GRID},
        hoverinfo="skip",
        name="Pareto front",
    )
    for network in dict.fromkeys(networks):
        entries = [entry for entry in section.entries if entry.network == network]
        figure.add_scatter(
            x=[entry.mean_ms.mean for entry in entries],
            y=[entry.accuracy.mean for entry in entries],
            error_x=_errors([entry.mean_ms for entry in entries]),
            error_y=_errors([entry.accuracy for entry in entries]),
            mode="markers",
            marker={"size": 11, "color": plots.color_of(network, networks)},
            name=str(escape(escaping.visible(network))),
            text=[_hover(leaderboard, entry) for entry in entries],
            hovertemplate="%{text}<extra></extra>",
        )
    if plots.wide(leaderboard):
        figure.update_xaxes(type="log", tickvals=LOG_TICKS)
    axis = {"gridcolor": "rgba(140,149,159,0.3)", "zeroline": False}
    figure.update_layout(
        xaxis=axis | {"title": plots.LATENCY_AXIS},
        yaxis=axis | {"title": plots.ACCURACY_AXIS},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        height=460,
    )
    low = min(e.accuracy.mean - e.accuracy.reach[0] for e in leaderboard.entries)
    high = max(e.accuracy.mean + e.accuracy.reach[1] for e in leaderboard.entries)
    if low < min_acc < high:
        figure.add_hline(y=min_acc, line={"dash": "dot", "width": 1, "color": plots.GRID})
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{number}",
        config={"displayModeBar": False, "responsive": True},
    )
    return Markup(drawn)  # plotly escapes what it embeds


def _errors(estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.reach[1] for one in estimates],
        "arrayminus": [one.reach[0] for one in estimates],
        "thickness": 1,
    }


def _hover(leaderboard: Leaderboard, entry: Entry) -> str:
    lines = [f"<b>{escape(escaping.visible(entry.name))}</b>"]
    lines += [
        f"{column.header}: {escape(escaping.visible(column.shown(leaderboard, entry)))}"
        for name, column in SHOWN.items()
        if name not in ("id", "variant")
    ]
    return "<br>".join(lines)


def page(
    sections: Sequence[Section],
    comparison: Comparison,
    details: dict[str, tuple[str, Figure]],
    min_acc: float,
) -> str:
    """Make the self-contained page.

    Args:
        sections: One for each leaderboard.
        comparison: For the rows that are not ranked.
        details: File names of further figures, each with its heading and drawing.
        min_acc: In percent.
    """

    def drawn(figure: Figure) -> Markup:
        return Markup(plots.svg(figure, inline=True))  # matplotlib escapes text

    values = {
        "sections": sections,
        "columns": list(SHOWN.values()),
        "min_acc": min_acc,
        "interactive": interactive,
        "drawn": drawn,
        "details": details.values(),
        "unranked": unranked_lines(comparison),
        "code": environment.code().commit,
        "plotly": Markup(get_plotlyjs()),
    }
    return escaping.render("comparison/report.html.jinja", escaping.visible, values)

"""The report's page, which needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import Column, known
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.section import Ranking, Section, overall, unranked_lines
from cifar_lightning.system import environment, escaping

LOG_TICKS = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]


def interactive(section: Section, ranking: Ranking, need: Need, number: int) -> Markup:
    """Draw accuracy against latency so that points can be hovered and zoomed."""
    leaderboard = section.leaderboard
    peers = leaderboard.peers(ranking.threads)
    networks = [entry.network for entry in peers]
    figure = go.Figure()
    front = leaderboard.pareto_front(ranking.threads)
    figure.add_scatter(
        x=[entry.relative for entry in front],
        y=[entry.accuracy.mean for entry in front],
        mode="lines",
        line={"dash": "dash", "width": 1, "shape": "hv", "color": plots.GRID},
        hoverinfo="skip",
        name="Pareto front",
    )
    for network in dict.fromkeys(networks):
        entries = [entry for entry in peers if entry.network == network]
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
            marker={"size": 11, "color": plots.color_of(network, networks)},
            name=str(escape(escaping.visible(network))),
            text=[_hover(leaderboard, entry) for entry in entries],
            hovertemplate="%{text}<extra></extra>",
        )
    wide = plots.wide([entry.relative for entry in peers])
    figure.update_layout(
        xaxis={
            "title": scatter.LATENCY_LABEL,
            "type": "log" if wide else "linear",
            "tickvals": LOG_TICKS if wide else None,
            "gridcolor": "rgba(140,149,159,0.3)",
            "zeroline": False,
        },
        yaxis={
            "title": "test accuracy (%)",
            "gridcolor": "rgba(140,149,159,0.3)",
            "zeroline": False,
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        height=460,
    )
    reach = [(e.accuracy.mean, scatter.accuracy_reach(leaderboard, e)) for e in peers]
    low, high = min(y - side for y, side in reach), max(y + side for y, side in reach)
    if need.max_ms is None and low < need.min_acc < high:
        line = {"dash": "dot", "width": 1, "color": plots.GRID}
        figure.add_hline(y=need.min_acc, line=line)
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{number}-{ranking.threads}",
        config={"displayModeBar": False, "responsive": True},
    )
    return Markup(drawn)  # plotly escapes what it embeds


def _hover(leaderboard: Leaderboard, entry: Entry) -> str:
    lines = [f"<b>{escape(escaping.visible(entry.name))}</b>"]
    lines += [
        f"{column.header}: {escape(escaping.visible(column.shown(leaderboard, entry)))}"
        for name, column in known([(leaderboard, entry)]).items()
        if name not in ("id", "variant")
    ]
    return "<br>".join(lines)


def page(
    sections: Sequence[Section],
    comparison: Comparison,
    headings: Mapping[str, str],
    drawings: Mapping[str, plots.Drawing],
    need: Need,
) -> str:
    """Make the self-contained page.

    Args:
        sections: One for each leaderboard.
        comparison: For the rows that are not ranked.
        headings: Of further figures, by the names of their files.
        drawings: All figures that are drawn, by the names of their files.
        need: What was asked for.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_lightning.comparison", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: (
            escaping.visible(value)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
    )

    everyone = [(section.leaderboard, entry) for section in sections for entry in section.entries]
    columns = [*known(everyone).values()]

    def drawn(name: str) -> Markup:
        return Markup(drawings[name].inline)  # matplotlib escapes text

    return templates.get_template("report.html.jinja").render(
        overall=overall(sections),
        sections=[
            {
                "name": section.leaderboard.name,
                "rankings": [
                    {
                        "name": ranking.name if len(section.rankings) > 1 else "",
                        "verdict": ranking.verdict,
                        "plot": interactive(section, ranking, need, number),
                    }
                    for ranking in section.rankings
                ],
                "notes": section.notes,
                "changes": section.changes,
                "reproductions": section.reproductions,
                "baseline": section.leaderboard.baseline[1].name,
                "rows": [_row(section, entry, columns) for entry in section.entries],
                "distributions": section.distributions and drawn(section.latency_plot),
            }
            for number, section in enumerate(sections)
        ],
        columns=[(column.header, column.numeric) for column in columns],
        details=[(heading, drawn(name)) for name, heading in headings.items()],
        unranked=unranked_lines(comparison),
        code=environment.code().commit,
        plotly=Markup(get_plotlyjs()),
    )


def _row(section: Section, entry: Entry, columns: Sequence[Column]) -> dict[str, Any]:
    leaderboard = section.leaderboard
    return {
        "front": entry not in leaderboard.dominated_by,
        "chosen": entry is leaderboard.choices[entry.threads].entry,
        "cells": [
            (column.shown(leaderboard, entry), _sortable(column, leaderboard, entry))
            for column in columns
        ],
    }


def _sortable(column: Column, leaderboard: Leaderboard, entry: Entry) -> str:
    value = column.value(leaderboard, entry)
    return "" if value is None else str(value)

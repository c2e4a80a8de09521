"""The report's page, which needs no network."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import Column
from cifar_lightning.comparison.drawing import Drawing
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.interactive import interactive, legend
from cifar_lightning.comparison.markdown import overall, unranked_lines
from cifar_lightning.comparison.section import Section
from cifar_lightning.comparison.tables import FIRST, known
from cifar_lightning.runs.layout import Value
from cifar_lightning.system import environment, escaping

PAGE_ROWS = 50  # of a longer table so many are shown at a time
_NUMBER = re.compile(r"[+-]?[\d.]")  # begins what a browser reads as a number


def page(
    sections: Sequence[Section],
    comparison: Comparison,
    headings: Mapping[str, str],
    drawings: Mapping[str, Drawing],
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
    columns = known(everyone)

    def drawn(name: str) -> dict[str, Markup]:
        drawing = drawings[name]
        return {"wide": Markup(drawing.inline), "narrow": Markup(drawing.narrow)}  # text is escaped

    return templates.get_template("report.html.jinja").render(
        overall=overall(sections)
        or next((one.verdict.advice for section in sections for one in section.rankings), None),
        sections=[
            {
                "name": section.leaderboard.name,
                "rankings": [
                    {
                        "name": ranking.name if len(section.rankings) > 1 else "",
                        "verdict": ranking.verdict,
                        "plot": interactive(
                            section.leaderboard,
                            ranking.threads,
                            need,
                            section.marks,
                            f"plot-{number}-{ranking.threads}",
                        ),
                        "legend": legend(section.leaderboard, ranking.threads, section.marks),
                    }
                    for ranking in section.rankings
                ],
                "more": section.more,
                "notes": section.notes,
                "changes": section.changes,
                "reproductions": section.reproductions,
                "baseline": section.leaderboard.baseline[1].name,
                "rows": [
                    _row(section, entry, listed, [*columns.values()])
                    for listed in [{*section.listed}]
                    for entry in section.entries
                ],
                "distributions": section.distributions and drawn(section.latency_plot),
            }
            for number, section in enumerate(sections)
        ],
        page_rows=PAGE_ROWS,
        numeric=[number for number, one in enumerate(columns.values(), 1) if one.numeric],
        more=[number for number, name in enumerate(columns, 1) if name not in FIRST],
        columns=[
            (column.header, "number" * column.numeric, "more" * (name not in FIRST))
            for name, column in columns.items()
        ],
        details=[(heading, drawn(name)) for name, heading in headings.items()],
        unranked=unranked_lines(comparison),
        code=environment.code().commit,
        plotly=Markup(get_plotlyjs()),
    )


def _row(
    section: Section, entry: Entry, listed: Collection[Entry], columns: Sequence[Column]
) -> dict[str, Any]:
    leaderboard = section.leaderboard
    return {
        "listed": entry in listed,
        "front": entry not in leaderboard.dominated_by,
        "chosen": entry is leaderboard.choices[entry.threads].entry,
        "color": section.marks.color(entry.network),
        "shape": section.marks.shape(entry.variant).text,
        "cells": [
            (text, _sortable(column.value(leaderboard, entry), text))
            for column in columns
            for text in [column.shown(leaderboard, entry)]
        ],
    }


def _sortable(value: Value, text: str) -> str | None:
    """Tell what a cell is sorted by where that is not what it shows."""
    if value is None:
        return ""
    return str(value) if isinstance(value, float | int) and not _NUMBER.match(text) else None

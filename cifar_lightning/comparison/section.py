"""What is said and drawn of one leaderboard; the report as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.changes import changes, effect
from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import COLUMNS, SHOWN, in_order
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.verdict import Verdict, verdict
from cifar_lightning.runs.markdown import draw_table
from cifar_lightning.runs.table import csv_value
from cifar_lightning.system import escaping


@dataclass(frozen=True)
class Section:
    """What is said and drawn of one leaderboard."""

    leaderboard: Leaderboard
    entries: list[Entry]
    verdict: Verdict
    changes: list[str]
    scatter: Figure
    distributions: Figure

    @property
    def figures(self) -> dict[str, Figure]:
        """The plots by the names of their files."""
        slug = self.leaderboard.conditions.slug
        return {f"accuracy-latency-{slug}": self.scatter, f"latency-{slug}": self.distributions}

    @classmethod
    def of(cls, leaderboard: Leaderboard, sort: str, min_acc: float) -> Section:
        return cls(
            leaderboard=leaderboard,
            entries=in_order(leaderboard, sort),
            verdict=verdict(leaderboard, min_acc),
            changes=list(_change_lines(leaderboard)),
            scatter=scatter.accuracy_latency(leaderboard, min_acc),
            distributions=plots.latency_distributions(leaderboard),
        )


def _change_lines(leaderboard: Leaderboard) -> Iterator[str]:
    base = leaderboard.baseline
    for entry in leaderboard.entries:
        if entry is base:
            continue
        found = changes(base, entry)
        mark = f" [{len(found)} changes at once]" if len(found) > 1 else ""
        what = "; ".join(found) or "no change of the configuration"
        yield f"{entry.name}{mark}: {what}. {effect(base, entry).capitalize()}."


def table(section: Section) -> str:
    """Draw an leaderboard's table in Markdown; ``~`` marks means that had not settled."""
    lines = [tuple(str(column.header) for column in SHOWN.values())]
    lines += [
        tuple(column.shown(section.leaderboard, entry) for column in SHOWN.values())
        for entry in section.entries
    ]
    return draw_table(lines, [i for i, column in enumerate(SHOWN.values()) if column.numeric])


def table_csv(sections: Sequence[Section]) -> str:
    """Write every column of every entry as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section in sections:
        for entry in section.entries:
            values = [column.value(section.leaderboard, entry) for column in COLUMNS.values()]
            writer.writerow([csv_value(value) for value in values])
    return text.getvalue()


def markdown(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write everything that can be said without plots."""
    parts = []
    for section in sections:
        told = section.verdict
        parts += [f"## {escaping.markdown(section.leaderboard.name)}", ""]
        parts += [escaping.markdown(told.advice), escaping.markdown(told.front)]
        parts += ["", table(section)]
        if told.needless:
            parts += ["Why not the others:", "", *_listed(told.needless), ""]
        if section.changes:
            parts += [escaping.markdown(f"Against {section.leaderboard.baseline.name}:"), ""]
            parts += [*_listed(section.changes), ""]
    if comparison.apart:
        parts += ["## Not ranked", "", *_listed(apart(comparison)), ""]
    return "\n".join(parts)


def _listed(lines: Sequence[str]) -> list[str]:
    return [f"- {escaping.markdown(line)}" for line in lines]


def apart(comparison: Comparison) -> list[str]:
    """Name each row that is not ranked, and say why."""
    lines = []
    for row in comparison.apart:
        measured = row["variant"] is not None
        where = f" {row['variant']} on {row['device']}" if measured else ""
        status = row["status"] if measured or row["status"] == "failed" else "not measured"
        reason = f": {row['error']}" if row["error"] else ""
        lines.append(f"{row['id']}{where} is {status}{reason}")
    return lines

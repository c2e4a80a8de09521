"""What is said and drawn of one leaderboard; the report as Markdown and CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from matplotlib.figure import Figure

from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.changes import changes, effect
from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import COLUMNS, in_order, table
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.verdict import Verdict, verdict
from cifar_lightning.runs.table import csv_text
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
    def of(cls, leaderboard: Leaderboard, sort: str, min_acc: float) -> Self:
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


def table_csv(sections: Sequence[Section]) -> str:
    """Write every column of every entry as CSV."""
    return csv_text(
        list(COLUMNS),
        (
            [column.value(section.leaderboard, entry) for column in COLUMNS.values()]
            for section in sections
            for entry in section.entries
        ),
    )


def markdown(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write everything that can be said without plots."""
    parts = []
    for section in sections:
        told = section.verdict
        parts += [f"## {escaping.markdown(section.leaderboard.name)}", ""]
        parts += [escaping.markdown(told.advice), escaping.markdown(told.pareto_front)]
        parts += ["", table(section.leaderboard, section.entries)]
        if told.dominated:
            parts += ["Why not the others:", "", *_listed(told.dominated), ""]
        if section.changes:
            parts += [escaping.markdown(f"Against {section.leaderboard.baseline.name}:"), ""]
            parts += [*_listed(section.changes), ""]
    if comparison.unranked:
        parts += ["## Not ranked", "", *_listed(unranked_lines(comparison)), ""]
    return "\n".join(parts)


def _listed(lines: Sequence[str]) -> list[str]:
    return [f"- {escaping.markdown(line)}" for line in lines]


def unranked_lines(comparison: Comparison) -> list[str]:
    """Name each row that is not ranked, and say why."""
    lines = []
    for row in comparison.unranked:
        where = f" {row.variant} on {row.device}" if row.variant else ""
        status = row.status if row.variant or row.status == "failed" else "not measured"
        lines.append(f"{row.id}{where} is {status}{f': {row.error}' if row.error else ''}")
    return lines

"""The report as Markdown and CSV: everything that can be said without plots."""

import itertools
from collections import Counter
from collections.abc import Sequence

from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import COLUMNS
from cifar_lightning.comparison.provenance import provenance
from cifar_lightning.comparison.section import SIGNS, Section
from cifar_lightning.comparison.tables import table
from cifar_lightning.config.protocols import BENCH
from cifar_lightning.runs.layout import csv_text
from cifar_lightning.runs.results import Row
from cifar_lightning.system import escaping

UNRANKED = 100  # lines of rows that are named
LEGEND = f"{SIGNS} All columns are in `table.csv` and on the page."


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


def overall(sections: Sequence[Section]) -> str | None:
    """Repeat the first verdict as the overall answer, where it is one of several."""
    if sum(len(section.rankings) for section in sections) < 2:
        return None
    first, ranking = sections[0].leaderboard.name, sections[0].rankings[0]
    name = ", ".join(filter(None, (first, ranking.name)))
    return f"Overall answer ({name}): {ranking.verdict.advice}"


def summary(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write what a terminal shows: verdicts, the first table, and what is not ranked."""
    parts = _answer(sections)
    for number, section in enumerate(sections):
        parts += _verdicts(section)
        parts += _table(section) if number == 0 else []
    return "\n".join([*parts, *_titled("## Not ranked", unranked_lines(comparison))])


def markdown(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write everything that can be said without plots."""
    parts = _answer(sections)
    for section in sections:
        parts += [*_verdicts(section), *_table(section), *_reasons(section)]
    return "\n".join([*parts, *_titled("## Not ranked", unranked_lines(comparison))])


def _answer(sections: Sequence[Section]) -> list[str]:
    answer = overall(sections)
    return [escaping.markdown(answer), ""] if answer else []


def _verdicts(section: Section) -> list[str]:
    parts = [f"## {escaping.markdown(section.leaderboard.name)}", ""]
    for ranking in section.rankings:
        told = ranking.verdict
        if len(section.rankings) > 1:
            parts += [f"### {ranking.name}", ""]
        parts += [escaping.markdown(told.advice), escaping.markdown(told.pareto_front), ""]
        if told.command:
            parts += [f"To know more: {escaping.markdown_code(told.command)}", ""]
    return parts


def _table(section: Section) -> list[str]:
    parts = [table(section.leaderboard, section.listed), LEGEND, ""]
    parts += [section.more, ""] if section.more else []
    parts += [escaping.markdown(provenance(section.leaderboard)), ""]
    return [*parts, *_titled("", section.notes)]


def _reasons(section: Section) -> list[str]:
    slower = COLUMNS["slower_pct"]
    parts = _titled(
        "Slower than what is taken (%, with the interval that decides):",
        [f"{entry.name}: {slower.shown(section.leaderboard, entry)}" for entry in section.listed],
    )
    dominated = [line for one in section.rankings for line in one.verdict.dominated]
    parts += _titled("Why not the others:", dominated)
    parts += _titled(f"Against {section.leaderboard.baseline[1].name}:", section.changes)
    parts += ["To make them again:", ""]
    for one in section.reproductions:
        commands = [
            f"{escaping.markdown_code(command)} ({escaping.markdown(made)})"
            for command, made in (
                (one.train, one.trained_with),
                (one.measure, one.measured_with),
            )
        ]
        parts.append(f"- {escaping.markdown(one.name)}: {', then '.join(commands)}")
    return [*parts, ""]


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    head = title if title.startswith("#") else escaping.markdown(title)
    return [*([head, ""] if title else []), *(f"- {escaping.markdown(one)}" for one in lines), ""]


def unranked_lines(comparison: Comparison) -> list[str]:
    """Name each row that is not ranked, and say why; rows of which the same is said are counted."""
    same = Counter(_unranked(row) for row in comparison.unranked)
    lines = [
        line if count == 1 else f"{line} ({count} rows)"
        for line, count in itertools.islice(same.items(), UNRANKED)
    ]
    if more := sum(itertools.islice(same.values(), UNRANKED, None)):
        lines.append(f"{more} more, which results.csv lists")
    return lines


def _unranked(row: Row) -> str:
    where = f" {row.variant} on {row.device}" if row.variant else ""
    status = row.status if row.variant or row.status == "failed" else "not measured"
    if status in ("ok", "disturbed"):
        status = "not ranked"
    why = [row.error] if row.error else []
    if row.protocol == BENCH and row.lat_mean_ms is not None and row.lat_rel is not None:
        timed = f"{row.lat_mean_ms:.3f} ms, {row.lat_rel:.3f} of ResNet-8's in the same engine"
        why.insert(0, f"timed by bench.py: {timed}")
    return f"{row.id}{where} is {status}{': ' if why else ''}{'; '.join(why)}"

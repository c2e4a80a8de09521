"""What is said and drawn of one leaderboard; the report as Markdown and CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.changes import changes, effect
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import Comparison
from cifar_lightning.comparison.columns import COLUMNS
from cifar_lightning.comparison.drawing import Draw
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.provenance import provenance
from cifar_lightning.comparison.reproduce import Reproduction
from cifar_lightning.comparison.tables import in_order, table
from cifar_lightning.comparison.verdict import Verdict, verdict
from cifar_lightning.runs.latency import ENDED_BY
from cifar_lightning.runs.table import csv_text
from cifar_lightning.system import escaping

SIGNS = (
    "± is 1.64 standard errors, by which accuracies are called surely different; relative latency "
    "is in multiples of the reference's (ResNet-8, fp32); = marks ties, front the Pareto "
    "front."
)
LEGEND = f"{SIGNS} All columns are in `table.csv` and on the page."


@dataclass(frozen=True)
class Ranking:
    """What is said and drawn of the entries with one number of threads."""

    threads: int
    verdict: Verdict
    scatter: Draw

    @property
    def name(self) -> str:
        """Empty on a GPU, where threads don't count."""
        return f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""


@dataclass(frozen=True)
class Section:
    """What is said and drawn of one leaderboard.

    Attributes:
        rankings: That of the overall answer first.
        entries: Sorted as asked for.
        notes: On the latencies: the noise floor, and what is missing.
        distributions: None where no calls are there.
        marks: Of the whole report.
    """

    leaderboard: Leaderboard
    rankings: list[Ranking]
    entries: list[Entry]
    notes: list[str]
    changes: list[str]
    reproductions: list[Reproduction]
    distributions: Draw | None
    marks: Marks

    @property
    def figures(self) -> dict[str, Draw]:
        """The plots by the names of their files."""
        slug = self.leaderboard.conditions.slug
        found = {f"accuracy-latency-{slug}-t{one.threads}": one.scatter for one in self.rankings}
        return found | ({self.latency_plot: self.distributions} if self.distributions else {})

    @property
    def latency_plot(self) -> str:
        """The name of the file that shows the distributions."""
        return f"latency-{self.leaderboard.conditions.slug}"

    @classmethod
    def of(cls, leaderboard: Leaderboard, sort: str, need: Need, marks: Marks) -> Self:
        entries = in_order(leaderboard, sort)
        timed = [entry for entry in entries if any(one.calls_ms for one in entry.timings.timed[:1])]
        return cls(
            leaderboard=leaderboard,
            rankings=[
                Ranking(
                    threads,
                    verdict(leaderboard, threads, need),
                    partial(scatter.accuracy_latency, leaderboard, threads, need, marks),
                )
                for threads in leaderboard.threads
            ],
            entries=entries,
            notes=list(_notes(leaderboard)),
            changes=list(_change_lines(leaderboard)),
            reproductions=[Reproduction.of(entry) for entry in entries],
            distributions=partial(plots.latency_distributions, timed, marks) if timed else None,
            marks=marks,
        )


def _notes(leaderboard: Leaderboard) -> Iterator[str]:
    records = {
        one.timed[0].benchmark.id: one.timed[0].benchmark
        for one in (entry.timings for entry in leaderboard.entries)
        if one.timed
    }
    for name, record in records.items():
        centre, low, high = (100 * (ratio - 1) for ratio in record.noise_floor.ratio)
        rounds = min(len(session.rounds) for session in record.sessions)
        yield (
            f"Benchmark {name} ended by {ENDED_BY[record.ended]} after {rounds} rounds. Its noise "
            f"floor: the reference's double, which is the same network, differed from it by "
            f"{centre:+.2f} % ({low:+.2f} to {high:+.2f})."
        )
    if missing := [entry.name for entry in leaderboard.entries if not entry.timings.timed]:
        yield (
            f"The benchmark's record is missing of {', '.join(missing)}: related only through the "
            "relative latency that the measurement holds."
        )
    if apart := [entry.name for entry in leaderboard.entries if entry.told_apart]:
        yield f"Weights change the latency, so each run has a row of its own: {', '.join(apart)}."
    carried = {entry.name: entry.group.acc_from for entry in leaderboard.entries}
    for source in dict.fromkeys(filter(None, carried.values())):
        names = ", ".join(name for name, one in carried.items() if one == source)
        yield f"Accuracy of {names} is carried over from: {source}."
    represented = {
        entry.label: ", ".join(group.label for group in entry.groups[1:])
        for entry in leaderboard.entries
        if entry.groups[1:]
    }
    for label, others in represented.items():
        yield f"{label} represents {others}, too: they execute alike."


def _change_lines(leaderboard: Leaderboard) -> Iterator[str]:
    _, base = leaderboard.baseline
    for entry in leaderboard.entries:
        for group in entry.groups:
            if group is base:
                continue
            found = changes(base, group)
            mark = f" [{len(found)} changes at once]" if len(found) > 1 else ""
            what = "; ".join(found) or "no change of the configuration"
            did = effect(leaderboard, (entry, group))
            yield f"{group.name}{mark}: {what}. {did.capitalize()}."


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


def markdown(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write everything that can be said without plots."""
    answer = overall(sections)
    parts = [escaping.markdown(answer), ""] if answer else []
    for section in sections:
        parts += [f"## {escaping.markdown(section.leaderboard.name)}", ""]
        for ranking in section.rankings:
            told = ranking.verdict
            if len(section.rankings) > 1:
                parts += [f"### {ranking.name}", ""]
            parts += [escaping.markdown(told.advice), escaping.markdown(told.pareto_front), ""]
            if told.command:
                parts += [f"To know more: {escaping.markdown_code(told.command)}", ""]
        parts += [table(section.leaderboard, section.entries), LEGEND, ""]
        parts += [escaping.markdown(provenance(section.leaderboard)), ""]
        slower = COLUMNS["slower_pct"]
        parts += _titled(
            "Slower than what is taken (%, with the interval that decides):",
            [
                f"{entry.name}: {slower.shown(section.leaderboard, entry)}"
                for entry in section.entries
            ],
        )
        parts += _titled("", section.notes)
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
        parts.append("")
    parts += _titled("## Not ranked", unranked_lines(comparison))
    return "\n".join(parts)


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    head = title if title.startswith("#") else escaping.markdown(title)
    return [*([head, ""] if title else []), *(f"- {escaping.markdown(one)}" for one in lines), ""]


def unranked_lines(comparison: Comparison) -> list[str]:
    """Name each row that is not ranked, and say why."""
    lines = []
    for row in comparison.unranked:
        where = f" {row.variant} on {row.device}" if row.variant else ""
        status = row.status if row.variant or row.status == "failed" else "not measured"
        if status in ("ok", "disturbed"):
            status = "not ranked"
        lines.append(f"{row.id}{where} is {status}{f': {row.error}' if row.error else ''}")
    return lines

"""What is said and drawn of one leaderboard; the report as Markdown and CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.changes import changes, effect
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.drawing import Draw
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.floors import floors
from cifar_lightning.comparison.leaderboard import LISTED, Leaderboard
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.reproduce import Reproduction
from cifar_lightning.comparison.tables import in_order
from cifar_lightning.comparison.verdict import Verdict, verdict
from cifar_lightning.runs.latency import ENDED_BY
from cifar_lightning.system.formatting import SOME, some

SIGNS = (
    "± is 1.64 standard errors, by which accuracies are called surely different; relative latency "
    "is in multiples of the reference's (ResNet-8, fp32); = marks ties, front the Pareto "
    "front."
)
SPREAD = 12  # entries whose calls and curves are drawn, where there are more than those listed


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
        listed: Those of them that have lines of their own.
        notes: On the latencies: the noise floor, and what is missing.
        distributions: None where no calls are there.
        marks: Of the whole report.
    """

    leaderboard: Leaderboard
    rankings: list[Ranking]
    entries: list[Entry]
    listed: list[Entry]
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
        listed = _kept(leaderboard, entries, LISTED)
        timed = [entry for entry in _drawn(leaderboard, entries) if entry.timings.has_calls]
        return cls(
            leaderboard=leaderboard,
            rankings=[
                Ranking(
                    threads,
                    verdict(leaderboard, threads, need, listed),
                    partial(scatter.accuracy_latency, leaderboard, threads, need, marks),
                )
                for threads in leaderboard.threads
            ],
            entries=entries,
            listed=listed,
            notes=list(_notes(leaderboard, listed)),
            changes=list(_change_lines(leaderboard, listed)),
            reproductions=[Reproduction.of(entry) for entry in listed],
            distributions=partial(plots.latency_distributions, timed, marks) if timed else None,
            marks=marks,
        )

    @property
    def drawn(self) -> list[Entry]:
        """The entries whose calls and curves are drawn."""
        return _drawn(self.leaderboard, self.entries)

    @property
    def more(self) -> str:
        """Say how many entries have no line of their own; empty if all have."""
        left = len(self.entries) - len(self.listed)
        if not left:
            return ""
        return (
            f"Listed are the {len(self.listed)} rows on the Pareto front or nearest to it in "
            f"accuracy; {left} more are in the plot, in table.csv and in the page's table."
        )


def _kept(leaderboard: Leaderboard, entries: Sequence[Entry], most: int) -> list[Entry]:
    kept = {entry for one in leaderboard.threads for entry in leaderboard.listed(one, most)}
    return [entry for entry in entries if entry in kept]


def _drawn(leaderboard: Leaderboard, entries: Sequence[Entry]) -> list[Entry]:
    listed = _kept(leaderboard, entries, LISTED)
    return listed if len(listed) == len(entries) else _kept(leaderboard, entries, SPREAD)


def _notes(leaderboard: Leaderboard, listed: Sequence[Entry]) -> Iterator[str]:
    records = {
        one.timed[0].benchmark.id: one.timed[0].benchmark
        for one in (entry.timings for entry in listed)
        if one.timed
    }
    if len(records) > SOME:
        noise = [record.noise_floor.ratio[0] - 1 for record in records.values()]
        yield (
            f"Timed in {len(records)} benchmarks. Their noise floors: the reference's double, "
            f"which is the same network, differed from it by {100 * min(noise):+.2f} to "
            f"{100 * max(noise):+.2f} %."
        )
        records = {}
    for name, record in records.items():
        centre, low, high = (100 * (ratio - 1) for ratio in record.noise_floor.ratio)
        yield (
            f"Benchmark {name} ended by {ENDED_BY[record.ended]} after {record.rounds} rounds. "
            "Its noise floor: the reference's double, which is the same network, differed from it "
            f"by {centre:+.2f} % ({low:+.2f} to {high:+.2f})."
        )
    if known := floors(listed):
        told = ", ".join(f"{one.name} {one.ms:.3f} ms" for one in known)
        yield f"The floor, what a call takes by itself with hardly any network: {told}."
    if missing := [entry.name for entry in listed if not entry.timings.timed]:
        yield (
            f"The benchmark's record is missing of {some(missing)}: related only through the "
            "relative latency that the measurement holds."
        )
    if apart := [entry.name for entry in listed if entry.told_apart]:
        yield f"Weights change the latency, so each run has a row of its own: {some(apart)}."
    carried = {entry.name: entry.group.acc_from for entry in listed}
    for source in dict.fromkeys(filter(None, carried.values())):
        names = some([name for name, one in carried.items() if one == source])
        yield f"Accuracy of {names} is carried over from: {source}."
    represented = {
        entry.label: some([group.label for group in entry.groups[1:]])
        for entry in listed
        if entry.groups[1:]
    }
    for label, others in represented.items():
        yield f"{label} represents {others}, too: they execute alike."


def _change_lines(leaderboard: Leaderboard, listed: Sequence[Entry]) -> Iterator[str]:
    _, base = leaderboard.baseline
    for entry in listed:
        for group in entry.groups:
            if group is base:
                continue
            found = changes(base, group)
            mark = f" [{len(found)} changes at once]" if len(found) > 1 else ""
            what = "; ".join(found) or "no change of the configuration"
            did = effect(leaderboard, (entry, group))
            yield f"{group.name}{mark}: {what}. {did.capitalize()}."

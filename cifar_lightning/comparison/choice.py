"""Which entry to take: of the fastest ones that are accurate enough, the most accurate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cifar_lightning.comparison.bootstrap import upper_end_ms
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Choice, Leaderboard
from cifar_lightning.config.protocols import MIN_ROUNDS
from cifar_lightning.errors import bad_value
from cifar_lightning.runs.latency import MIN_SAMPLES


@dataclass(frozen=True)
class Need:
    """What an entry must reach.

    Attributes:
        min_acc: Test accuracy in percent; where there is a ``max_ms``, a lack of it is told.
        max_ms: What the latency must surely be below; None asks for an accuracy.
        statistic: Of the latency: ``mean`` or ``p95``.
    """

    min_acc: float
    max_ms: float | None = None
    statistic: str = "mean"

    def __post_init__(self) -> None:
        """See that both settings mean something together.

        Raises:
            UserError: If not.
        """
        if self.max_ms is None and self.statistic != "mean":
            raise bad_value("stat", self.statistic, "mean where no max_ms is asked for")


def choose(leaderboard: Leaderboard, threads: int, need: Need) -> Choice:
    """Choose among the entries with one number of threads."""
    entries = leaderboard.peers(threads)
    if need.max_ms is not None:
        return _most_accurate(leaderboard, entries, need.max_ms, need.statistic)
    eligible = [entry for entry in entries if entry.accuracy.mean >= need.min_acc]
    if not eligible:
        nearest = max(entries, key=lambda entry: (entry.accuracy.mean, -entry.relative))
        return Choice(nearest, [], [])
    fastest = _fastest(leaderboard, eligible)
    return Choice(max(fastest, key=_merit), eligible, fastest)


def _fastest(leaderboard: Leaderboard, entries: Sequence[Entry]) -> list[Entry]:
    """Take those that are slower than none; medians are not additive: there may be none."""
    return leaderboard.not_slower(entries) or [min(entries, key=lambda entry: entry.relative)]


def _merit(entry: Entry) -> tuple[float, float, float]:
    """Sort the best last: accurate to 0.1 points, then small, then fast."""
    size = math.inf if entry.size_mb is None else entry.size_mb
    return _points(entry), -size, -entry.relative


def _points(entry: Entry) -> float:
    return round(entry.accuracy.mean, 1)


def _most_accurate(
    leaderboard: Leaderboard, entries: Sequence[Entry], max_ms: float, statistic: str
) -> Choice:
    # The calls of a benchmark are read once if its entries follow each other.
    together = sorted(entries, key=lambda entry: entry.measurement.benchmark or "")
    highest = {entry: bound_ms(entry, statistic) for entry in together}
    eligible = [entry for entry in entries if highest[entry] < max_ms]
    if not eligible:
        return Choice(min(entries, key=lambda entry: highest[entry]), [], [])
    most = max(map(_points, eligible))
    fastest = _fastest(leaderboard, [entry for entry in eligible if _points(entry) == most])
    return Choice(max(fastest, key=_merit), eligible, leaderboard.not_below(eligible))


def bound_ms(entry: Entry, statistic: str) -> float:
    """Compute what an entry's latency is surely below; infinite where that is not known.

    A few rounds don't show how the machine changes, a few processes not how those differ, and a
    few calls no percentile.
    """
    if not entry.timings.timed:
        return math.inf
    timed, counted = entry.timings.timed[0], entry.timings.timed[0].benchmark.counted
    if len(counted) < timed.benchmark.fewest or sum(map(len, counted)) < MIN_ROUNDS:
        return math.inf
    if statistic == "p95":
        calls = sum(len(block.calls_ms) for block in timed.blocks)
        if calls < MIN_SAMPLES[95]:
            return math.inf
    return upper_end_ms(timed, statistic)


def at_most_slower(leaderboard: Leaderboard, choice: Choice) -> float:
    """Bound how much slower than the fastest the entry to take is, as a ratio minus 1."""
    found = [
        leaderboard.difference(choice.entry, other)
        for other in choice.best
        if other is not choice.entry
    ]
    highest = [math.inf if one is None else one.high for one in found]
    return max(0.0, math.expm1(max(highest, default=0.0)))

"""How much slower one candidate is than another, within a benchmark and across benchmarks."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from cifar_lightning.runs.blocks import Block
from cifar_lightning.runs.interleaved import ERROR, Interleaved
from cifar_lightning.runs.latency import LESS, worth
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.paired import Difference, one_sided, two_sided

RELATED_WITHIN = math.log(1.06)  # of the second references, relative to the first
# Between benchmarks the same candidate's relative latency moves by more than either's interval
# says. Until so many degrees of freedom tell by how much, so much is assumed.
ASSUMED_STD, ENOUGH = math.log(1.015), 8


@dataclass(frozen=True)
class Timed:
    """A candidate in a benchmark: its number there."""

    benchmark: Interleaved
    number: int

    @cached_property
    def calls_ms(self) -> list[float]:
        """List all its calls; empty where the record holds means only."""
        return [ms for block in self.blocks for ms in block.calls_ms]

    @property
    def blocks(self) -> list[Block]:
        """List its blocks; empty where the record holds means only."""
        return [*self.benchmark.blocks(self.number)] if self.benchmark.has_calls else []

    @cached_property
    def relative(self) -> Difference:
        return self.benchmark.relative(self.number)


@dataclass(frozen=True)
class Timings:
    """All that is known of a candidate's latency beside others'.

    Attributes:
        timed: Where it was timed: first in the benchmark that its milliseconds are of, then as
            they decide.
        stored: Its relative latency from a measurement, for one whose benchmark is missing.
    """

    timed: Sequence[Timed]
    stored: Difference

    @classmethod
    def of(cls, measurement: Measurement, timed: Sequence[Timed]) -> Self:
        """Take those of a candidate and of a measurement of it, which was timed.

        What it says of milliseconds and what is said here are of one benchmark; where that is
        missing, others don't count.
        """
        relative = measurement.relative
        assert relative is not None
        low = math.log(relative.low) if relative.low else -math.inf
        high = math.log(relative.high) if relative.high else math.inf
        rounds = measurement.rounds or 0
        timed = sorted(timed, key=lambda one: one.benchmark.id != measurement.benchmark)
        here = timed[:1] and timed[0].benchmark.id == measurement.benchmark
        return cls(
            timed if here else (), Difference(math.log(relative.centre), low, high, rounds, tau=1.0)
        )

    @property
    def has_calls(self) -> bool:
        """Whether the calls of that benchmark are there."""
        return bool(self.timed) and self.timed[0].benchmark.has_calls

    @property
    def relative(self) -> Difference:
        """The relative latency there, with its 95 % interval."""
        return self.timed[0].relative if self.timed else self.stored


def corrected(count: int) -> float:
    """Take the one-sided level of each comparison where so many entries are ranked together."""
    return ERROR / max(1, count - 1)


def difference(first: Timings, second: Timings, level: float, between: float) -> Difference | None:
    """Tell how much slower the first candidate is than the second.

    Args:
        first: Of one candidate.
        second: Of another.
        level: One-sided, of each end of the interval.
        between: Standard deviation between benchmarks; see `between_std`.

    Returns:
        The paired difference of the benchmark that decides among those that hold both; else that of
        their relative latencies. None if their benchmarks are not related.
    """
    z = one_sided(level)
    there = {one.benchmark.id: one.number for one in second.timed}
    both = [one for one in first.timed if one.benchmark.id in there]
    if both:
        one = max(both, key=lambda one: decides(one.benchmark))
        return one.benchmark.difference(one.number, there[one.benchmark.id], z)
    if not related(first.timed[:1], second.timed[:1]):
        return None
    mine, other = first.relative, second.relative
    widths = [(one.high - one.low) / (2 * two_sided()) for one in (mine, other)]
    reach = z * math.sqrt(sum(width**2 for width in widths) + 2 * between**2)
    centre = mine.centre - other.centre
    n, tau = min(mine.n, other.n), max(mine.tau, other.tau)
    return Difference(centre, centre - reach, centre + reach, n, tau)


def decides(benchmark: Interleaved) -> tuple[int, str]:
    """Sort the benchmark that decides last: the latest; before all stopped ones, then looks."""
    return worth(benchmark.ended), benchmark.started


def related(*where: Sequence[Timed]) -> bool:
    """Tell whether benchmarks' references agree on what kind of machine it was, where it is known.

    Args:
        where: Of two candidates, in which benchmark they were timed; empty if that is missing.
    """
    records = [one.benchmark for timed in where for one in timed]
    centres = [record.second_reference for record in records]
    return not centres or max(centres) - min(centres) <= RELATED_WITHIN


def between_std(candidates: Iterable[Sequence[Timed]]) -> float:
    """Estimate how much a candidate's relative latency moves from benchmark to benchmark.

    Args:
        candidates: Where each of them was timed.
    """
    squares, freedom = 0.0, 0
    for timed in candidates:
        centres = [one.relative.centre for one in timed if one.benchmark.ended not in LESS]
        if len(centres) > 1:
            squares += statistics.variance(centres) * (len(centres) - 1)
            freedom += len(centres) - 1
    return math.sqrt(squares / freedom) if freedom >= ENOUGH else ASSUMED_STD


def timed(records: Iterable[Interleaved]) -> dict[str, list[Timed]]:
    """Tell by its key where each candidate was timed, what decides first."""
    found: dict[str, list[Timed]] = defaultdict(list)
    for record in sorted(records, key=decides, reverse=True):
        for number in record.ranked:
            found[record.candidates[number].key].append(Timed(record, number))
    return found

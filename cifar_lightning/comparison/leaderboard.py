"""Entries that may be ranked together: ranks, the Pareto front, the one to take."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cifar_lightning.comparison.entry import Conditions, Entry, Estimate


@dataclass(frozen=True)
class Leaderboard:
    """Entries that may be ranked together, and the one that the others are compared with.

    Attributes:
        name: Of the conditions, with the data's fingerprint where another leaderboard has the same.
    """

    name: str
    conditions: Conditions
    entries: tuple[Entry, ...]
    baseline: Entry

    def rank(
        self, entry: Entry, of: Callable[[Entry], Estimate], highest: bool
    ) -> tuple[int, bool]:
        """Rank an entry behind all that are significantly better.

        Args:
            entry: One of the leaderboard's.
            of: The figure to rank by.
            highest: Whether a high one is good.

        Returns:
            The rank, and whether it ties with another entry.
        """
        mine = of(entry)
        others = [of(other) for other in self.entries if other is not entry]
        better = sum(
            mine.significantly_below(other) if highest else other.significantly_below(mine)
            for other in others
        )
        return better + 1, any(mine.overlaps(other) for other in others)

    @cached_property
    def dominated_by(self) -> dict[Entry, Entry]:
        """For each dominated entry, the one that dominates it.

        Its means are at least as good in both accuracy and latency, and one of them is
        significantly better. Of several it is the fastest.
        """
        found = {}
        for entry in self.entries:
            others = [other for other in self.entries if _dominates(other, entry)]
            if others:
                found[entry] = min(others, key=_speed)
        return found

    @property
    def pareto_front(self) -> list[Entry]:
        """What no other entry dominates, the fastest first."""
        kept = [entry for entry in self.entries if entry not in self.dominated_by]
        return sorted(kept, key=_speed)

    def recommend(self, min_acc: float) -> Entry | None:
        """Take the fastest entry with at least that accuracy, in percent."""
        good = [entry for entry in self.entries if entry.accuracy.mean >= min_acc]
        return min(good, key=_speed, default=None)


def _speed(entry: Entry) -> tuple[float, float]:
    """Sort the fastest first, and of equally fast ones the most accurate."""
    return entry.mean_ms.mean, -entry.accuracy.mean


def _dominates(one: Entry, other: Entry) -> bool:
    as_good = one.accuracy.mean >= other.accuracy.mean and one.mean_ms.mean <= other.mean_ms.mean
    return as_good and (
        other.accuracy.significantly_below(one.accuracy)
        or one.mean_ms.significantly_below(other.mean_ms)
    )

"""Entries that may be ranked together: ranks, ties and the Pareto front."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cifar_lightning.comparison import accuracy, relation
from cifar_lightning.comparison.conditions import Conditions
from cifar_lightning.comparison.entry import Entry, Group
from cifar_lightning.runs.paired import Difference

Place = tuple[Entry, Group]  # a group of seeds and the entry that it is in


@dataclass(frozen=True)
class Choice:
    """The entry to take.

    Attributes:
        entry: Or the one that comes closest, where nothing is eligible.
        eligible: What reaches what is needed.
        best: The eligible ones that are slower than no eligible one, and so may be the fastest;
            where a largest latency is asked for, those surely less accurate than no eligible one.
    """

    entry: Entry
    eligible: Sequence[Entry]
    best: Sequence[Entry]


@dataclass(frozen=True)
class Leaderboard:
    """Entries on one machine, and the group of seeds that the others are compared with.

    Each number of threads is ranked by itself: `peers` are those of an entry.

    Attributes:
        name: Of the conditions, with the data's fingerprint where another leaderboard has the same.
        baseline: Perhaps one of an entry that was filtered out.
        between: Standard deviation between benchmarks; see `relation.between_std`.
        choices: What to take, for each number of threads.
    """

    name: str
    conditions: Conditions
    entries: tuple[Entry, ...]
    baseline: Place
    between: float = relation.ASSUMED_STD
    choices: Mapping[int, Choice] = field(default_factory=dict)
    _known: dict[tuple[Entry, Entry], Difference | None] = field(default_factory=dict, repr=False)

    @property
    def threads(self) -> list[int]:
        """The numbers of threads, that of the overall answer first."""
        return sorted({entry.threads for entry in self.entries})

    def peers(self, threads: int) -> list[Entry]:
        """List what is ranked together: the entries with that number of threads."""
        return [entry for entry in self.entries if entry.threads == threads]

    def level(self, entry: Entry) -> float:
        """One-sided, of a comparison with another entry."""
        return relation.corrected(len(self.peers(entry.threads)))

    def difference(self, first: Entry, second: Entry) -> Difference | None:
        """Tell how much slower one entry is than another; None if that can't be told."""
        pair = first, second
        if pair not in self._known:
            found = relation.difference(
                first.timings, second.timings, self.level(first), self.between
            )
            self._known[pair] = found
            self._known[second, first] = None if found is None else -found
        return self._known[pair]

    def slower(self, first: Entry, second: Entry) -> bool:
        """Tell whether an entry is slower than another, by the level of its ranking."""
        found = self.difference(first, second)
        return found is not None and found.slower

    @cached_property
    def pooled_std(self) -> float:
        """Standard deviation of accuracies between seeds, in points."""
        return accuracy.pooled_std(
            group.accuracy for entry in self.entries for group in entry.groups
        )

    def error(self, entry: Entry) -> float:
        """Standard error of its accuracy, in points."""
        return entry.accuracy.error(self.pooled_std)

    def surely(self, entry: Entry, min_acc: float) -> bool:
        """Tell whether an entry surely has that accuracy."""
        return entry.accuracy.mean - accuracy.SURE * self.error(entry) >= min_acc

    def above(self, first: Entry | Group, second: Entry | Group) -> bool:
        """Tell whether one is surely more accurate than another."""
        return accuracy.surely_above(first.accuracy, second.accuracy, self.pooled_std)

    def latency_rank(self, entry: Entry) -> tuple[int, bool]:
        """Rank an entry behind all that it is slower than; tell whether it ties with another."""
        return self._rank(entry, self.slower)

    def accuracy_rank(self, entry: Entry) -> tuple[int, bool]:
        """Rank an entry behind all that are surely more accurate; tell whether it ties."""
        return self._rank(entry, lambda one, other: self.above(other, one))

    def _rank(self, entry: Entry, worse: Callable[[Entry, Entry], bool]) -> tuple[int, bool]:
        others = [one for one in self.peers(entry.threads) if one is not entry]
        behind = [worse(entry, other) for other in others]
        ties = [
            not lost and not worse(other, entry) for lost, other in zip(behind, others, strict=True)
        ]
        return 1 + sum(behind), any(ties)

    @cached_property
    def dominated_by(self) -> dict[Entry, Entry]:
        """For each dominated entry, the one that dominates it; of several the fastest."""
        found = {}
        for entry in self.entries:
            others = [one for one in self.peers(entry.threads) if self._dominates(one, entry)]
            if others:
                found[entry] = min(others, key=speed)
        return found

    def _dominates(self, one: Entry, other: Entry) -> bool:
        """See that it is better in one respect, surely, and not worse in the other by the means."""
        if one is other or self.difference(one, other) is None:
            return False
        faster = self.slower(other, one) and one.accuracy.mean >= other.accuracy.mean
        return faster or (self.above(one, other) and one.relative <= other.relative)

    def pareto_front(self, threads: int) -> list[Entry]:
        """What no other entry dominates, the fastest first."""
        kept = [entry for entry in self.peers(threads) if entry not in self.dominated_by]
        return sorted(kept, key=speed)

    def unrelated(self, threads: int) -> list[Entry]:
        """Name the entries that can't be related to what is taken."""
        taken = self.choices[threads].entry
        lost = [
            one
            for one in self.peers(threads)
            if one is not taken and self.difference(taken, one) is None
        ]
        return [taken, *lost] if lost else []


def speed(entry: Entry) -> tuple[float, float]:
    """Sort the fastest first, and of equally fast ones the most accurate."""
    return entry.relative, -entry.accuracy.mean

"""Entries that may be ranked together: ranks, ties and the Pareto front."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress

import numpy as np

from cifar_lightning.comparison import accuracy, relation
from cifar_lightning.comparison.conditions import Conditions
from cifar_lightning.comparison.entry import Entry, Group
from cifar_lightning.comparison.pairs import Matrix, Pairs
from cifar_lightning.runs.paired import Difference

LISTED = 40  # entries of a ranking that are read line by line; a larger one is not
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
    choices: dict[int, Choice] = field(default_factory=dict)
    _known: dict[tuple[Entry, Entry], Difference | None] = field(default_factory=dict, repr=False)

    @property
    def threads(self) -> list[int]:
        """The numbers of threads, that of the overall answer first."""
        return sorted(self._peers)

    def peers(self, threads: int) -> list[Entry]:
        """List what is ranked together: the entries with that number of threads."""
        return self._peers.get(threads, [])

    @cached_property
    def _peers(self) -> dict[int, list[Entry]]:
        found: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.threads].append(entry)
        return found

    @cached_property
    def _pairs(self) -> dict[int, Pairs]:
        return {
            threads: Pairs.of(peers, relation.corrected(len(peers)), self.between, self.pooled_std)
            for threads, peers in self._peers.items()
        }

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

    def not_slower(self, entries: Sequence[Entry]) -> list[Entry]:
        """Take of entries that are ranked together those that are slower than none of them."""
        return self._worst_of(entries, lambda pairs: pairs.slower)

    def not_below(self, entries: Sequence[Entry]) -> list[Entry]:
        """Take of entries that are ranked together those than which none is surely better."""
        return self._worst_of(entries, lambda pairs: pairs.above.T)

    def _worst_of(self, entries: Sequence[Entry], worse: Callable[[Pairs], Matrix]) -> list[Entry]:
        if not entries:
            return []
        pairs = self._pairs[entries[0].threads]
        numbers = [pairs.number[entry] for entry in entries]
        kept = ~np.any(worse(pairs)[np.ix_(numbers, numbers)], axis=1)
        return [*compress(entries, kept)]

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
        return self._latency_ranks[entry]

    def accuracy_rank(self, entry: Entry) -> tuple[int, bool]:
        """Rank an entry behind all that are surely more accurate; tell whether it ties."""
        return self._accuracy_ranks[entry]

    @cached_property
    def _latency_ranks(self) -> dict[Entry, tuple[int, bool]]:
        return self._ranks(lambda pairs: pairs.slower)

    @cached_property
    def _accuracy_ranks(self) -> dict[Entry, tuple[int, bool]]:
        return self._ranks(lambda pairs: pairs.above.T)

    def _ranks(self, worse: Callable[[Pairs], Matrix]) -> dict[Entry, tuple[int, bool]]:
        found = {}
        for pairs in self._pairs.values():
            lost = worse(pairs)
            behind = lost.sum(axis=1)
            # An entry neither loses nor wins against itself.
            ties = (~lost & ~lost.T).sum(axis=1) > 1
            for entry, number in pairs.number.items():
                found[entry] = 1 + int(behind[number]), bool(ties[number])
        return found

    @cached_property
    def dominated_by(self) -> dict[Entry, Entry]:
        """For each dominated entry, the one that dominates it; of several the fastest."""
        found = {}
        for pairs in self._pairs.values():
            fastest_first = sorted(pairs.number, key=speed)
            order = [pairs.number[entry] for entry in fastest_first]
            better = pairs.dominates[order]
            for entry, number in pairs.number.items():
                if better[:, number].any():
                    found[entry] = fastest_first[int(better[:, number].argmax())]
        return {entry: found[entry] for entry in self.entries if entry in found}

    def pareto_front(self, threads: int) -> list[Entry]:
        """What no other entry dominates, the fastest first."""
        kept = [entry for entry in self.peers(threads) if entry not in self.dominated_by]
        return sorted(kept, key=speed)

    def listed(self, threads: int, most: int = LISTED) -> list[Entry]:
        """Take what is worth a line of its own: what is on the front or nearest to it.

        Nearness is how much accuracy an entry lacks, by the means, beside the most accurate one
        that is not slower. What is to be taken and the baseline are among them in any case.

        Args:
            threads: Of what is ranked together.
            most: So many; the order is that of the entries.
        """
        peers = self.peers(threads)
        if len(peers) <= most:
            return peers
        chosen = [self.choices[threads].entry, self.baseline[0]]
        nearest = sorted(peers, key=lambda entry: (entry not in chosen, self.lacking[entry]))
        kept = {*nearest[:most]}
        return [entry for entry in peers if entry in kept]

    @cached_property
    def lacking(self) -> dict[Entry, float]:
        """Accuracy that each entry lacks, by the means, beside what is not slower; in points."""
        found = {}
        for peers in self._peers.values():
            best = 0.0
            for entry in sorted(peers, key=speed):
                best = max(best, entry.accuracy.mean)
                found[entry] = best - entry.accuracy.mean
        return found

    def named_front(self, threads: int, most: int) -> list[Entry]:
        """Take what plots name: the front, or of a larger one some of what lacks no accuracy."""
        front = self.pareto_front(threads)
        if len(front) <= most:
            return front
        taken = self.choices[threads].entry
        stairs = [entry for entry in front if self.lacking[entry] == 0]
        step = max(1.0, (len(stairs) - 1) / (most - 1))
        kept = {*(stairs[round(step * number)] for number in range(min(most, len(stairs)))), taken}
        return [entry for entry in front if entry in kept]

    def unrelated(self, threads: int) -> list[Entry]:
        """Name what is taken and the entries that can't be related to all others."""
        taken = self.choices[threads].entry
        pairs = self._pairs[threads]
        lost = [one for one, number in pairs.number.items() if not pairs.related[number].all()]
        return [taken, *(one for one in lost if one is not taken)] if lost else []


def speed(entry: Entry) -> tuple[float, float]:
    """Sort the fastest first, and of equally fast ones the most accurate."""
    return entry.relative, -entry.accuracy.mean

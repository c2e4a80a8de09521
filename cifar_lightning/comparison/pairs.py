"""All pairs of entries that are ranked together: slower, surely more accurate, related.

What `relation.difference` and `accuracy.surely_above` say of one pair, computed for all at once:
a thousand entries make half a million pairs.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cifar_lightning.comparison import accuracy, relation
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.runs.interleaved import Interleaved
from cifar_lightning.runs.paired import RESOLUTION, one_sided, over_processes, two_sided

Matrix: TypeAlias = NDArray[np.bool_]  # (entries, entries)
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Of each entry (row) and each other one (column).

    Attributes:
        number: Of an entry, in rows and columns.
        related: Whether their latencies can be compared.
        slower: Whether the first is slower than the second.
        above: Whether the first is surely more accurate than the second.
        dominates: Whether the first is better in one respect, surely, and not worse in the other by
            the means.
    """

    number: dict[Entry, int]
    related: Matrix
    slower: Matrix
    above: Matrix
    dominates: Matrix

    @classmethod
    def of(cls, entries: Sequence[Entry], level: float, between: float, pooled: float) -> Self:
        """Compare all entries; see `relation.difference` and `accuracy.surely_above`."""
        related, slower = _latencies(entries, one_sided(level), between)
        above = _accuracies(entries, pooled)
        acc = np.array([one.accuracy.mean for one in entries])
        latency = np.array([one.relative for one in entries])
        faster = slower.T & (acc[:, None] >= acc)
        dominates = related & (faster | (above & (latency[:, None] <= latency)))
        np.fill_diagonal(dominates, False)
        number = {entry: index for index, entry in enumerate(entries)}
        return cls(number, related, slower, above, dominates)


def _latencies(entries: Sequence[Entry], z: float, between: float) -> tuple[Matrix, Matrix]:
    known = [entry.timings.relative for entry in entries]
    centre = np.array([one.centre for one in known])
    width = np.array([(one.high - one.low) / (2 * two_sided()) for one in known])
    gap = centre[:, None] - centre
    reach = z * np.sqrt(width[:, None] ** 2 + width**2 + 2 * between**2)
    related = _related(entries)
    slower = related & (gap - reach > 0) & (gap >= RESOLUTION)
    for benchmark, members, numbers in _together(entries):
        for n, (centres, low) in enumerate(_paired(benchmark, numbers, z)):
            related[members[n], members] = True
            slower[members[n], members] = (low > 0) & (centres >= RESOLUTION)
    np.fill_diagonal(slower, False)
    return related, slower


def _related(entries: Sequence[Entry]) -> Matrix:
    """Compare the second references of the benchmarks that timed each last; see `relation`."""
    latest = [entry.timings.timed[:1] for entry in entries]
    second = np.array([o[0].benchmark.second_reference if o else np.nan for o in latest])
    apart = np.abs(second[:, None] - second)
    related: Matrix = np.isnan(apart) | (apart <= relation.RELATED_WITHIN)
    return related


def _together(
    entries: Sequence[Entry],
) -> Iterator[tuple[Interleaved, NDArray[np.int64], list[int]]]:
    """Yield benchmarks, the deciding one last, each with whom it timed and their numbers there."""
    benchmarks: dict[str, Interleaved] = {}
    members: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        for one in entry.timings.timed:
            benchmarks[one.benchmark.id] = one.benchmark
            members[one.benchmark.id].append((index, one.number))
    for benchmark in sorted(benchmarks.values(), key=relation.decides):
        there = members[benchmark.id]
        if len(there) > 1:
            yield benchmark, np.array([index for index, _ in there]), [n for _, n in there]


def _paired(
    benchmark: Interleaved, numbers: list[int], z: float
) -> Iterator[tuple[Floats, Floats]]:
    """Yield of each candidate the centres and lower ends of its differences to all of them."""
    logs = [one[:, numbers] for one in benchmark.logs]
    for n in range(len(numbers)):
        centre, low, _, _ = over_processes([one[:, n, None] - one for one in logs], z)
        yield centre, low


def _accuracies(entries: Sequence[Entry], pooled: float) -> Matrix:
    ones = [entry.accuracy for entry in entries]
    mean = np.array([one.mean for one in ones])
    seeds = pooled**2 / np.array([len(one.values) for one in ones])
    finite = np.array([one.of_images for one in ones])
    gap = mean[:, None] - mean
    images = finite[:, None] + finite
    for members, right in _same_images(ones):
        count = right.shape[1]
        share = right.mean(axis=1, dtype=np.float64)
        exactly_one = share[:, None] + share - 2 * (right @ right.T).astype(np.float64) / count
        here = np.ix_(members, members)
        images[here] = np.maximum((100**2 * exactly_one - gap[here] ** 2) / count, 0)
    above: Matrix = gap > accuracy.SURE * np.sqrt(seeds[:, None] + seeds + images)
    np.fill_diagonal(above, False)
    return above


def _same_images(
    ones: Sequence[accuracy.Accuracy],
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Yield entries whose answers to each image are known, and how many of their seeds are right.

    Over pairs of seeds the mean of what both get right is the product of the means.
    """
    by_count: dict[int, list[int]] = defaultdict(list)
    for index, one in enumerate(ones):
        if one.right:
            by_count[len(one.right[0])].append(index)
    for members in by_count.values():
        rights = [np.mean(ones[index].right, axis=0, dtype=np.float32) for index in members]
        yield members, np.array(rights, np.float32)

"""Which of the networks tried so far are trained longer: asynchronous successive halving.

Of two objectives, latency and accuracy, as Schmucker et al. 2021 (arXiv:2106.12639) describe it: as
soon as a rung has a trial among its best that the next rung lacks, that one is trained for the next
rung. Sorted are trials by non-domination, then by how far neighbours on their front are (Deb et al.
2002, NSGA-II).
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cifar_lightning.runs.paired import one_sided

SURE = one_sided(0.05)


@dataclass(frozen=True)
class Point:
    """What is known of a trial at one rung.

    Attributes:
        latency: Relative to the reference's.
        accuracy: Validation accuracy in percent.
        images: How many it was found on.
    """

    latency: float
    accuracy: float
    images: int

    def dominates(self, other: "Point") -> bool:
        """Tell whether it is as good in both and better in one."""
        as_good = self.latency <= other.latency and self.accuracy >= other.accuracy
        return as_good and (self.latency < other.latency or self.accuracy > other.accuracy)

    def surely_dominates(self, other: "Point") -> bool:
        """Tell whether it is as fast and more accurate than chance would have it.

        By the binomial standard errors of both; the images are the same, so they are less far off.
        """
        if self.latency > other.latency:
            return False
        errors = [one.accuracy * (100 - one.accuracy) / max(1, one.images) for one in (self, other)]
        return self.accuracy - other.accuracy > SURE * math.sqrt(sum(errors))


Rung = Mapping[int, Point]  # by the trials' numbers


def promotion(
    rungs: Sequence[Rung], keep: Sequence[float], taken: Collection[tuple[int, int]], last: bool
) -> tuple[int, int] | None:
    """Choose the trial that is to be trained for its next rung.

    Args:
        rungs: The results of each.
        keep: Which part of each rung but the last goes on.
        taken: Rungs and trials that failed there, or that other processes are at work on.
        last: No more trials come: of the few of a rung at least one goes on.

    Returns:
        The rung to train for, by its place, and the trial; None if there is none.
    """
    for place in range(len(rungs) - 1, 0, -1):
        below = rungs[place - 1]
        count = math.floor(len(below) * keep[place - 1] + 1e-9)
        if last and below:
            count = max(1, count)
        for number in best_first(below)[:count]:
            if number not in rungs[place] and (place, number) not in taken:
                return place, number
    return None


def best_first(rung: Rung) -> list[int]:
    """Sort trials; those that one is surely better than are left out."""
    kept = {
        number: point
        for number, point in rung.items()
        if not any(other.surely_dominates(point) for other in rung.values())
    }
    return [number for front in _fronts(kept) for number in _by_crowding(front, kept)]


def front(rung: Rung) -> list[int]:
    """List the trials that none is better than in both, the fastest first."""
    first = next(_fronts(rung), [])
    return sorted(first, key=lambda number: rung[number].latency)


def _fronts(rung: Rung) -> Iterator[list[int]]:
    """Yield those that none dominates, then those that only these do, and so on."""
    left = dict(rung)
    while left:
        first = [
            number
            for number, point in left.items()
            if not any(other.dominates(point) for other in left.values())
        ]
        yield first
        left = {number: point for number, point in left.items() if number not in first}


def _by_crowding(numbers: Sequence[int], rung: Rung) -> list[int]:
    """Sort a front by the distance of the neighbours, the loneliest first.

    The most accurate one comes first. The fastest one does not come with it, as NSGA-II would have
    it: the fastest networks are those that learn nothing.
    """
    ordered = sorted(numbers, key=lambda number: (rung[number].latency, -rung[number].accuracy))
    logs = [math.log(rung[number].latency) for number in ordered]
    accuracies = [rung[number].accuracy for number in ordered]
    width, height = (max(of) - min(of) or 1.0 for of in (logs, accuracies))
    distance = {}
    for place, number in enumerate(ordered):
        if place == len(ordered) - 1:
            distance[number] = math.inf
            continue
        before, after = max(place - 1, 0), place + 1
        distance[number] = (logs[after] - logs[before]) / width + (
            accuracies[after] - accuracies[before]
        ) / height
    return sorted(ordered, key=lambda number: -distance[number])

"""Which of the networks tried so far are trained longer: asynchronous successive halving.

Of two objectives, latency and accuracy, after Schmucker et al. 2021 (arXiv:2106.12639): as soon as
fewer of a rung's trials are in the next rung than may be, the one that deserves it most is trained
for the next rung. Which one that is, `aims` tells; where a search has no targets, those of the
rung's front whose neighbours are farthest (Deb et al. 2002, NSGA-II). ``python -m perf.search``
replays what that is worth.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from cifar_lightning.comparison.accuracy import SURE


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


Rung = Mapping[int, Point]  # by the trials' numbers


def promotion(
    rungs: Sequence[Rung],
    keep: Sequence[float],
    order: Callable[[Rung], Sequence[int]],
    taken: Collection[tuple[int, int]],
    last: bool,
) -> tuple[int, int] | None:
    """Choose the trial that is to be trained for its next rung.

    Args:
        rungs: The results of each.
        keep: Which part of each rung but the last goes on, at most.
        order: Sorts trials of a rung, those first that deserve it most; others it leaves out.
        taken: Rungs and trials that are not to be trained for them.
        last: No more trials come: of the few of a rung at least one goes on.

    Returns:
        The rung to train for, by its place, and the trial; None if there is none.
    """
    for place in range(len(rungs) - 1, 0, -1):
        below, above = rungs[place - 1], rungs[place]
        most = max(math.floor(len(below) * keep[place - 1] + 1e-9), int(last))
        if len(above) >= most:
            continue
        for number in order(below):
            if number in below and number not in above and (place, number) not in taken:
                return place, number
    return None


def dominated(rung: Rung) -> set[int]:
    """List the trials that another one is as fast as and surely more accurate than."""
    found: set[int] = set()
    best: Point | None = None  # the most accurate of those that are as fast
    for number in _fastest_first(rung):
        this = rung[number]
        if best is None or this.accuracy > best.accuracy:
            best = this
        elif _surely_more_accurate(best, this):
            found.add(number)
    return found


def _fastest_first(rung: Rung) -> list[int]:
    return sorted(rung, key=lambda number: (rung[number].latency, -rung[number].accuracy))


def _surely_more_accurate(one: Point, other: Point) -> bool:
    """Tell whether two fractions of images differ by more than chance."""
    variances = [it.accuracy * (100 - it.accuracy) / it.images for it in (one, other)]
    return one.accuracy - other.accuracy > SURE * math.sqrt(sum(variances))


def front(rung: Rung) -> list[int]:
    """List the trials that none is better than in both, the fastest first."""
    found: list[int] = []
    for number in _fastest_first(rung):
        this, before = rung[number], rung[found[-1]] if found else None
        # Equal ones dominate neither.
        if before is None or this.accuracy > before.accuracy or this == before:
            found.append(number)
    return found


def best_first(rung: Rung) -> list[int]:
    """Sort a rung by its fronts, and each by the distance of the neighbours, the loneliest first.

    The most accurate one comes first. The fastest one does not come with it, as NSGA-II would have
    it: the fastest networks are those that learn nothing. A rung's second front is of those that
    are not on the first one, and so on.
    """
    rest, found = dict(rung), list[int]()
    while rest:
        ahead = _loneliest_first(rest)
        found += ahead
        rest = {number: rest[number] for number in rest.keys() - ahead}
    return found


def _loneliest_first(rung: Rung) -> list[int]:
    ordered = front(rung)
    logs = [math.log(rung[number].latency) for number in ordered]
    accuracies = [rung[number].accuracy for number in ordered]
    distance = {}
    for place, number in enumerate(ordered):
        if place == len(ordered) - 1:
            distance[number] = math.inf
            continue
        before, after = max(place - 1, 0), place + 1
        distance[number] = (logs[after] - logs[before]) / ((logs[-1] - logs[0]) or 1.0) + (
            accuracies[after] - accuracies[before]
        ) / ((accuracies[-1] - accuracies[0]) or 1.0)
    return sorted(ordered, key=lambda number: -distance[number])

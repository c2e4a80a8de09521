"""Which of the networks tried so far are trained longer: asynchronous successive halving.

Of two objectives, latency and accuracy, after Schmucker et al. 2021 (arXiv:2106.12639): as soon as
a rung has a trial among its best that the next rung lacks, that one is trained for the next rung.
The best are on the rung's front; of more than go on, those whose neighbours are farthest (Deb et
al. 2002, NSGA-II). ``python -m perf.search`` replays what that is worth.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """What is known of a trial at one rung.

    Attributes:
        latency: Relative to the reference's.
        accuracy: Validation accuracy in percent.
    """

    latency: float
    accuracy: float


Rung = Mapping[int, Point]  # by the trials' numbers


def promotion(
    rungs: Sequence[Rung], keep: Sequence[float], taken: Collection[tuple[int, int]], last: bool
) -> tuple[int, int] | None:
    """Choose the trial that is to be trained for its next rung.

    Args:
        rungs: The results of each.
        keep: Which part of each rung but the last goes on, at most.
        taken: Rungs and trials that failed there, or that other processes are at work on.
        last: No more trials come: of the few of a rung at least one goes on.

    Returns:
        The rung to train for, by its place, and the trial; None if there is none.
    """
    for place in range(len(rungs) - 1, 0, -1):
        below = rungs[place - 1]
        count = max(math.floor(len(below) * keep[place - 1] + 1e-9), int(last))
        for number in best_first(below)[:count]:
            if number not in rungs[place] and (place, number) not in taken:
                return place, number
    return None


def front(rung: Rung) -> list[int]:
    """List the trials that none is better than in both, the fastest first."""
    found: list[int] = []
    for number in sorted(rung, key=lambda number: (rung[number].latency, -rung[number].accuracy)):
        this, before = rung[number], rung[found[-1]] if found else None
        # Equal ones dominate neither.
        if before is None or this.accuracy > before.accuracy or this == before:
            found.append(number)
    return found


def best_first(rung: Rung) -> list[int]:
    """Sort a front by the distance of the neighbours, the loneliest first.

    The most accurate one comes first. The fastest one does not come with it, as NSGA-II would have
    it: the fastest networks are those that learn nothing.
    """
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

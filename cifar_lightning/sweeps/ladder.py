"""Which of the networks tried so far are trained longer: asynchronous successive halving.

Of two objectives, latency and accuracy, as Schmucker et al. 2021 (arXiv:2106.12639) describe it: as
soon as a rung has a trial among its best that the next rung lacks, that one is trained for the next
rung. Sorted are trials by non-domination, then by how far neighbours on their front are (Deb et al.
2002, NSGA-II).
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
    worse = _surely_dominated([*rung.values()])
    kept = {
        number: point for (number, point), left in zip(rung.items(), worse, strict=True) if not left
    }
    return [number for front in _fronts(kept) for number in _by_crowding(front, kept)]


def front(rung: Rung) -> list[int]:
    """List the trials that none is better than in both, the fastest first."""
    return next(iter(_fronts(rung)), [])


def _surely_dominated(points: Sequence[Point]) -> list[bool]:
    """Tell of each whether another one is as fast and more accurate than chance would have it.

    By the binomial standard errors of both; the images are the same, so they are less far off.
    """
    latency = np.array([one.latency for one in points])
    accuracy = np.array([one.accuracy for one in points])
    variance = accuracy * (100 - accuracy) / np.maximum(1, [one.images for one in points])
    # [n, n]: whether the one of the column is so of the one of the row
    as_fast = latency <= latency[:, None]
    chance = SURE * np.sqrt(variance + variance[:, None])
    found: list[bool] = (as_fast & (accuracy - accuracy[:, None] > chance)).any(axis=1).tolist()
    return found


def _fronts(rung: Rung) -> list[list[int]]:
    """List those that none dominates, then those that only these do, and so on.

    Each front has the fastest first. From the fastest to the slowest, a trial belongs to the first
    front whose last one, which is the most accurate, is less accurate.
    """
    fronts: list[list[int]] = []
    highest: list[float] = []  # accuracy of each front, negative, so that they rise
    before, place = None, 0
    for number in sorted(rung, key=lambda number: (rung[number].latency, -rung[number].accuracy)):
        this = rung[number].latency, rung[number].accuracy
        if this != before:  # equal ones dominate neither
            before, place = this, bisect_right(highest, -this[1])
        if place == len(fronts):
            fronts.append([])
            highest.append(0.0)
        fronts[place].append(number)
        highest[place] = -this[1]
    return fronts


def _by_crowding(ordered: Sequence[int], rung: Rung) -> list[int]:
    """Sort a front, the fastest first, by the distance of the neighbours, the loneliest first.

    The most accurate one comes first. The fastest one does not come with it, as NSGA-II would have
    it: the fastest networks are those that learn nothing.
    """
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

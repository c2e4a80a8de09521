"""How accurate a network becomes when it is trained longer, guessed from shorter runs.

Errors fall with a power of the epochs, and the power itself falls, to `FALL` times as much each
time the epochs are tripled: errors(E) = errors(e) exp(-k (e^-c - E^-c)) with c = log(1/0.6)/log(3).
So a run of any length tells k, how steep a network's curve is, together with another one.

The numbers are of docs/results/search/networks.csv, networks trained anew for each length: the
power was 0.25 from 4 to 12 epochs (the median of 81) and, of the 20 that have both, 0.15 from 12 to
36 where it had been 0.22. ``tests/test_curve.py`` guesses these again.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from cifar_lightning.sweeps.ladder import Rung

FALL = 0.6
STEEPNESS = 1.3  # k, where no network has two rungs yet: the median from 4 to 12 epochs
# One standard deviation of k, of networks whose own is not known, and of those that have two rungs
# (from 12 to 36 epochs, beside what it was from 4 to 12). A network may be as much better as that:
# with two of them, slots would go to many that have one chance in forty.
SPREAD, SPREAD_OF_OWN = 0.6, 0.4
PERFECT = 1e-3  # percent of errors, of which no power can be taken any more


def steepness(rungs: Sequence[int], points: Sequence[Rung], number: int) -> float | None:
    """Tell k of a network by its last two rungs; None where it has one."""
    known = [place for place, rung in enumerate(points) if number in rung]
    if len(known) < 2:
        return None
    before, last = known[-2:]
    fallen = math.log(_errors(points[before], number) / _errors(points[last], number))
    return max(0.0, fallen / (_ahead(rungs[before]) - _ahead(rungs[last])))


def guess(
    rungs: Sequence[int], points: Sequence[Rung], until: Mapping[int, int]
) -> dict[int, tuple[float, float]]:
    """Guess the errors of networks after longer runs.

    Args:
        rungs: Epochs of each.
        points: What is known of each.
        until: For how many epochs each network is to be trained.

    Returns:
        By network the errors in percent, and how few they may be.
    """
    own = {number: steepness(rungs, points, number) for rung in points for number in rung}
    known = [one for one in own.values() if one is not None]
    usual = statistics.median(known) if known else STEEPNESS
    guesses = {}
    for number, epochs in until.items():
        place = max(place for place, rung in enumerate(points) if number in rung)
        k, spread = own[number], SPREAD_OF_OWN
        if k is None:
            k, spread = usual, SPREAD
        errors, way = _errors(points[place], number), _ahead(rungs[place]) - _ahead(epochs)
        fewest = errors * math.exp(-(k + math.copysign(spread, way)) * way)
        guesses[number] = (min(100.0, errors * math.exp(-k * way)), min(100.0, fewest))
    return guesses


def _errors(rung: Rung, number: int) -> float:
    return max(PERFECT, 100 - rung[number].accuracy)


def _ahead(epochs: int) -> float:
    """Tell how far a curve still falls after so many epochs, as a part of k."""
    return float(epochs ** (math.log(FALL) / math.log(3)))

"""How accurate a network becomes when it is trained longer, against networks that were."""

import csv
import math
import statistics

import pytest

from cifar_lightning.sweeps import curve
from cifar_lightning.sweeps.ladder import Point
from perf.search import TABLE

RUNGS = [4, 12, 36]


@pytest.fixture(scope="module")
def rungs():
    """The accuracies of networks.csv, by rung and row."""
    with TABLE.open() as stream:
        rows = [*csv.DictReader(stream)]
    return [
        {n: float(row[f"val_{epochs}"]) for n, row in enumerate(rows) if row[f"val_{epochs}"]}
        for epochs in RUNGS
    ]


def points(*rungs):
    return [{n: Point(1.0, one, 5000) for n, one in rung.items()} for rung in rungs]


def falls(rungs, place):
    """Tell the power of the errors' fall to a rung, of each network in it and in the one below."""
    below, above = rungs[place - 1], rungs[place]
    return {
        n: math.log((100 - below[n]) / (100 - above[n])) / math.log(3)
        for n in above.keys() & below.keys()
    }


def test_the_numbers_are_those_of_the_networks(rungs):
    first, second = falls(rungs, 1), falls(rungs, 2)
    both = second.keys() & first.keys()
    assert (len(first), len(both)) == (81, 20)
    fall = statistics.fmean(second[n] / first[n] for n in both)
    assert fall == pytest.approx(curve.FALL, abs=0.1)
    c = -math.log(curve.FALL) / math.log(3)
    a_tripling = (4**-c - 12**-c) / math.log(3)  # of k
    steep = [power / a_tripling for power in first.values()]
    assert statistics.median(steep) == pytest.approx(curve.STEEPNESS, abs=0.05)
    assert statistics.stdev(steep) == pytest.approx(curve.SPREAD, abs=0.05)
    off = [second[n] / (curve.FALL * a_tripling) - first[n] / a_tripling for n in both]
    assert statistics.stdev(off) == pytest.approx(curve.SPREAD_OF_OWN, abs=0.05)


def test_accuracy_after_36_epochs_is_guessed_from_4_and_12(rungs):
    """0.3 points too low on average, with a standard deviation of 1.0."""
    first, second, third = rungs
    known = [n for n in third if n in first]
    errors = curve.guess(RUNGS, points(first, second), dict.fromkeys(known, 36))
    off = [100 - errors[n][0] - third[n] for n in known]
    assert abs(statistics.fmean(off)) < 0.5
    assert statistics.stdev(off) < 1.1
    constant = [  # as with the power that it had before
        100 - (100 - second[n]) * 3 ** -falls(rungs, 1)[n] - third[n] for n in known
    ]
    assert statistics.fmean(constant) > 1.0
    above = [third[n] > 100 - errors[n][1] for n in known]
    assert 0.05 < statistics.fmean(above) < 0.3  # a sixth, one standard deviation up


def test_without_a_second_rung_the_others_tell_how_steep_it_is(rungs):
    """After 4 epochs, 0.1 points off on average, with a standard deviation of 3.5 points."""
    first, second, _ = rungs
    errors = curve.guess(RUNGS, points(first), dict.fromkeys(first, 12))
    off = [100 - errors[n][0] - second[n] for n in first]
    assert abs(statistics.fmean(off)) < 0.5
    assert statistics.stdev(off) < 3.6
    flat = curve.guess(RUNGS, points({0: 60, 1: 60, 2: 60}, {0: 60, 1: 60}), {2: 100})
    assert flat[2][0] == 40
    assert flat[2][1] < 40


def test_a_guess_is_the_integral_of_a_falling_power():
    errors = curve.guess(RUNGS, points({0: 60.0}, {0: 75.0}), {0: 108})[0][0]
    power = math.log(40 / 25) / math.log(3)
    assert errors == pytest.approx(25 * 3 ** -(0.6 * power + 0.36 * power))


def test_a_shorter_run_has_more_errors():
    ((guessed, fewest),) = curve.guess(RUNGS, points({0: 60.0}), {0: 2}).values()
    assert guessed > fewest > 40

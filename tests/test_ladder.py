"""Which networks of a search are trained longer."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar_lightning.sweeps.ladder import Point, best_first, dominated, front, promotion

points = st.builds(Point, st.floats(0.05, 5.0), st.floats(10, 95), st.just(5000))
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
rungs = st.dictionaries(st.integers(0, 50), points, max_size=25)
EPOCHS = [4, 12, 36]


def dominates(one, other):
    """As good in both and better in one."""
    as_good = one.latency <= other.latency and one.accuracy >= other.accuracy
    return as_good and (one.latency < other.latency or one.accuracy > other.accuracy)


@BUSY
@given(rungs)
def test_nothing_on_the_front_is_dominated_and_all_else_is(rung):
    found = front(rung)
    assert [rung[n].latency for n in found] == sorted(rung[n].latency for n in found)
    for number, point in rung.items():
        dominated = any(dominates(other, point) for other in rung.values())
        assert dominated == (number not in found)


def test_equal_ones_are_on_the_front_together():
    one = Point(0.5, 70, 5000)
    assert front({0: one, 1: one, 2: Point(0.5, 69, 5000)}) == [0, 1]


@BUSY
@given(rungs)
def test_dominated_is_what_another_one_is_surely_better_than(rung):
    worse = dominated(rung)
    assert worse.isdisjoint(front(rung))
    for number in worse:
        assert any(
            dominates(other, rung[number]) and other.accuracy > rung[number].accuracy + 0.5
            for other in rung.values()
        )


def test_chance_does_not_dominate():
    def two(accuracy, images):
        return {0: Point(0.29, 80, images), 1: Point(0.29, accuracy, images)}

    assert dominated(two(79.0, 5000)) == set()
    assert dominated(two(78.0, 5000)) == {1}
    assert dominated(two(78.0, 500)) == set()
    assert dominated({0: Point(0.3, 80, 5000), 1: Point(0.29, 50, 5000)}) == set()


@BUSY
@given(rungs)
def test_the_most_accurate_comes_first_and_a_front_before_the_next_one(rung):
    order = best_first(rung)
    assert sorted(order) == sorted(rung)
    assert sorted(order[: len(front(rung))]) == sorted(front(rung))
    if rung:
        best = max(rung.values(), key=lambda one: (one.accuracy, -one.latency))
        assert rung[order[0]] == best


def rung(*accuracies):
    return {n: Point(0.1 * (n + 1), accuracy, 5000) for n, accuracy in enumerate(accuracies)}


def promoted(rungs, taken=(), last=False, order=best_first):
    return promotion(rungs, [1 / 3] * (len(rungs) - 1), order, taken, last)


def test_a_third_goes_on_as_soon_as_there_is_one():
    assert promoted([rung(50, 60), {}]) is None
    assert promoted([rung(50, 60, 70), {}]) == (1, 2)
    low = rung(50, 60, 70)
    assert promoted([low, {2: low[2]}]) is None
    assert promoted([low, {}], taken=[(1, 2)]) == (1, 1)


@pytest.mark.parametrize("order", [best_first, lambda rung: sorted(rung, reverse=True)])
def test_at_most_a_third_goes_on_though_each_is_better_than_all_before(order):
    """Those that went on before count, though they are not among the best any more."""
    rungs = [{}, {}]
    for number in range(60):
        rungs[0][number] = Point(0.1 + number, 20 + number, 5000)
        while found := promoted(rungs, order=order):
            rungs[1][found[1]] = rungs[0][found[1]]
        assert len(rungs[1]) == len(rungs[0]) // 3


def test_what_the_order_leaves_out_stays_though_a_third_may_go_on():
    low = rung(50, 70, *range(60, 69))
    assert promoted([low, {1: low[1]}], order=front) == (1, 0)
    assert promoted([low, {n: low[n] for n in (0, 1)}], order=front) is None


def test_of_a_few_one_goes_on_in_the_end():
    assert promoted([rung(50, 60), {}], last=True) == (1, 1)
    low = rung(50, 60)
    assert promoted([low, {0: low[0]}], last=True) is None
    assert promoted([{}, {}], last=True) is None


def test_the_highest_rung_comes_first():
    low, middle = rung(*range(40, 49)), rung(*range(60, 63))
    assert promoted([low, middle, {}])[0] == 2


def test_the_fastest_network_that_learns_nothing_does_not_come_first():
    found = best_first({0: Point(0.01, 12, 5000), 1: Point(0.2, 60, 5000), 2: Point(0.4, 70, 5000)})
    assert found[0] == 2
    assert found[-1] == 0


def test_it_finds_a_front_with_less_training_than_training_all():
    """Accuracy grows with latency and epochs; short training tells it with noise."""
    generator = random.Random(0)
    latency = {n: generator.uniform(0.1, 2.0) for n in range(60)}
    quality = {n: generator.gauss(0, 4) for n in latency}

    def train(number, place):
        learnt = 60 + 12 * latency[number] ** 0.5 + quality[number] + 6 * place
        return Point(latency[number], learnt + generator.gauss(0, 0.5), 5000)

    results = [{n: train(n, 0) for n in latency}, {}, {}]
    while found := promoted(results, last=True, order=front):
        place, number = found
        results[place][number] = train(number, place)
    assert len(results[1]) <= 20
    assert 1 <= len(results[2]) <= 6
    spent = sum(len(one) * cost for one, cost in zip(results, EPOCHS, strict=True))
    assert spent < 0.35 * len(latency) * EPOCHS[-1]
    truth = {n: Point(latency[n], 60 + 12 * latency[n] ** 0.5 + quality[n], 1) for n in latency}
    worse = [  # by more than the noise of a rung
        n
        for n in results[-1]
        if any(
            one.latency <= latency[n] and one.accuracy > truth[n].accuracy + 1.5
            for one in truth.values()
        )
    ]
    assert len(worse) <= 1

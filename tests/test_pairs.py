"""What is computed for all pairs at once is what is said of each."""

import numpy as np
import pytest
from simulated import benchmark, comparison, entry, leaderboard, of_run, stop

from cifar_lightning.comparison import accuracy, relation
from cifar_lightning.runs.paired import autocorrelation_time, difference, intervals


def plans(count, **changed):
    chance = np.random.default_rng(0)
    return [
        entry(f"n{number}", float(acc), float(truth), **changed)
        for number, (acc, truth) in enumerate(
            zip(chance.uniform(70, 90, count), chance.uniform(0.5, 3, count), strict=True)
        )
    ]


def assert_equal_to_each(found):
    for threads in found.threads:
        pairs, peers = found._pairs[threads], found.peers(threads)
        for first in peers:
            for second in peers:
                place = pairs.number[first], pairs.number[second]
                said = relation.difference(
                    first.timings, second.timings, found.level(first), found.between
                )
                assert pairs.related[place] == (said is not None)
                if first is second:
                    assert not pairs.slower[place]
                    assert not pairs.above[place]
                    continue
                assert pairs.slower[place] == (said is not None and said.slower)
                above = accuracy.surely_above(first.accuracy, second.accuracy, found.pooled_std)
                assert pairs.above[place] == above


@pytest.mark.parametrize("processes", [1, 3])
def test_of_one_benchmark(processes):
    found = leaderboard(*plans(12), processes=processes, noise=0.05, between=0.02)
    assert_equal_to_each(found)


def test_of_several_benchmarks_the_latest_counts():
    ones = plans(9)
    timed = [(of_run(one.run), one.truth) for one in ones]
    records = [
        benchmark(timed[:5], number=0, noise=0.05),
        benchmark(timed[3:7], number=1, noise=0.05),
        benchmark(timed[6:] + timed[:1], number=2, noise=0.05, second=2.5),
    ]
    found = comparison(*ones, records=records).leaderboards[0]
    assert_equal_to_each(found)
    related = found._pairs[1].related
    assert related.any()
    assert not related.all()


@pytest.mark.parametrize("stopped", [0, 1])
def test_whatever_a_measurement_is_of_the_benchmarks_decide(stopped):
    """Those of networks without runs write none; a stopped one says less than one that ended."""
    ones = plans(4)
    timed = [(of_run(one.run), one.truth) for one in ones]
    records = [
        benchmark(timed, number=0, noise=0.05),
        benchmark([(one, 4 / truth) for one, truth in timed], number=1, noise=0.05),
    ]
    records[stopped] = stop(records[stopped])
    for last in (records, records[::-1]):  # in which each is measured
        found = comparison(*ones, records=last)
        assert_equal_to_each(found.leaderboards[0])
        slowest = max(ones, key=lambda one: one.truth).run.id
        (row,) = [one for one in found.leaderboards[0].entries if one.label == slowest]
        rank, _ = found.leaderboards[0].latency_rank(row)
        assert rank == (4 if stopped else 1)


def test_with_known_answers_to_each_image():
    chance = np.random.default_rng(1)
    ones = plans(6) + [entry("pair", 80, 1.0, seed=seed, epochs=9) for seed in (0, 1)]
    right = {(one.run.name, "fp32"): chance.random(1000) < 0.8 for one in ones[1:]}
    assert_equal_to_each(leaderboard(*ones, right=right))


def test_threads_are_ranked_apart():
    assert_equal_to_each(leaderboard(*plans(3), *plans(3, threads=2)))


def test_many_series_are_each_as_alone():
    chance = np.random.default_rng(2)
    walks = np.cumsum(chance.normal(size=(60, 20)), axis=0) * chance.uniform(0, 0.1, 20)
    walks[:, 0] = 0  # never moves
    centre, low, high, tau = intervals(walks, 2.5)
    for number, walk in enumerate(walks.T):
        alone = difference(np.exp(walk), np.ones(60), 2.5)
        together = centre[number], low[number], high[number], tau[number]
        assert together == pytest.approx((alone.centre, alone.low, alone.high, alone.tau))
    assert (autocorrelation_time(walks) >= 1).all()

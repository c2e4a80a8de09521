import math
import random
from dataclasses import replace

import numpy as np
import pytest
from simulated import a_run, benchmark, candidate, measured, of_run, stop

from cifar_lightning.comparison import relation
from cifar_lightning.comparison.entry import Entry, Group
from cifar_lightning.comparison.relation import (
    ASSUMED_STD,
    Timings,
    between_std,
    corrected,
    difference,
    timed,
)
from cifar_lightning.runs.paired import RESOLUTION, Difference, one_sided

A, B, C = (candidate(name) for name in "abc")
UNKNOWN = Difference(0.0, -math.inf, math.inf, 0, 1.0)


def timings(one, *records):
    return Timings(timed(records)[one.key], UNKNOWN)


def test_within_a_benchmark_rounds_are_paired():
    record = benchmark([(A, 1.2), (B, 1.0)], drift=0.2)
    found = difference(timings(A, record), timings(B, record), 0.05, ASSUMED_STD)
    assert found == record.difference(0, 1, one_sided(0.05))
    assert found.low < math.log(1.2) < found.high
    assert found.high - found.low < 0.02  # the machine drifted by 20 % a round
    assert found.slower
    other = difference(timings(B, record), timings(A, record), 0.05, ASSUMED_STD)
    assert (other.centre, other.low, other.high) == (-found.centre, -found.high, -found.low)


def test_of_several_benchmarks_with_both_the_latest_decides():
    early = benchmark([(A, 1.0), (B, 2.0)], number=1)
    late = benchmark([(B, 1.0), (A, 2.0)], number=2)
    alone = benchmark([(A, 5.0)], number=3)
    records = [early, late, alone]
    random.Random(0).shuffle(records)
    found = difference(timings(A, *records), timings(B, *records), 0.05, ASSUMED_STD)
    assert found.centre == pytest.approx(math.log(2), abs=0.01)
    # Its relative latency is that of the latest of all.
    assert timings(A, *records).relative.centre == pytest.approx(math.log(5), abs=0.02)


def test_it_does_not_matter_who_is_asked_first():
    """A's milliseconds are of a benchmark without C, C's of the earlier of those with both."""
    both = [benchmark([(A, 1.0), (C, 2.0)], number=1), benchmark([(A, 1.0), (C, 3.0)], number=3)]
    alone = benchmark([(A, 1.0)], number=4)
    first = Timings([*timed([alone])[A.key], *timed(both)[A.key]], UNKNOWN)
    second = Timings(timed(both)[C.key][::-1], UNKNOWN)
    found = difference(first, second, 0.05, ASSUMED_STD)
    assert found.centre == pytest.approx(-math.log(3), abs=0.01)
    assert difference(second, first, 0.05, ASSUMED_STD).centre == -found.centre


def test_a_stopped_benchmark_decides_only_without_others():
    whole, cut = benchmark([(A, 1.0), (B, 2.0)]), benchmark([(A, 2.0), (B, 1.0)], number=2)
    records = [whole, stop(cut)]
    found = difference(timings(A, *records), timings(B, *records), 0.05, ASSUMED_STD)
    assert found.centre == pytest.approx(-math.log(2), abs=0.01)
    alone = difference(timings(A, stop(cut)), timings(B, stop(cut)), 0.05, ASSUMED_STD)
    assert alone.centre == pytest.approx(math.log(2), abs=0.01)


def test_stopped_benchmarks_do_not_say_how_much_benchmarks_differ():
    ones = [candidate(name) for name in "abcdefghi"]
    whole = [benchmark([(one, 1.0) for one in ones], number=number) for number in (0, 1)]
    cut = stop(benchmark([(one, 3.0) for one in ones], number=2, rounds=2))
    where = timed([*whole, cut])
    assert between_std(where.values()) == between_std(timed(whole).values())


def test_below_one_percent_there_is_no_difference():
    found = Difference(RESOLUTION - 1e-9, 0.009, 0.010, 100, 1.0)
    assert not found.slower
    assert replace(found, centre=RESOLUTION).slower
    assert not replace(found, centre=RESOLUTION, low=0.0).slower


def test_across_benchmarks_the_variances_add_up():
    one, other = benchmark([(A, 1.2)], number=1), benchmark([(B, 1.0)], number=2)
    first, second = timings(A, one), timings(B, other)
    found = difference(first, second, 0.01, between=0.02)
    widths = [(r.high - r.low) / (2 * 1.959964) for r in (first.relative, second.relative)]
    reach = 2.326348 * math.sqrt(widths[0] ** 2 + widths[1] ** 2 + 2 * 0.02**2)
    assert found.centre == pytest.approx(first.relative.centre - second.relative.centre)
    assert found.high - found.centre == pytest.approx(reach, rel=1e-5)
    assert found.centre - found.low == pytest.approx(reach, rel=1e-5)


@pytest.mark.parametrize(("second", "related"), [(2.09, True), (2.15, False), (1.85, False)])
def test_second_references_that_disagree_relate_nothing(second, related):
    one = benchmark([(A, 1.2)], number=1)
    other = benchmark([(B, 1.0)], number=2, second=second)
    found = difference(timings(A, one), timings(B, other), 0.05, ASSUMED_STD)
    assert (found is not None) == related
    # Within one of them they are no matter.
    both = benchmark([(A, 1.2), (B, 1.0)], number=0, second=9)
    assert difference(timings(A, one, both), timings(B, other, both), 0.05, 0.1) is not None


def test_without_the_record_the_stored_relative_latency_relates():
    record = benchmark([(A, 1.2)])
    stored = Timings([], Difference(0.0, -0.01, 0.01, 100, 1.0))
    found = difference(timings(A, record), stored, 0.05, ASSUMED_STD)
    assert found.slower
    assert found.centre == pytest.approx(math.log(1.2), abs=0.01)
    unbounded = Timings([], UNKNOWN)
    found = difference(timings(A, record), unbounded, 0.05, ASSUMED_STD)
    assert (found.low, found.high, found.slower) == (-math.inf, math.inf, False)


def test_what_moves_between_benchmarks_is_pooled_over_candidates():
    rng = np.random.default_rng(0)
    moved = rng.normal(0, 0.05, (3, 4))
    records = [
        benchmark(
            [(one, math.exp(moved[k, n])) for k, one in enumerate((A, B, C))],
            number=n,
            noise=0.001,
            drift=0,
        )
        for n in range(4)
    ]
    pooled = math.sqrt(np.var(moved, axis=1, ddof=1).mean())
    assert between_std(timed(records).values()) == pytest.approx(pooled, rel=0.02)
    # 3 candidates in 3 benchmarks: 6 degrees of freedom; 9 of them are enough.
    assert between_std(timed(records[:3]).values()) == ASSUMED_STD
    assert between_std(timed(records[:1]).values()) == ASSUMED_STD == math.log(1.015)


def test_only_candidates_are_ranked():
    checked = replace(A, role="check")
    record = benchmark([(A, 1.0), (checked, 1.0)])
    assert {key: [one.number for one in found] for key, found in timed([record]).items()} == {
        A.key: [0]
    }


@pytest.mark.parametrize(("count", "level"), [(1, 0.05), (2, 0.05), (3, 0.025), (101, 0.0005)])
def test_the_level_is_shared_by_the_comparisons_with_the_fastest(count, level):
    assert corrected(count) == pytest.approx(level)


def test_equal_candidates_of_several_days_are_seldom_told_apart():
    """With a machine that moves by the assumed 1.5 % between benchmarks."""
    rng = np.random.default_rng(1)
    wrong = 0
    for number in range(200):
        shifts = np.exp(rng.normal(0, ASSUMED_STD, 2))
        one = benchmark([(A, shifts[0])], number=1, rounds=40, calls=1, seed=number)
        other = benchmark([(B, shifts[1])], number=2, rounds=40, calls=1, seed=number)
        found = difference(timings(A, one), timings(B, other), 0.05, relation.ASSUMED_STD)
        wrong += found.slower
    assert wrong <= 20  # 10 are expected


def test_what_ranks_is_of_the_benchmark_that_milliseconds_are_of():
    """Although another one has timed the same candidate, later or elsewhere."""
    run = a_run("a")
    early, late = (benchmark([(of_run(run), n)], number=n) for n in (1, 2))
    where = timed([early, late])[of_run(run).key]
    for record, ratio in ((early, 1.0), (late, 2.0)):
        measurement = measured(run, record)
        found = Timings.of(measurement, where)
        assert found.relative == record.relative(0)
        assert found.relative.ratio[0] == pytest.approx(ratio, rel=0.02)
        assert measurement.relative.centre == pytest.approx(found.relative.ratio[0])
    missing = Timings.of(measured(run, benchmark([(of_run(run), 3.0)], number=3)), where)
    assert missing.relative.ratio[0] == pytest.approx(3.0, rel=0.02)
    assert not missing.timed

    # Of a candidate's measurements the latest counts whose benchmark is here.
    group = Group("a", (run,), (measured(run, early),))
    elsewhere = replace(group, measurements=(measured(run, late),))
    assert Entry.of([group, elsewhere], timed([early])[of_run(run).key]).latency == (
        early.timing(0).latency
    )
    assert Entry.of([group, elsewhere], where).latency == late.timing(0).latency

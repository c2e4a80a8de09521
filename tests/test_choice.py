import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from simulated import (
    a_run,
    benchmark,
    candidate,
    comparison,
    entry,
    leaderboard,
    measured,
    named,
    of_run,
    stop,
)

from cifar_lightning.comparison.bootstrap import upper_end_ms
from cifar_lightning.comparison.choice import Need, at_most_slower, bound_ms, choose
from cifar_lightning.comparison.relation import Timed
from cifar_lightning.comparison.verdict import verdict
from cifar_lightning.errors import UserError


def labels(entries):
    return {one.label for one in entries}


NEED = Need(85)


def advice(found, need=NEED, threads=1):
    return verdict(found, threads, need).advice


# --- The fastest with an accuracy --------------------------------------------------------------


def test_of_the_fastest_the_most_accurate_is_taken():
    """Noise does not choose between networks of one speed: accuracy does."""
    found = leaderboard(
        entry("a", 86, 1.0), entry("b", 88, 1.002), entry("c", 95, 1.2), entry("d", 80, 0.5)
    )
    choice = choose(found, 1, Need(85))
    assert choice.entry.label == "b"
    assert labels(choice.best) == {"a", "b"}
    assert labels(choice.eligible) == {"a", "b", "c"}
    assert 0 < at_most_slower(found, choice) < 0.02
    told = advice(found)
    assert told.startswith("Take b fp32 (88.00 ± ")
    assert "of 3 rows with at least 85 % none is surely faster" in told
    assert "at most 0." in told or "at most 1." in told
    assert "a fp32" in told


def test_accuracies_that_are_alike_to_a_tenth_are_decided_by_size():
    plans = [
        entry("a", 88.02, 1.0, images=10_000, size_bytes=3_000_000),
        entry("b", 88.04, 1.001, images=10_000, size_bytes=4_000_000),
        entry("c", 88.04, 1.0, images=10_000, size_bytes=None),
    ]
    assert choose(leaderboard(*plans), 1, Need(85)).entry.label == "a"
    more = [*plans, entry("d", 88.06, 1.0, images=10_000, size_bytes=9_000_000)]
    assert choose(leaderboard(*more), 1, Need(85)).entry.label == "d"


def test_alone_among_the_fastest():
    found = leaderboard(entry("a", 90, 1.0), entry("b", 95, 3.0))
    choice = choose(found, 1, Need(85))
    assert (labels(choice.best), at_most_slower(found, choice)) == ({"a"}, 0.0)
    assert "of 2 rows with at least 85 % it is the fastest." in advice(found)
    assert verdict(found, 1, Need(85)).command is None


@pytest.mark.parametrize("whole", [None, 1, 2])
@pytest.mark.parametrize("later", [True, False])
def test_a_benchmark_that_was_stopped_turns_no_verdict(later, whole):
    """In a few rounds nothing is told apart, and the slowest is the most accurate."""
    plans = [entry("a", 86, 1.0), entry("b", 92, 3.0)]
    timed = [(of_run(one.run), one.truth) for one in plans]
    first = benchmark(timed, number=0, processes=whole)
    records = [first, stop(benchmark(timed, number=1, rounds=6, processes=1))]
    found = comparison(*plans, records=records if later else records[::-1]).leaderboards[0]
    assert choose(found, 1, Need(85)).entry.label == "a"
    alone = comparison(*plans, records=records[1:]).leaderboards[0]  # all that is known
    assert choose(alone, 1, Need(85)).entry.label == "b"


def test_a_circle_leaves_the_least_relative_latency():
    """Three entries can each be slower than another one: by rounds that others had no part in."""
    plans = [entry("a", 90, 1.0), entry("b", 91, 1.0), entry("c", 92, 1.0)]
    a, b, c = (of_run(one.run) for one in plans)
    records = [
        benchmark(timed, number=number)
        for number, timed in enumerate(
            ([(a, 1.0), (b, 1.1)], [(b, 0.9), (c, 1.0)], [(c, 1.0), (a, 1.1)])
        )
    ]
    found = leaderboard(*plans, records=records)
    assert found.not_slower(found.entries) == []
    choice = choose(found, 1, Need(85))
    assert (choice.entry.label, labels(choice.best)) == ("b", {"b"})
    told = verdict(found, 1, Need(85))
    assert "of 3 rows with at least 85 % each is slower than some other one" in told.advice
    assert "it is the fastest" not in told.advice
    assert " run=a,b,c " in told.command


def test_the_truly_fastest_is_among_the_fastest():
    """At least 95 times in 100, whatever the number of candidates; all others are 0.6 % slower."""
    held = 0
    for seed in range(60):
        plans = [entry(str(k), 90, 1.0 if k == 0 else 1.006) for k in range(6)]
        found = leaderboard(*plans, seed=seed, rounds=60, calls=2, noise=0.03)
        held += "0" in labels(choose(found, 1, Need(85)).best)
    assert held >= 57


def test_what_is_surely_slower_is_never_taken():
    for seed in range(30):
        plans = [entry("fast", 86, 1.0), entry("slow", 99, 1.05), entry("like", 87, 1.001)]
        found = leaderboard(*plans, seed=seed)
        assert choose(found, 1, Need(85)).entry.label == "like"


def test_nothing_is_eligible():
    found = leaderboard(entry("a", 80, 1.0), entry("b", 82, 3.0))
    choice = choose(found, 1, Need(85))
    assert (choice.entry.label, choice.eligible) == ("b", [])
    told = advice(found)
    assert told.startswith("No row reaches 85 %; the most accurate is b fp32 (82.00 ± ")
    assert "which lacks 3.00 points." in told
    # Of equally accurate ones the fastest is named, whatever was measured first.
    alike = leaderboard(entry("a", 80, 3.0), entry("b", 80, 1.0))
    assert choose(alike, 1, Need(85)).entry.label == "b"


def test_what_is_not_surely_eligible_is_said():
    found = leaderboard(
        entry("near", 85.1, 1.0), entry("sure", 90, 2.0), entry("late", 95, 3.0), entry("b", 84, 1)
    )
    told = advice(found)
    assert told.startswith("Take near fp32")
    assert "Whether it truly reaches 85 % is within the uncertainty." in told
    assert "The fastest that surely does is sure fp32" in told
    assert "Below 85 % only within the uncertainty: b fp32." in told
    assert "None surely does." in advice(leaderboard(entry("near", 85.1, 1.0)))
    unknown = advice(leaderboard(entry("old", 99, 1.0, confusion=None)))
    assert "How sure its accuracy is was not recorded: measure it again." in unknown


def test_threads_are_ranked_by_themselves():
    run = {"model": {"name": "one"}}
    found = leaderboard(
        entry("a", 90, 1.0, **run), entry("a", 90, 0.4, threads=4, **run), entry("b", 95, 0.9),
    )  # fmt: skip
    assert found.threads == [1, 4]
    assert [choose(found, n, Need(85)).entry.name for n in (1, 4)] == [
        "b fp32",
        "a fp32 (4 threads)",
    ]
    assert found.latency_rank(named(found, "a fp32 (4 threads)")) == (1, False)
    assert found.latency_rank(named(found, "a")) == (2, False)
    assert found.level(named(found, "a")) == found.level(named(found, "b")) == 0.05


# --- The command that tells more ---------------------------------------------------------------


def test_ties_of_one_benchmark_are_measured_in_fresh_processes():
    plans = entry("a", 90, 1.0), entry("b", 91, 1.0, variant="fused")
    found = leaderboard(*plans, processes=1)
    assert verdict(found, 1, Need(85)).command == (
        "python -m cifar_lightning.measure run=a,b 'variants=[fp32,fused]' device=cpu"
    )


def test_benchmarks_that_can_not_be_related_are_named():
    plans = [entry("a", 90, 1.0), entry("b", 95, 2.0)]
    records = [
        benchmark([(of_run(plans[0].run), 1.0)], number=1),
        benchmark([(of_run(plans[1].run), 2.0)], number=2, second=3.0),
    ]
    found = leaderboard(*plans, records=records)
    a, b = named(found, "a"), named(found, "b")
    assert found.difference(a, b) is None
    assert found.latency_rank(a) == found.latency_rank(b) == (1, True)
    choice = choose(found, 1, Need(85))
    assert (choice.entry, at_most_slower(found, choice)) == (b, math.inf)
    told = verdict(found, 1, Need(85))
    assert "Not all benchmarks of b fp32, a fp32 can be related to each other" in told.advice
    assert "nobody knows how much slower" in told.advice
    assert told.command == (
        "python -m cifar_lightning.measure run=a,b 'variants=[fp32]' device=cpu"
    )
    # Two that agree are related, though they were never measured together.
    related = leaderboard(*plans, records=[records[0], replace(records[1], sessions=benchmark(
        [(of_run(plans[1].run), 2.0)], number=2).sessions)])  # fmt: skip
    assert choose(related, 1, Need(85)).entry.label == "a"


def test_rows_that_can_not_be_related_to_each_other_are_named():
    """Though both can be to what is taken, which lies between them."""
    plans = [entry(name, acc, 1.0) for name, acc in (("a", 90), ("b", 95), ("c", 91))]
    records = [
        benchmark([(of_run(one.run), 1.0)], number=number, second=2.0 * 1.04**number)
        for number, one in enumerate((plans[0], plans[1], plans[2]))
    ]
    found = leaderboard(*plans, records=records)
    assert choose(found, 1, Need(85)).entry.label == "b"
    assert labels(found.unrelated(1)) == {"a", "b", "c"}
    assert "Not all benchmarks of b fp32, a fp32, c fp32 can be related" in advice(found)
    near = leaderboard(*plans[:2], records=records[:2])
    assert near.unrelated(1) == []


def test_what_is_said_to_be_measured_together_is_in_the_command():
    """Though it is not accurate enough to be taken: its rank is open, and others tie."""
    plans = [entry("a", 90, 1.0), entry("b", 89, 1.0), entry("c", 50, 1.0)]
    timed = [(of_run(one.run), one.truth) for one in plans]
    records = [benchmark(timed[:2], number=0), benchmark(timed[2:], number=1, second=3.0)]
    found = verdict(leaderboard(*plans, records=records), 1, Need(85))
    assert "Not all benchmarks of a fp32, b fp32, c fp32 can be related" in found.advice
    assert "run=a,b,c " in found.command


def test_the_command_has_rows_that_can_not_be_related_to_what_is_taken():
    """However many more accurate ones there are in its own benchmark, or in the other one."""
    plans = [entry("fast", 86, 1.0)] + [entry(f"n{k}", 95, 2.0) for k in range(20)]
    timed = [(of_run(one.run), one.truth) for one in plans]
    records = [benchmark(timed[:1], number=0), benchmark(timed[1:], number=1, second=3.0)]
    found = leaderboard(*plans, records=records, need=Need(85))
    assert len(found.unrelated(1)) == 21
    command = verdict(found, 1, Need(85)).command
    assert re.search(r"run=fast(,n\d+){14} ", command)


# --- The most accurate within a latency --------------------------------------------------------


def test_the_most_accurate_that_is_surely_fast_enough():
    plans = entry("a", 86, 1.0), entry("b", 92, 2.0), entry("c", 95, 3.0), entry("d", 91.9, 1.5)
    found = leaderboard(*plans, drift=0)
    assert choose(found, 1, Need(85, max_ms=2.5)).entry.label == "b"
    assert choose(found, 1, Need(85, max_ms=1.2)).entry.label == "a"
    need = Need(85, max_ms=0.1)
    choice = choose(found, 1, need)
    assert (choice.entry.label, choice.eligible) == ("a", [])
    told = advice(leaderboard(*plans, drift=0, need=need), need)
    assert told.startswith(
        "There is no row whose mean is surely below 0.1 ms; the nearest is a fp32"
    )
    need = Need(85, max_ms=2.5)
    told = advice(leaderboard(*plans, drift=0, need=need), need)
    assert "of 3 rows whose mean is surely below 2.5 ms it is the most accurate" in told
    assert "Not surely less accurate: d fp32." in told
    assert "lacks" not in told
    need = Need(93, max_ms=2.5)
    told = advice(leaderboard(*plans, drift=0, need=need), need)
    assert "It lacks 1.00 points of 93 %." in told


def test_of_equally_accurate_ones_the_fastest_is_taken():
    """Where a latency is asked for, too: one that is dominated is never taken."""
    plans = [
        entry("slow", 92.56, 5.0, size_bytes=7_888_000),
        entry("fast", 92.56, 2.0, size_bytes=7_894_000),
        entry("faster", 92.40, 1.0),
    ]
    need = Need(85, max_ms=6)
    found = leaderboard(*plans, drift=0, need=need)
    (taken,) = (choice.entry for choice in found.choices.values())
    assert taken.label == "fast"
    assert taken not in found.dominated_by
    assert "Take fast fp32" in advice(found, need)


def test_a_few_rounds_bound_nothing():
    """They don't show how the machine changes: such a benchmark was stopped."""
    need = Need(85, max_ms=99)
    record = benchmark([(candidate("a"), 1.0)], rounds=29)
    assert bound_ms_of(record) == math.inf
    assert bound_ms_of(benchmark([(candidate("a"), 1.0)], rounds=30)) < 2
    for processes, known in ((1, False), (2, False), (3, True)):
        record = benchmark([(candidate("a"), 1.0)], rounds=30, processes=processes)
        assert math.isfinite(bound_ms_of(record)) == known
    few = leaderboard(entry("a", 90, 1.0), rounds=3, processes=1, need=need)
    assert "There is no row whose mean is surely below 99 ms" in advice(few, need)


def bound_ms_of(record):
    """Bound the mean of its first candidate."""
    return bound_ms(SimpleNamespace(timings=SimpleNamespace(timed=[Timed(record, 0)])), "mean")


def test_fewer_than_three_processes_turn_no_verdict():
    """One that errs by as much as processes differ would tell equal networks apart."""
    plans = [entry("a", 90, 1.0), entry("b", 86, 1.0)]
    timed = [(of_run(one.run), one.truth) for one in plans]
    wrong = [(of_run(one.run), truth) for one, truth in zip(plans, (1.1, 1.0), strict=True)]
    whole = benchmark(timed, number=0)
    for processes, taken in ((1, "a"), (2, "a"), (3, "b")):
        look = benchmark(wrong, number=1, processes=processes, noise=0.001)
        found = comparison(*plans, records=[whole, look]).leaderboards[0]
        assert choose(found, 1, Need(85)).entry.label == taken
        alone = comparison(*plans, records=[look]).leaderboards[0]  # all that is known
        assert choose(alone, 1, Need(85)).entry.label == "b" or processes == 2
        marks = {mark for one in alone.entries for mark in one.marks}
        assert ("few processes" in marks) == (processes < 3)


def test_p95_is_asked_for_alone_with_a_latency():
    found = leaderboard(entry("a", 90, 1.0), drift=0, calls=8)
    (only,) = found.entries
    assert bound_ms(only, "p95") > bound_ms(only, "mean")
    with pytest.raises(UserError, match="stat=p95: must be mean where no max_ms is asked for"):
        Need(85, statistic="p95")


def test_a_p95_of_too_few_calls_is_not_known():
    """As in the table, where it is empty below 130 calls."""
    need = Need(85, max_ms=99, statistic="p95")
    few = leaderboard(entry("a", 90, 1.0), drift=0, rounds=43, calls=3)  # 129
    assert few.entries[0].latency.p95_ms is None
    assert choose(few, 1, need).eligible == []
    told = advice(replace(few, choices={1: choose(few, 1, need)}), need)
    assert told == (
        "There is no row whose p95 is surely below 99 ms: none's is known, as there are too few "
        "calls, rounds or processes."
    )
    enough = leaderboard(entry("a", 90, 1.0), drift=0, rounds=65, calls=2)
    assert choose(enough, 1, need).eligible == [*enough.entries]


def test_why_nothing_is_known_is_said():
    """Not that calls are too few where nobody can count them."""
    plans, need = [entry("a", 90, 1.0), entry("b", 91, 1.0)], Need(85, max_ms=99, statistic="p95")
    records = [
        benchmark([(of_run(one.run), 1.0)], number=number, means_only=True)
        for number, one in enumerate(plans)
    ]
    found = leaderboard(*plans, records=records, need=need)
    told = "There is no row whose p95 is surely below 99 ms: none's is known, as the benchmark's "
    assert advice(found, need) == f"{told}record holds means only."
    first, second = found.entries
    lost = replace(second, timings=replace(second.timings, timed=[]))
    found = replace(found, entries=(first, lost))
    found = replace(found, choices={1: choose(found, 1, need)})
    assert advice(found, need) == (
        f"{told}record holds means only, or the benchmark's record is missing."
    )


def test_calls_that_are_missing_bound_nothing():
    run = a_run("a")
    found = leaderboard(entry("a", 90, 1.0))
    (only,) = found.entries
    lost = replace(only, timings=replace(only.timings, timed=[]))
    assert bound_ms(lost, "mean") == math.inf
    assert measured(run).relative is not None


def brute(calls, statistic, seed=0):
    """Draw rounds one by one, as the text says."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(1000):
        drawn = np.concatenate([calls[k] for k in rng.integers(0, len(calls), len(calls))])
        ordered = np.sort(drawn)
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        found.append(drawn.mean() if statistic == "mean" else p95)
    return np.quantile(found, 0.975)


@pytest.mark.parametrize("statistic", ["mean", "p95"])
def test_the_bound_is_a_bootstraps_over_whole_rounds(statistic):
    record = benchmark([(candidate("a"), 1.0)], rounds=40, calls=5, noise=0.2, drift=0, processes=1)
    calls = [one.calls_ms for one in record.blocks(0)]
    found = upper_end_ms(Timed(record, 0), statistic)
    assert found == upper_end_ms(Timed(record, 0), statistic)  # seeded
    assert found == pytest.approx(brute(calls, statistic), rel=0.02)
    # Single calls would be independent, blocks are not: half as wide.
    alone = brute([[one] for block in calls for one in block], "mean")
    mean = np.mean(calls)
    if statistic == "mean":
        assert found - mean > 1.3 * (alone - mean)


def test_the_bound_holds():
    """The upper end of a 95 % interval is below the truth in about 1 of 40 benchmarks."""
    below = 0
    for seed in range(200):
        record = benchmark(
            [(candidate("a"), 1.0)], rounds=40, calls=2, noise=0.1, drift=0, seed=seed
        )
        below += upper_end_ms(Timed(record, 0), "mean") < math.exp(0.1**2 / 2)
    assert below <= 12


def test_a_process_that_was_stopped_early_bounds_nothing():
    """Two rounds of another speed."""
    long = benchmark([(candidate("a"), 1.0)], rounds=40, processes=2, drift=0)
    short = benchmark([(candidate("a"), 9.0)], rounds=2, drift=0, processes=1).sessions
    cut = stop(replace(long, sessions=[*long.sessions, *short]))
    assert upper_end_ms(Timed(cut, 0), "mean") == upper_end_ms(Timed(long, 0), "mean") < 1.1


def test_the_bound_knows_that_processes_differ():
    """By more than their rounds do; see above for how often it may be wrong."""
    below = 0
    for seed in range(200):
        record = benchmark(
            [(candidate("a"), 1.0)], rounds=30, calls=2, noise=0.01, drift=0, seed=seed,
            processes=8, between=0.02,
        )  # fmt: skip
        below += upper_end_ms(Timed(record, 0), "mean") < math.exp(0.02**2 / 2 + 0.01**2 / 2)
    assert 1 <= below <= 20

"""The records of benchmarks."""

import math
import os
import signal
import statistics
import struct
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_results import MACHINE

from cifar_lightning.benchmark import processes
from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.prepare import Failure, Share, first_that_works
from cifar_lightning.benchmark.processes import time_in_processes
from cifar_lightning.benchmark.record import record_of, told_apart
from cifar_lightning.benchmark.session import Timed
from cifar_lightning.benchmark.summary import summary
from cifar_lightning.config.protocols import PROTOCOL_VERSION, PROTOCOLS
from cifar_lightning.errors import RunFailed
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.blocks import Block, Round, Session
from cifar_lightning.runs.candidate import REFERENCES, Candidate, candidate_key
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.interleaved import BenchmarkHead
from cifar_lightning.runs.latency import Relative
from cifar_lightning.runs.paired import one_sided
from cifar_lightning.system import signals
from cifar_lightning.system.environment import Code
from cifar_lightning.variants.context import Unsupported

MODEL = {"_target_": "cifar_lightning.models.resnet.resnet_cifar", "depth": 8, "dropout": 0.2}
ENGINES = {"torch": "2"}


def candidate(role="candidate", label="a", **changed):
    made = Candidate(role, label, "resnet8", MODEL, "fp32", {"fp32": 1}, ENGINES, 1)
    return replace(made, **changed)


def session(*ms_by_round, ended="converged"):
    """Make a session of each candidate's block mean in each round."""
    count = len(ms_by_round[0])
    rounds = [
        Round([*range(count)], [Block([ms], ms / 1000, ms / 1000) for ms in means])
        for means in ms_by_round
    ]
    return Session([*range(count)], rounds, ended)


def record(*candidates, sessions):
    return BenchmarkRecord(
        id="20260101-000000-abcdef",
        started="2026-01-01T00:00:00+00:00",
        protocol="full",
        protocol_version=PROTOCOL_VERSION,
        device="A CPU",
        hardware="a-cpu",
        clock="perf_counter",
        code=Code("abc", False),
        environment=Environment({"torch": "2"}, MACHINE),
        candidates=[*candidates, *(candidate(role, role) for role in REFERENCES)],
        state={"before": {}, "after": {}},
        sessions=sessions,
    )


def steady(*ms, rounds=40):
    """Make a session in which nothing changes but by a few parts of ten thousand."""
    return session(*([one * (1 + index % 3 / 10_000) for one in ms] for index in range(rounds)))


def test_round_trip_and_the_head_alone(tmp_path):
    made = record(candidate(), sessions=[steady(1.0, 2.0, 2.0, 4.0)])
    path = BenchmarkRecord.path(tmp_path, made.id)
    path.parent.mkdir()
    path.write_text(made.to_json())
    assert path.name == "20260101-000000-abcdef.json"
    assert BenchmarkRecord.read(path) == made
    head = BenchmarkHead.read(path)
    assert head.candidates == made.candidates
    assert not hasattr(head, "sessions")


def test_relative_latency_and_noise_floor():
    made = record(candidate(), sessions=[steady(3.0, 2.0, 2.02, 4.0)] * 3)
    assert made.relative(0).ratio == pytest.approx((1.5, 1.5, 1.5))
    assert made.noise_floor.ratio[0] == pytest.approx(1.01)
    assert made.timing(0).relative == Relative.of(made.relative(0))
    assert made.timing(0).latency.n == made.timing(0).rounds == 120
    assert made.ended == "converged"
    for few in (1, 2):  # which is a look in the full protocol, and all that the quick one asks for
        look = replace(made, sessions=made.sessions[:few])
        assert (look.ended, replace(look, protocol="quick").ended) == ("few", "converged")
        assert replace(look, protocol_version=2).ended == "converged"  # when all had but one


def test_an_unbounded_interval_is_none():
    made = record(candidate(), sessions=[steady(3.0, 2.0, 2.0, 4.0, rounds=4)])
    assert made.timing(0).relative == Relative(pytest.approx(1.5), None, None)
    assert BenchmarkRecord.decoded(made.to_json()) == made


def test_who_is_ranked_with_whom():
    four = candidate(threads=4)
    made = record(
        candidate(), candidate(variant="fused"), four,
        sessions=[steady(1.0, 1.005, 1.2, 2.0, 2.0, 2.0)],
    )  # fmt: skip
    assert made.ranked == [0, 1, 2]
    assert made.rivals(0) == [1]
    assert made.rivals(2) == []
    assert made.slower(2, 0)
    assert not made.slower(1, 0)  # below 1 % there is no difference
    assert not made.slower(0, 1)


def test_a_key_is_what_executes():
    key = candidate().key
    assert len(key) == 16
    same = [
        {"label": "b"},
        {"run": "another", "weights": "0" * 64},
        {"role": "check"},
        {"model": MODEL | {"zero_init": None}},  # an option that is off
        {"model": {**MODEL, "_target_": "cifar_lightning.models.moved.resnet_cifar"}},
    ]
    other = [
        {"model": MODEL | {"dropout": 0.3}},
        {"variant": "fused"},
        {"recipe": {"fp32": 2}},
        {"engines": {"torch": "3"}},
        {"threads": 2},
        {"weights": "0" * 64, "by_weights": True},
    ]
    assert {replace(candidate(), **one).key for one in same} == {key}
    assert len({replace(candidate(), **one).key for one in other} | {key}) == 1 + len(other)
    assert candidate_key(MODEL, "fp32", {"fp32": 1}, ENGINES, 1) == key


BROKEN = {
    "not one of each": lambda made: replace(made, candidates=made.candidates[:-1]),
    "one twice": lambda made: replace(made, candidates=[*made.candidates, made.candidates[-1]]),
    "no session": lambda made: replace(made, sessions=[]),
    "no round": lambda made: replace(made, sessions=[replace(made.sessions[0], rounds=[])]),
    "another order": lambda made: replace(
        made, sessions=[replace(made.sessions[0], build_order=[0, 1, 2, 2])]
    ),
    "too few blocks": lambda made: with_round(made, blocks=made.sessions[0].rounds[0].blocks[:-1]),
    "a wrong number": lambda made: with_round(made, order=[0, 1, 2, 9]),
    "no call": lambda made: with_round(made, blocks=[Block([], 1, 1)] * 4),
    "no time": lambda made: with_round(made, blocks=[Block([0.0], 1, 1)] * 4),
}


def with_round(made, **changed):
    (one,) = made.sessions
    return replace(
        made, sessions=[replace(one, rounds=[replace(one.rounds[0], **changed), *one.rounds[1:]])]
    )


@pytest.mark.parametrize("how", BROKEN)
def test_a_record_that_contradicts_itself_is_refused(how):
    made = record(candidate(), sessions=[steady(1.0, 2.0, 2.0, 4.0)])
    with pytest.raises(ValueError):
        BenchmarkRecord.decoded(BROKEN[how](made).to_json())


@given(st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3))
def test_processes_are_combined_by_students_interval(centres):
    sessions = [steady(math.exp(one), 2.0, 1.0, 1.0, 4.0) for one in centres]
    made = record(candidate(), candidate(variant="fused"), sessions=sessions)
    found = made.relative(0)
    mean, error = statistics.fmean(centres), stats.sem(centres)
    expected = stats.t.interval(0.95, 2, mean, error) if error > 1e-9 else (mean, mean)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)
    assert found.centre == pytest.approx(mean, abs=1e-9)
    assert found.n == made.timing(0).rounds == 120
    assert made.difference(1, 0).centre == pytest.approx(math.log(2) - mean)


@given(st.lists(st.floats(-0.02, 0.02), min_size=2, max_size=2))
def test_of_two_processes_what_either_says_is_possible(centres):
    """Student's interval of two would hold nearly everything at a level of many candidates."""
    made = record(candidate(), sessions=[steady(math.exp(one), 1.0, 1.0, 4.0) for one in centres])
    found = made.relative(0, one_sided(0.05 / 20))
    assert found.low == pytest.approx(min(centres), abs=1e-3)
    assert found.high == pytest.approx(max(centres), abs=1e-3)


@pytest.mark.parametrize("whole", [1, 2, 7])
def test_a_process_that_was_stopped_early_takes_nothing_away(whole):
    """It would count as much as each of the others."""
    others = [steady(1.0 + n / 1000, 1.0, 1.0, 4.0) for n in range(whole)]
    short = session([1.5, 1.0, 1.0, 4.0], [1.5, 1.0, 1.0, 4.0], ended="stopped")
    found = record(candidate(), sessions=[*others, short])
    assert found.relative(0) == record(candidate(), sessions=others).relative(0)
    assert found.ended == "stopped"
    assert found.timing(0).latency.n == 40 * whole + 2
    halfway = steady(1.5, 1.0, 1.0, 4.0, rounds=20)
    assert record(candidate(), sessions=[*others, halfway]).relative(0).high > 0.02


def test_a_quiet_process_counts_beside_one_that_noise_made_long():
    """Each ends by its own rule."""
    quiet = [steady(1.0 + n / 1000, 1.0, 1.0, 4.0, rounds=30) for n in range(7)]
    long = steady(1.5, 1.0, 1.0, 4.0, rounds=87)
    found = record(candidate(), sessions=[*quiet, long])
    assert len(found.counted) == 8
    assert found.relative(0).n == 7 * 30 + 87
    assert found.relative(0).centre < 0.1
    last = replace(quiet[0], ended="stopped")  # which a signal came after
    assert len(record(candidate(), sessions=[*quiet, last]).counted) == 8
    assert len(record(candidate(), sessions=[long, last]).counted) == 1


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_a_quiet_benchmark_converges_in_any_number_of_processes(processes):
    rounds = PROTOCOLS["full"].in_each(processes).expected_rounds
    blocks = [[Block([ms] * 20, 1, 1) for ms in (1, 1, 1, 4)]] * rounds
    one = Session([*range(4)], [Round([*range(4)], row) for row in blocks], "converged")
    assert record(candidate(), sessions=[one] * processes).converged(0)


def test_only_a_pairs_own_processes_tell_it_apart():
    """A third candidate that each process finds elsewhere says nothing of the other two."""
    sessions = [steady(1.0, 1.02, 1 + 0.3 * (-1) ** n, 1.0, 1.0, 4.0) for n in range(8)]
    made = record(candidate(), candidate(label="b"), candidate(label="c"), sessions=sessions)
    assert made.slower(1, 0)
    assert not made.differ(2, 0)


@pytest.mark.parametrize(("interrupted", "ended"), [(None, "converged"), (2, "stopped")])
def test_a_benchmark_of_fewer_processes_than_asked_was_stopped(interrupted, ended, monkeypatch):
    """Though each of them got to its end."""
    begun = []

    def apart(*_):
        begun.append(len(begun))
        if len(begun) == interrupted:
            signals._handle(signal.SIGTERM, None)
        everyone = [candidate(), *(candidate(role, role) for role in REFERENCES)]
        return Timed(everyone, steady(1.0, 2.0, 2.0, 9.0), [], {"before": {}, "after": {}})

    monkeypatch.setattr(processes, "_apart", apart)
    device = torch.device("cpu")
    with signals.handled(), signals.deferred():
        found, _ = time_in_processes(3, [], device, PROTOCOLS["full"], 0, (None, True))
    assert len(found) == len(begun) == (interrupted or 3)
    assert record_of("a", datetime(2026, 1, 1), "full", device, found).ended == ended


@pytest.mark.parametrize("dying", [1, 3])
def test_a_process_that_dies_costs_nothing_that_others_measured(dying, monkeypatch):
    """As where memory runs short in the end."""
    begun = []

    def apart(*_):
        begun.append(len(begun))
        if len(begun) == dying:
            raise RunFailed("it ended with status -9")
        everyone = [candidate(), *(candidate(role, role) for role in REFERENCES)]
        return Timed(everyone, steady(1.0, 2.0, 2.0, 9.0), [], {"before": {}, "after": {}})

    monkeypatch.setattr(processes, "_apart", apart)
    asked = 8, [], torch.device("cpu"), PROTOCOLS["full"], 0, (None, True)
    if dying == 1:
        with pytest.raises(RunFailed, match="-9"):
            time_in_processes(*asked)
        return
    found, failed = time_in_processes(*asked)
    assert failed == "it ended with status -9; kept is what 2 of 8 have measured"
    made = record_of("a", datetime(2026, 1, 1), "full", torch.device("cpu"), found)
    assert (len(made.sessions), made.ended) == (2, "stopped")


@pytest.mark.parametrize("error", [Unsupported("no such GPU"), RuntimeError("no such GPU")])
def test_without_a_reference_nothing_can_be_timed(error):
    def fails(source):
        raise error

    sources = [Source(candidate("reference", "reference"))]
    with pytest.raises(RunFailed, match=r"the reference can't be timed: .*no such GPU"):
        first_that_works(sources, torch.device("cpu"), fails)
    others = first_that_works([Source(candidate())], torch.device("cpu"), fails)
    assert others.status == ("unsupported" if isinstance(error, Unsupported) else "failed")


def dies_in_the_middle(sender, *_):
    """Say that a long answer comes, and send its beginning."""
    os.write(sender.fileno(), struct.pack("!i", 1000) + b"half")
    os._exit(9)


def test_a_process_that_dies_while_it_answers(monkeypatch):
    """An answer is large: that is where memory runs short."""
    monkeypatch.setattr(processes, "_measure", dies_in_the_middle)
    with pytest.raises(RunFailed, match="a measuring process ended with status 9"):
        processes._apart([], torch.device("cpu"), PROTOCOLS["full"], 0, (None, True), Share())


def test_what_failed_in_one_process_is_not_tried_in_the_next(monkeypatch):
    tried = []
    failing, other = candidate(), candidate(variant="fused")
    sources = [Source(one) for one in (failing, other)]

    def apart(groups, *_):
        tried.append([group[0].candidate.variant for group in groups])
        everyone = [other, *(candidate(role, role) for role in REFERENCES)]
        failures = [Failure(failing, "failed", "no memory")] * (len(tried) == 1)
        return Timed(everyone, steady(1.0, 2.0, 2.0, 9.0), failures, {"before": {}, "after": {}})

    monkeypatch.setattr(processes, "_apart", apart)
    device, groups = torch.device("cpu"), [[source] for source in sources]
    found, _ = time_in_processes(3, groups, device, PROTOCOLS["full"], 0, (None, True))
    assert tried == [["fp32", "fused"], ["fused"], ["fused"]]
    assert sum(len(one.failures) for one in found) == 1


def test_what_failed_in_one_process_is_in_no_record():
    everyone = [candidate(), candidate(variant="fused")]
    references = [candidate(role, role) for role in REFERENCES]
    state = {"before": {}, "after": {}}
    session = steady(1.0, 2.0, 3.0, 3.0, 9.0)
    seen = [{"power_w": 128.0}]
    session = replace(session, rounds=[replace(one, states=seen) for one in session.rounds])
    first = Timed([*everyone, *references], session, [], state)
    failure = Failure(everyone[0], "failed", "no memory")
    second = Timed([everyone[1], *references], steady(2.0, 3.0, 3.0, 9.0), [failure], state)
    made = record_of("a", datetime(2026, 1, 1), "full", torch.device("cpu"), [first, second])
    assert [one.variant for one in made.candidates][:1] == ["fused"]
    assert BenchmarkRecord.decoded(made.to_json()) == made
    assert made.relative(0).ratio[0] == pytest.approx(2 / 3)
    assert {str(one.states) for one in made.sessions[0].rounds} == {str(seen)}


@pytest.mark.parametrize(("ms", "apart"), [(1.002, False), (1.05, True), (0.95, True)])
def test_weights_that_matter_are_told(ms, apart):
    twin = candidate("check", "twin", run="twin", weights="1" * 64)
    made = record(candidate(), twin, sessions=[steady(1.0, ms, 2.0, 2.0, 4.0)])
    assert told_apart(made) == ({candidate().key} if apart else set())
    owned = [
        candidate(label=label, weights=digit * 64, by_weights=True)
        for label, digit in (("a", "0"), ("twin", "1"))
    ]
    again = record(*owned, sessions=[steady(1.0, ms, 2.0, 2.0, 4.0)])
    assert again.tells_apart(owned[0].key, owned[1].key) == apart
    assert not again.tells_apart(owned[0].key, "0" * 16)


def test_who_has_not_converged_is_told_for_each_candidate():
    """One interval that stayed wide, and too few rounds, which nobody has enough of."""
    wide, narrow = candidate(), candidate(label="b", model={"depth": 20})
    rounds = [(2.0 + 0.5 * (n % 2), 3.0, 1.0, 1.0, 2.0) for n in range(300)]
    one = session(*rounds, ended="time")
    uneven = session(*((1.1 * row[0], *row[1:]) for row in rounds), ended="time")
    made = record(wide, narrow, sessions=[one, uneven, one])
    assert [made.timing(number).converged for number in (0, 1)] == [False, True]
    assert {made.timing(number).ended for number in (0, 1)} == {"time"}
    short = record(wide, narrow, sessions=[session(*rounds[:20]), session(*rounds[:9])])
    assert not short.timing(1).converged
    # Each of two processes is certain, and they contradict each other.
    other = [(2.0, 3.2, 1.0, 1.0, 2.0)] * 300
    assert not record(wide, narrow, sessions=[session(*rounds), session(*other)]).converged(1)


def test_one_id_of_two_runs_is_told_apart():
    """In a benchmark's table, of those that were timed and of those that could not be."""
    runs = [
        candidate(label="B1", run=f"net-sgd-cosine-e{n}-s0-a{n}", variant=f"v{n}") for n in "12"
    ]
    made = record(*runs, sessions=[steady(1.0, 3.0, 2.0, 2.0, 4.0)])
    failed = Failure(candidate(label="B2", run="net-sgd-cosine-e3-s0-a3"), "failed", "broken")
    drawn = summary(made, [failed])
    assert [name in drawn for name in ("B1/a1 ", "B1/a2 ", "B2 ", "B2/")] == [True] * 3 + [False]

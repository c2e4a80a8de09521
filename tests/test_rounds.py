"""Rounds on made-up machines: nothing here is timed."""

import math
import random
import statistics
from dataclasses import replace
from itertools import islice

import pytest

from cifar_lightning.benchmark.rounds import BlockFailed, interleave, rounds_needed
from cifar_lightning.config.protocols import PROTOCOL_VERSION, PROTOCOLS, Protocol
from cifar_lightning.runs.blocks import Block
from cifar_lightning.runs.paired import difference, one_sided

FULL = PROTOCOLS["full"]


class Machine:
    """Candidates of known latency, whose blocks move a clock on.

    Args:
        true_ms: Of each candidate.
        speed: Tells how much slower the machine is at a moment.
    """

    def __init__(self, *true_ms, noise=0.01, speed=lambda seconds: 1.0, seed=0):
        self.true_ms, self.noise, self.speed = true_ms, noise, speed
        self.generator = random.Random(seed)
        self.seconds = 0.0
        self.taken = []

    def take(self, number):
        def block(count, discarded):
            factor = self.speed(self.seconds) * math.exp(self.generator.gauss(0, self.noise))
            ms = self.true_ms[number] * factor
            self.seconds += (count + discarded) * ms / 1000
            self.taken.append((number, count, discarded))
            return Block([ms] * count, count * ms / 1000, count * ms / 1000)

        return block

    def measure(self, protocol=FULL, seed=0, **settings):
        take = [self.take(number) for number in range(len(self.true_ms))]
        generator = random.Random(seed)
        return interleave(
            take, self.true_ms, 0, protocol, generator, now=lambda: self.seconds, **settings
        )


def means(rounds, number):
    return [one.blocks[number].mean_ms for one in rounds]


def test_every_candidate_once_a_round_in_an_order_of_its_own():
    machine = Machine(1.0, 2.0, 0.5)
    rounds, ended = machine.measure()
    assert ended == "converged"
    assert all(sorted(one.order) == [0, 1, 2] for one in rounds)
    orders = {tuple(one.order) for one in rounds}
    assert len(orders) == 6
    played = [number for number, *_ in machine.taken]
    assert played == [number for one in rounds for number in one.order]
    again, _ = Machine(1.0, 2.0, 0.5).measure()
    assert again == rounds
    other, _ = Machine(1.0, 2.0, 0.5).measure(seed=1)
    assert [one.order for one in other] != [one.order for one in rounds]


def test_a_block_lasts_about_as_long_as_asked_and_beats_with_nothing():
    machine = Machine(1.0, 0.1, 50.0)
    machine.measure()
    counts = [{count for number, count, _ in machine.taken if number == one} for one in range(3)]
    assert min(counts[0]) >= 16
    assert max(counts[0]) <= 24
    assert min(counts[1]) >= 160
    assert max(counts[1]) <= 240
    assert len(counts[0]) > 5
    assert counts[2] == {1}  # of a network that takes longer
    for _, count, discarded in machine.taken:  # a fifth, and one or two
        assert discarded - round(count / 5) in {1, 2}


def test_a_first_guess_does_not_decide_how_long_blocks_are():
    """Blocks of another length would count otherwise what is slow at their beginning."""
    machine = Machine(1.0, 1.0, noise=0.0)
    take = [machine.take(0), machine.take(1)]
    interleave(take, [1.0, 1.5], 0, FULL, random.Random(0), now=lambda: machine.seconds)
    sizes = [[count for number, count, _ in machine.taken if number == one] for one in range(2)]
    assert sizes[1][0] < 0.85 * 20
    assert statistics.fmean(sizes[1][1:]) == pytest.approx(statistics.fmean(sizes[0]), rel=0.03)


def test_what_needs_not_be_certain_has_blocks_as_it_is_told():
    machine = Machine(1.0, 0.01)
    take = [machine.take(0), machine.take(1)]
    interleave(take, [1.0, 0.2], 0, FULL, random.Random(0), [1], now=lambda: machine.seconds)
    assert max(count for number, count, _ in machine.taken if number == 1) <= 120


def test_what_every_round_says_is_no_tie_at_a_strict_level():
    """Rounds that are alike for long say little; none of them contradicts, though."""
    generator, drift, slow = random.Random(1), 0.0, []
    for _ in range(113):
        drift = 0.85 * drift + generator.gauss(0, 0.02)
        slow.append(5 * math.exp(drift))
    strict = one_sided(0.05 / 119)
    found = difference(slow, [1.0] * 113, strict)
    assert 10 < found.tau < 25
    assert found.slower
    assert found.low < math.log(min(slow))
    assert not difference([0.9, *slow[1:]], [1.0] * 113, strict).slower
    few = difference([5.0] * 4, [1.0] * 4)
    assert (few.low, few.high) == (-math.inf, math.inf)


def test_a_strict_level_is_kept_by_few_rounds():
    """Among 50 hardly any of equal ones is called slower, as all rounds of one in 256 say."""
    generator, level, found = random.Random(2), 0.05 / 49, 0
    for _ in range(3000):
        logs = [generator.gauss(0, 0.1) for _ in range(8)]
        found += difference([math.exp(one) for one in logs], [1.0] * 8, one_sided(level)).slower
    assert found / 3000 < 2 * level


def test_it_looks_now_and_then_only():
    assert list(islice(FULL.looks, 7)) == [30, 40, 53, 71, 95, 126, 169]
    assert FULL.expected_rounds == 126
    assert PROTOCOL_VERSION == 3
    assert FULL.in_each(FULL.processes).expected_rounds == 30


def test_one_of_several_processes_stops_when_most_candidates_are_certain():
    """A slow drift makes one of four uncertain, and more rounds would not."""
    generator, in_each = random.Random(0), FULL.in_each(FULL.processes)
    quiet = [[1 + generator.gauss(0, 0.01) for _ in range(30)] for _ in range(4)]
    noisy = [[1 + generator.gauss(0, 0.2) for _ in range(30)] for _ in range(2)]
    drifting = [1.0 + n / 100 for n in range(30)]
    assert math.isinf(difference(drifting, [1.0] * 30).high)
    assert rounds_needed([*quiet, drifting], [99] * 5, 0, in_each) == 30
    assert rounds_needed([*quiet[:3], *noisy], [99] * 5, 0, in_each) > 200
    assert rounds_needed([*quiet[:1], noisy[0]], [99] * 2, 0, in_each) > 200
    assert rounds_needed([*quiet, drifting], [999] * 5, 0, FULL) > 100


def test_a_quiet_machine_is_done_after_126_rounds():
    rounds, ended = Machine(1.0, 1.0, 4.0).measure()
    assert (len(rounds), ended) == (126, "converged")


def test_drift_that_all_share_costs_nothing():
    """A machine that becomes half as fast meanwhile: milliseconds change, ratios don't."""
    machine = Machine(1.0, 1.0, 1.03, speed=lambda seconds: 1 + seconds / 5)
    rounds, ended = machine.measure()
    assert ended == "converged"
    assert len(rounds) < 300
    assert means(rounds, 0)[-1] > 1.5 * means(rounds, 0)[0]
    z = one_sided(0.05 / 2)
    assert not difference(means(rounds, 1), means(rounds, 0), z).slower
    assert difference(means(rounds, 2), means(rounds, 0), z).slower


def test_noise_takes_more_rounds():
    rounds, ended = Machine(1.0, 1.0, noise=0.06).measure()
    assert ended == "converged"
    assert len(rounds) > 126
    found = difference(means(rounds, 1), means(rounds, 0))
    assert max(found.high - found.centre, found.centre - found.low) <= math.log(1.01)


def test_rounds_that_are_alike_count_less():
    """One candidate is 30 % slower for 15 rounds, then is not, and so on."""
    calls = [0]

    def shaken(inner):
        def block(count, discarded):
            calls[0] += 1
            found = inner(count, discarded)
            slow = (calls[0] // 15) % 2
            return replace(found, calls_ms=[ms * (1 + 0.003 * slow) for ms in found.calls_ms])

        return block

    machine = Machine(1.0, 1.0, noise=0.0002)
    take = [machine.take(0), shaken(machine.take(1))]
    generator = random.Random(0)
    rounds, _ = interleave(take, [1.0, 1.0], 0, FULL, generator, now=lambda: machine.seconds)
    assert difference(means(rounds, 1), means(rounds, 0)).tau > 3
    assert len(rounds) > 300


def test_every_candidate_has_enough_calls():
    """A slow one has one call a block."""
    rounds, ended = Machine(1.0, 50.0).measure()
    assert ended == "converged"
    assert len(rounds) == 225
    assert sum(len(one.blocks[1].calls_ms) for one in rounds) >= 200


def test_time_is_up():
    """A budget for each candidate: three have three times as long."""
    machine = Machine(1.0, 1.0, 1.0, noise=1.0)
    rounds, ended = machine.measure()
    assert ended == "time"
    assert 3 * FULL.budget_s <= machine.seconds < 3 * FULL.budget_s + 20
    assert len(rounds) > 100


def test_a_budget_that_is_too_short_keeps_what_it_has():
    short = replace(FULL, budget_s=0.1)
    rounds, ended = Machine(1.0, 1.0).measure(short)
    assert ended == "time"
    assert 2 <= len(rounds) < 30
    rounds, _ = Machine(10_000.0, 10_000.0).measure(short)
    assert len(rounds) == 2  # one says nothing


def test_it_ends_after_any_round_it_is_told_to():
    seen = []

    def on_round(done, expected):
        seen.append((done, expected))
        return done < 7

    rounds, ended = Machine(1.0, 1.0).measure(on_round=on_round)
    assert (len(rounds), ended) == (7, "stopped")
    assert seen == [(done, 126) for done in range(1, 8)]


def test_it_tells_about_how_many_rounds_there_will_be():
    told = []
    machine = Machine(1.0, 1.0, noise=0.06)
    rounds, _ = machine.measure(on_round=lambda done, expected: told.append(expected) or True)
    assert all(expected >= done for done, expected in enumerate(told, 1))
    assert told[0] == 126
    assert told[-1] == len(rounds)
    told.clear()
    short = replace(FULL, budget_s=1.0)
    Machine(1.0, 1.0).measure(short, on_round=lambda done, expected: told.append(expected) or True)
    assert told[10] < 60  # there is no time for more


def test_between_blocks_it_looks_at_the_device():
    """Never within one; a round keeps what was seen in it."""
    machine = Machine(1.0, 1.0)
    states = iter([{"power_w": 1.0}, None, None, {"power_w": 2.0}, {"power_w": 3.0}])
    looked = []

    def look():
        looked.append(len(machine.taken))
        return next(states, None)

    rounds, _ = machine.measure(look=look)
    assert looked == list(range(1, 2 * len(rounds) + 1))
    assert [one.states for one in rounds[:3]] == [
        [{"power_w": 1.0}],
        [{"power_w": 2.0}],
        [{"power_w": 3.0}],
    ]


def test_a_call_that_fails_names_its_candidate():
    def broken(count, discarded):
        raise RuntimeError("no memory")

    machine = Machine(1.0, 1.0)
    with pytest.raises(BlockFailed) as caught:
        interleave([machine.take(0), broken], [1.0, 1.0], 0, FULL, random.Random(0))
    assert caught.value.number == 1
    assert str(caught.value.__cause__) == "no memory"


def test_no_bounds_are_never_enough():
    few = [[1.0, 1.1, 0.9], [1.0, 1.0, 1.0]]
    anything = Protocol("any", calls=1, independent_rounds=1, tolerance=math.inf)
    assert rounds_needed(few, [3, 3], 0, anything) > 3


@pytest.mark.parametrize("extra", [0.0, 0.03])
def test_equal_ones_are_no_difference_and_three_percent_are(extra):
    """Beside bursts in every fifth block, each time another machine."""
    found = 0
    for seed in range(40):
        machine = Machine(1.0, 1.0, 1.0 + extra, seed=seed)
        draw = random.Random(seed).random
        machine.speed = lambda _, draw=draw: 1.5 if draw() < 0.2 else 1.0
        rounds, _ = machine.measure(seed=seed)
        found += difference(means(rounds, 2), means(rounds, 1), one_sided(0.05 / 2)).slower
    assert found == (40 if extra else 0)

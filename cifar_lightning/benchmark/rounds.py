"""Interleaved, randomised rounds: every candidate's block once, until their relation is known.

Pure measurement: takes functions that time a block, knows neither networks nor files. What is done
and why is told in ``docs/latency.md``.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Container, Sequence

from cifar_lightning.config.protocols import Protocol
from cifar_lightning.runs.blocks import Block, Round
from cifar_lightning.runs.latency import Ended
from cifar_lightning.runs.paired import difference
from cifar_lightning.system.environment import DeviceState

# Makes so many calls after so many that don't count.
TakeBlock = Callable[[int, int], Block]
# Of a block's number of calls, that come before it: caches and branch predictors hold what ran
# last. Behind a large matrix product, ONNX Runtime's calls took 86, 34, 14, 7, 3 and 1 % longer.
DISCARDED = 0.2
SPREAD = 0.2  # of a block's number of calls, so that nothing beats in time with a timer


class BlockFailed(Exception):
    """A candidate raised an error, which is the cause.

    Attributes:
        number: The candidate's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def warm_up(
    take: Callable[[int], list[float]],
    protocol: Protocol,
    now: Callable[[], float] = time.perf_counter,
) -> int:
    """Call until the medians of two successive blocks agree; return the number of calls.

    Args:
        take: Makes so many calls and returns their durations in milliseconds.
        protocol: Sets the least and the longest warm-up.
        now: Seconds on a clock.
    """
    start, calls, before = now(), 0, math.nan  # nothing agrees with nan
    while True:
        median = statistics.median(take(protocol.warmup_block))
        calls += protocol.warmup_block
        elapsed = now() - start
        steady = abs(median - before) <= protocol.warmup_tolerance * before
        if (steady and elapsed >= protocol.warmup_s) or elapsed >= protocol.warmup_max_s:
            return calls
        before = median


def interleave(
    take: Sequence[TakeBlock],
    typical_ms: Sequence[float],
    reference: int,
    protocol: Protocol,
    generator: random.Random,
    exempt: Container[int] = (),
    on_round: Callable[[int, int], bool] = lambda done, expected: True,
    look: Callable[[], DeviceState | None] = lambda: None,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[list[Round], Ended]:
    """Time candidates in rounds until relative latencies are certain enough, or time is up.

    Args:
        take: One a candidate.
        typical_ms: About how long each one's call takes, for its first block; one that is exempt
            has blocks of so many calls throughout.
        reference: The number of the candidate that latencies are relative to.
        protocol: When to stop.
        generator: Draws each round's order, and how many calls a block has.
        exempt: Numbers of candidates of which nothing needs to be certain.
        on_round: Called after every round with how many are done and about how many there will be;
            tells whether to go on.
        look: Called after every block; tells the device's state, if it is time for that.
        now: Seconds on a clock.

    Returns:
        The rounds, and why they ended.

    Raises:
        BlockFailed: If a call did.
    """
    rounds: list[Round] = []
    means: list[list[float]] = [[] for _ in take]
    calls = [0] * len(take)
    start, looks, expected = now(), protocol.looks, protocol.expected_rounds
    next_look = next(looks)
    while True:
        order = [*range(len(take))]
        generator.shuffle(order)
        blocks: dict[int, Block] = {}
        states: list[DeviceState] = []
        for number in order:
            # By what its blocks took so far: a first guess that is off by a tenth gives blocks of
            # another length, in which what is slow at the beginning counts otherwise.
            known = number not in exempt and means[number]
            call_ms = statistics.median(means[number]) if known else typical_ms[number]
            size = 1000 * protocol.block_s / call_ms
            count = max(1, round(size * generator.uniform(1 - SPREAD, 1 + SPREAD)))
            discarded = 1 + round(DISCARDED * count) + generator.randint(0, 1)
            try:
                block = take[number](count, discarded)
            except Exception as error:
                raise BlockFailed(number) from error
            blocks[number] = block
            means[number].append(block.mean_ms)
            calls[number] += len(block.calls_ms)
            if (state := look()) is not None:
                states.append(state)
        rounds.append(Round(order, [blocks[number] for number in range(len(take))], states))
        done = len(rounds)
        if done == next_look:
            expected = rounds_needed(means, calls, reference, protocol, exempt)
            if expected <= done:
                return rounds, "converged"
            next_look = next(looks)
            expected = next(one for one in protocol.looks if one >= expected)
        elapsed = now() - start
        in_time = int(done * protocol.budget_s * len(take) / elapsed) if elapsed > 0 else expected
        if not on_round(done, max(done, min(expected, in_time))):
            return rounds, "stopped"
        if elapsed >= protocol.budget_s * len(take) and done > 1:
            return rounds, "time"


def rounds_needed(
    means: Sequence[Sequence[float]],
    calls: Sequence[int],
    reference: int,
    protocol: Protocol,
    exempt: Container[int] = (),
) -> int:
    """Estimate how many rounds it takes until the protocol is content; those done, if it is.

    Args:
        means: Each candidate's block means in milliseconds, one a round.
        calls: How many calls each has had.
        reference: The number of the candidate that latencies are relative to.
        protocol: What it asks for.
        exempt: See `interleave`.
    """
    needed = sorted(
        difference(of_one, means[reference]).rounds_needed(calls[number], protocol)
        for number, of_one in enumerate(means)
        if number not in exempt
    )
    # The reference, which is certain of itself, is one of them and counts for none.
    return needed[math.ceil(protocol.certain * (len(needed) - 1))]

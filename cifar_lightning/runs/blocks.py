"""Blocks of calls, the rounds that they make, and what they come to."""

import statistics
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from cifar_lightning.runs.gpu import GPUActivity
from cifar_lightning.runs.latency import (
    Count,
    Ended,
    LatencyStats,
    Milliseconds,
    Relative,
    Seconds,
)
from cifar_lightning.system.environment import DeviceState

PREEMPTED_ABOVE = 1.01  # wall time over processor time
DISTURBED_ABOVE = 0.5  # of a candidate's blocks, or of the rounds


@dataclass(frozen=True)
class Block:
    """Some calls of one candidate, one after the other.

    Attributes:
        calls_ms: Each call's duration, those discarded at the beginning left out.
        wall_s: Of the whole block, by the wall clock.
        cpu_s: Processor time of the calling thread meanwhile.
        switches: How often another process took the core away from it.
        steal_s: Time that other virtual machines took from the cores meanwhile.
        walls_ms: On CUDA, the same calls by the wall clock, synchronisation included.
    """

    calls_ms: Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=1)]
    wall_s: Seconds
    cpu_s: Seconds
    switches: Count = 0
    steal_s: Seconds = 0.0
    walls_ms: list[Milliseconds] = field(default_factory=list)

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(self.calls_ms)

    @property
    def preempted(self) -> bool:
        """Whether something else ran in its place, by its own evidence and never by its latency."""
        late = self.wall_s > PREEMPTED_ABOVE * self.cpu_s
        return late or self.switches > 0 or self.steal_s > 0


@dataclass(frozen=True)
class Round:
    """Each candidate's block once, in an order drawn for this round.

    Attributes:
        order: The candidates' numbers, as they were timed.
        blocks: By the candidates' numbers.
        states: Of a GPU, now and then between two blocks.
    """

    order: list[Count]
    blocks: list[Block]
    states: list[DeviceState] = field(default_factory=list)


@dataclass(frozen=True)
class Session:
    """What one process measured.

    Attributes:
        build_order: The candidates' numbers, in the order in which they were built.
        ended: Why it stopped.
    """

    build_order: list[Count]
    rounds: Annotated[list[Round], Meta(min_length=1)]
    ended: Ended

    def means_ms(self, number: int) -> list[float]:
        """List a candidate's block means, one a round."""
        return [one.blocks[number].mean_ms for one in self.rounds]

    def calls(self, number: int) -> int:
        """Count a candidate's calls."""
        return sum(len(one.blocks[number].calls_ms) for one in self.rounds)


@dataclass(frozen=True)
class Timing:
    """What a measurement takes from a benchmark's blocks; see `Measurement`."""

    latency: LatencyStats
    relative: Relative
    rounds: int
    ended: Ended
    converged: bool
    preempted: float
    wall: LatencyStats | None
    gpu: GPUActivity = field(default_factory=GPUActivity)

    @property
    def disturbances(self) -> list[str]:
        """What was in the way more often than not, for people."""
        found = []
        if self.preempted > DISTURBED_ABOVE:
            found.append(f"something else ran in {100 * self.preempted:.0f} % of its blocks")
        throttled = self.gpu.throttled
        if throttled is not None and throttled > DISTURBED_ABOVE:
            found.append(f"the GPU was throttled in {100 * throttled:.0f} % of the rounds")
        return found

    @property
    def disturbed(self) -> bool:
        return bool(self.disturbances)

"""What latencies are summed up in: the statistics of calls.

Light on imports, so that records of them can be read without torch.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from msgspec import Meta

from cifar_lightning.runs.paired import Difference

Milliseconds = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Ended = Literal["converged", "time", "few", "stopped"]
ENDED_BY: dict[Ended, str] = {
    "converged": "its rule",
    "time": "its time limit",
    "few": "itself as a look, by fewer than 3 processes,",
    "stopped": "a signal",
}
LESS: tuple[Ended, ...] = ("stopped", "few")  # what says less than all else, the least first


def worth(ended: Ended | None) -> int:
    """Sort benchmarks that say more last, by how they ended."""
    return LESS.index(ended) if ended in LESS else len(LESS)


LAUNCH_BOUND_ABOVE = 1.3  # a call over the device's own time
# The fewest samples from which a percentile is told: 99 % confidence (MLPerf LoadGen) and a margin
# of about the distance to 100 %. The figures for 95 and 99 are those of docs/latency.md.
MIN_SAMPLES = {50: 1, 90: 65, 95: 130, 99: 662}


@dataclass(frozen=True)
class LatencyStats:
    """What all calls say, in milliseconds. Percentiles are nearest-rank.

    Attributes:
        n: Number of calls; none is ever dropped.
    """

    n: Annotated[int, Meta(ge=1)]
    mean_ms: Annotated[float, Meta(gt=0)]
    std_ms: Milliseconds
    min_ms: Milliseconds
    p50_ms: Milliseconds
    max_ms: Milliseconds
    p90_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None

    @classmethod
    def from_samples(cls, samples_ms: Sequence[float]) -> Self:
        """Compute everything from the samples.

        Raises:
            ValueError: If there are fewer than two.
        """
        n = len(samples_ms)
        if n < 2:
            raise ValueError(f"{n} samples: must be 2 or more")
        ordered = sorted(samples_ms)

        def percentile(percent: int) -> float | None:
            rank = -(-percent * n // 100)  # integers: 0.95 * n can come out just too large
            return ordered[rank - 1] if n >= MIN_SAMPLES[percent] else None

        mean = statistics.fmean(ordered)
        return cls(
            n=n,
            mean_ms=mean,
            std_ms=statistics.stdev(ordered, mean),
            min_ms=ordered[0],
            p50_ms=ordered[-(-n // 2) - 1],
            max_ms=ordered[-1],
            p90_ms=percentile(90),
            p95_ms=percentile(95),
            p99_ms=percentile(99),
        )


@dataclass(frozen=True)
class Relative:
    """A latency over the reference's of the same benchmark, with its 95 % interval.

    Attributes:
        low: Lower end; None where it is not bounded.
        high: Upper end; None where it is not bounded.
    """

    centre: Annotated[float, Meta(gt=0)]
    low: Annotated[float, Meta(ge=0)] | None = None
    high: Annotated[float, Meta(gt=0)] | None = None

    @classmethod
    def of(cls, difference: Difference) -> Self:
        bounded = math.isfinite(difference.low) and math.isfinite(difference.high)
        centre, low, high = difference.ratio
        return cls(centre, low if bounded else None, high if bounded else None)


@dataclass(frozen=True)
class Launches:
    """What tells a GPU's work from the launching of it: milliseconds a call; None on a CPU.

    Attributes:
        enqueue_ms: Until the call returns, before the device has done it: the median.
        device_ms: Of the device alone, all launches queued before it began: the mean; None where a
            call waits for the device and can't be queued.
        graph_ms: A replay of the same call as a CUDA graph: the mean; None where it is no eager
            one, or can't be captured.
    """

    enqueue_ms: Milliseconds | None = None
    device_ms: Milliseconds | None = None
    graph_ms: Milliseconds | None = None

    def bind(self, call_ms: float) -> bool | None:
        """Tell whether in a call the device mostly waits for launches; None if it is not known."""
        return None if self.device_ms is None else call_ms > LAUNCH_BOUND_ABOVE * self.device_ms

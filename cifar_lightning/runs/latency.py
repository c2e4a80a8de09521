"""Statistics of latencies; light on imports, as records of them are read without torch."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from msgspec import Meta

from cifar_lightning.config.protocols import Protocol

Milliseconds = Annotated[float, Meta(ge=0)]
BLOCK = 50  # samples between two looks at the stopping rule; also the batch of the batch means
CONFIDENCE = 0.95
# The fewest samples from which a percentile is told: 99 % confidence (MLPerf LoadGen) and a margin
# of about the distance to 100 %. The figures for 95 and 99 are those of docs/latency.md.
MIN_SAMPLES = {50: 1, 90: 65, 95: 130, 99: 662}


@dataclass(frozen=True)
class LatencyStats:
    """What the samples say, in milliseconds. Percentiles are nearest-rank.

    Attributes:
        n: Number of samples; none is ever dropped.
        mean_ci_ms: Half width of the mean's 95 % confidence interval, from the means of blocks of
            50 (neighbouring samples are not independent); None below two blocks.
        p95_low_ms: Lower end of p95's 95 % confidence interval, an order statistic.
        p95_high_ms: Its upper end.
        converged: Whether both intervals became as narrow as the protocol asks.
    """

    n: Annotated[int, Meta(ge=1)]
    mean_ms: Milliseconds
    std_ms: Milliseconds
    min_ms: Milliseconds
    p50_ms: Milliseconds
    max_ms: Milliseconds
    converged: bool
    mean_ci_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p95_low_ms: Milliseconds | None = None
    p95_high_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None

    @classmethod
    def from_samples(cls, samples_ms: Sequence[float], protocol: Protocol) -> Self:
        """Compute everything from the samples, in the order in which they were taken.

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
        mean_ci = _mean_half_width(samples_ms)
        p95 = percentile(95)
        low, high = _percentile_interval(ordered, 0.95) if p95 is not None else (None, None)
        converged = (
            mean_ci is not None
            and mean_ci <= protocol.mean_tolerance * mean
            and p95 is not None
            and low is not None
            and high is not None
            and max(high - p95, p95 - low) <= protocol.p95_tolerance * p95
        )
        return cls(
            n=n,
            mean_ms=mean,
            mean_ci_ms=mean_ci,
            std_ms=statistics.stdev(ordered, mean),
            min_ms=ordered[0],
            p50_ms=ordered[-(-n // 2) - 1],
            p90_ms=percentile(90),
            p95_ms=p95,
            p95_low_ms=low,
            p95_high_ms=high,
            p99_ms=percentile(99),
            max_ms=ordered[-1],
            converged=converged,
        )


def _mean_half_width(samples: Sequence[float]) -> float | None:
    """Student's interval of the mean over the means of whole blocks."""
    from scipy.special import stdtrit  # heavy, and reading a record needs none of it

    blocks = len(samples) // BLOCK
    if blocks < 2:
        return None
    means = [statistics.fmean(samples[i * BLOCK : (i + 1) * BLOCK]) for i in range(blocks)]
    quantile = float(stdtrit(blocks - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(means) / math.sqrt(blocks)


def _percentile_interval(ordered: Sequence[float], p: float) -> tuple[float, float]:
    """Order statistics around a percentile, by the normal approximation of the binomial."""
    n = len(ordered)
    reach = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(n * p * (1 - p))
    low, high = math.floor(n * p - reach), math.ceil(n * p + reach)
    return ordered[max(low, 1) - 1], ordered[min(high, n) - 1]

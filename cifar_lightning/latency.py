"""How long one call takes: repeated timing until the figures are certain enough.

Pure measurement: takes a function without arguments, knows neither networks nor files. What is
done and why is told in ``docs/latency.md``.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from scipy.special import stdtrit

PROTOCOL_VERSION = 1
BLOCK = 50  # samples between two looks at the stopping rule; also the batch of the batch means
CONFIDENCE = 0.95

# The fewest samples from which a percentile is told: 99 % confidence (MLPerf LoadGen) and a margin
# of about the distance to 100 %. The figures for 95 and 99 are those of docs/latency.md.
MIN_SAMPLES = {50: 1, 90: 65, 95: 130, 99: 662}


@dataclass(frozen=True)
class Protocol:
    """When to start counting and when to stop.

    Attributes:
        name: Stands in the table.
        warmup_samples: At least so many calls before the first that counts.
        warmup_s: At least so long.
        warmup_max_s: At most so long, even if two successive medians of 50 still differ.
        warmup_tolerance: Relative difference of those medians that ends the warm-up.
        samples: At least so many samples.
        sampling_s: At least so long.
        sampling_max_s: At most so long, even if the intervals are still wider than they should be.
        mean_tolerance: Half width of the mean's confidence interval over the mean.
        p95_tolerance: The same for p95.
    """

    name: str
    warmup_samples: int = 50
    warmup_s: float = 1.0
    warmup_max_s: float = 10.0
    warmup_tolerance: float = 0.01
    samples: int = 1000
    sampling_s: float = 2.0
    sampling_max_s: float = 30.0
    mean_tolerance: float = 0.005
    p95_tolerance: float = 0.02


PROTOCOLS = {
    "full": Protocol("full"),
    # For tests and demonstrations: rough, and says so in the table.
    "quick": Protocol(
        "quick",
        warmup_s=0.1,
        warmup_max_s=1.0,
        samples=200,
        sampling_s=0.2,
        sampling_max_s=2.0,
        mean_tolerance=0.05,
        p95_tolerance=0.10,
    ),
}


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

    n: int
    mean_ms: float
    mean_ci_ms: float | None
    std_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p95_low_ms: float | None
    p95_high_ms: float | None
    p99_ms: float | None
    max_ms: float
    converged: bool

    @classmethod
    def from_samples(cls, samples_ms: Sequence[float], protocol: Protocol) -> Self:
        """Compute everything from the samples, in the order in which they were taken.

        Raises:
            ValueError: If there are fewer than two.
        """
        n = len(samples_ms)
        if n < 2:
            raise ValueError(f"{n} samples: allowed are 2 or more")
        ordered = sorted(samples_ms)

        def percentile(percent: int) -> float | None:
            rank = -(-percent * n // 100)  # whole numbers: 0.95 * n can come out just too large
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


@dataclass(frozen=True)
class Latency:
    """One measurement: the statistics and the samples they were made from.

    Attributes:
        wall: On CUDA, the same calls by the wall clock, synchronisation included.
    """

    stats: LatencyStats
    samples_ms: list[float]
    clock: str
    wall: LatencyStats | None = None


@dataclass(frozen=True)
class Difference:
    """How much longer the first of two calls takes than the second, measured in turns.

    Attributes:
        mean_ms: Mean of the paired differences.
        mean_ci_ms: Half width of its 95 % confidence interval.
        n: Number of pairs.
    """

    mean_ms: float
    mean_ci_ms: float
    n: int

    @property
    def tie(self) -> bool:
        """Whether the interval holds zero."""
        return abs(self.mean_ms) <= self.mean_ci_ms


def _mean_half_width(samples: Sequence[float]) -> float | None:
    """Student's interval of the mean over the means of whole blocks."""
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


def measure_latency(
    call: Callable[[], object],
    device: torch.device,
    protocol: Protocol,
    between: Callable[[], None] = lambda: None,
) -> Latency:
    """Time a call again and again on a device until its statistics are certain enough.

    On CUDA each call is timed by its own pair of events between two synchronisations; elsewhere
    by ``time.perf_counter_ns``. Garbage collection is off meanwhile.

    Args:
        call: Does the work once; its result is dropped.
        device: Where the work happens.
        protocol: When to start counting and when to stop.
        between: Called after every block of samples, outside what is timed: to watch the machine,
            or to raise an exception that ends the measurement.
    """
    walls: list[float] = []

    def take(count: int) -> list[float]:
        if device.type == "cuda":
            samples, wall = _time_with_events(call, device, count)
            walls.extend(wall)
        else:
            samples = _time_with_clock(call, device, count)
        between()
        return samples

    with _no_garbage_collection():
        warm_up(take, protocol)
        walls.clear()
        samples = collect(take, protocol)
    return Latency(
        LatencyStats.from_samples(samples, protocol),
        samples,
        clock="cuda_event" if device.type == "cuda" else "perf_counter",
        wall=LatencyStats.from_samples(walls, protocol) if walls else None,
    )


def compare_latencies(
    first: Callable[[], object],
    second: Callable[[], object],
    device: torch.device,
    protocol: Protocol,
    between: Callable[[], None] = lambda: None,
) -> Difference:
    """Time two calls in turns, so that whatever the machine does meets both alike.

    Who goes first changes with every pair. It stops by the protocol's rule for the mean, with the
    first call's mean as the measure of what is small.

    Args:
        first: Does the one work.
        second: Does the other.
        device: Where both happen.
        protocol: When to start counting and when to stop.
        between: Called after every block of pairs.
    """

    def once(call: Callable[[], object]) -> float:
        if device.type == "cuda":
            return _time_with_events(call, device, 1)[0][0]
        return _time_with_clock(call, device, 1)[0]

    firsts, differences = list[float](), list[float]()

    def take(count: int) -> list[float]:
        for index in range(count):
            if index % 2:
                b, a = once(second), once(first)
            else:
                a, b = once(first), once(second)
            firsts.append(a)
            differences.append(a - b)
        between()
        return firsts[-count:]

    with _no_garbage_collection():
        warm_up(take, protocol)
        firsts.clear()
        differences.clear()
        start = time.perf_counter()
        while True:
            take(BLOCK)
            elapsed = time.perf_counter() - start
            half = _mean_half_width(differences)
            if half is None:
                continue
            narrow = half <= protocol.mean_tolerance * statistics.fmean(firsts)
            enough = len(differences) >= protocol.samples and elapsed >= protocol.sampling_s
            if (enough and narrow) or elapsed >= protocol.sampling_max_s:
                return Difference(statistics.fmean(differences), half, len(differences))


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
        median = statistics.median(take(BLOCK))
        calls += BLOCK
        elapsed = now() - start
        steady = abs(median - before) <= protocol.warmup_tolerance * before
        enough = calls >= protocol.warmup_samples and elapsed >= protocol.warmup_s
        if (enough and steady) or elapsed >= protocol.warmup_max_s:
            return calls
        before = median


def collect(
    take: Callable[[int], list[float]],
    protocol: Protocol,
    now: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Take samples in blocks until their intervals are narrow enough or time is up.

    Args:
        take: Makes so many calls and returns their durations in milliseconds.
        protocol: Sets how many, how long and how narrow.
        now: Seconds on a clock.

    Returns:
        All samples in milliseconds, in order.
    """
    start, samples, next_look = now(), list[float](), protocol.samples
    while True:
        samples += take(BLOCK)
        elapsed = now() - start
        if elapsed >= protocol.sampling_max_s:
            return samples
        if elapsed >= protocol.sampling_s and len(samples) >= next_look:
            if LatencyStats.from_samples(samples, protocol).converged:
                return samples
            # Looking sorts all samples: at every block it would outweigh fast calls.
            next_look = max(len(samples) + BLOCK, round(1.1 * len(samples)))


def _time_with_clock(call: Callable[[], object], device: torch.device, count: int) -> list[float]:
    synchronize = torch.mps.synchronize if device.type == "mps" else _nothing
    samples = []
    for _ in range(count):
        synchronize()
        start = time.perf_counter_ns()
        call()
        synchronize()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples


def _nothing() -> None:
    """A CPU has finished when the call returns."""


def _time_with_events(
    call: Callable[[], object], device: torch.device, count: int
) -> tuple[list[float], list[float]]:
    """Time calls by events on the device and by the wall clock, both in milliseconds."""
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    walls = []
    with torch.cuda.device(device):
        for start, end in zip(starts, ends, strict=True):
            torch.cuda.synchronize()
            wall = time.perf_counter_ns()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            walls.append((time.perf_counter_ns() - wall) / 1e6)
    return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)], walls


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

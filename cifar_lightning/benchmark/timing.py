"""How long one call takes: repeated timing until the figures are certain enough.

Pure measurement: takes a function without arguments, knows neither networks nor files. What is
done and why is told in ``docs/latency.md``.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from cifar_lightning.config.protocols import Protocol
from cifar_lightning.runs.latency import BLOCK, LatencyStats


@dataclass(frozen=True)
class Latency:
    """One measurement: the statistics and the samples they were made from.

    Attributes:
        wall: On CUDA, the same calls by the wall clock, synchronisation included.
    """

    stats: LatencyStats
    samples_ms: list[float]
    wall: LatencyStats | None = None


def clock_of(device: torch.device) -> Literal["cuda_event", "perf_counter"]:
    """Tell what times calls on a device."""
    return "cuda_event" if device.type == "cuda" else "perf_counter"


def measure_latency(
    call: Callable[[], object],
    device: torch.device,
    protocol: Protocol,
    on_block_end: Callable[[], None] = lambda: None,
) -> Latency:
    """Time a call again and again on a device until its statistics are certain enough.

    On CUDA each call is timed by its own pair of events between two synchronisations; elsewhere
    by ``time.perf_counter_ns``. Garbage collection is off meanwhile.

    Args:
        call: Does the work once; its result is dropped.
        device: Where the work happens.
        protocol: When to start counting and when to stop.
        on_block_end: Called after every block of samples, outside what is timed: to watch the
            machine, or to raise an exception that ends the measurement.
    """
    walls: list[float] = []

    def take(count: int) -> list[float]:
        samples, wall = _time(call, device, count)
        walls.extend(wall)
        on_block_end()
        return samples

    with _no_garbage_collection():
        warm_up(take, protocol)
        walls.clear()
        samples = collect(take, protocol)
    return Latency(
        LatencyStats.from_samples(samples, protocol),
        samples,
        wall=LatencyStats.from_samples(walls, protocol) if walls else None,
    )


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


def _time(
    call: Callable[[], object], device: torch.device, count: int
) -> tuple[list[float], list[float]]:
    """Time calls in milliseconds: on CUDA by events, and by the wall clock beside."""
    walls = list[float]()
    if device.type != "cuda":
        for _ in range(count):
            if device.type == "mps":
                torch.mps.synchronize()
            start = time.perf_counter_ns()
            call()
            if device.type == "mps":
                torch.mps.synchronize()
            walls.append((time.perf_counter_ns() - start) / 1e6)
        return walls, []
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
    with torch.cuda.device(device):
        for begin, end in zip(starts, ends, strict=True):
            torch.cuda.synchronize()
            wall = time.perf_counter_ns()
            begin.record()
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

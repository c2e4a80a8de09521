"""How long calls take: one by one on a device's own clock, with the evidence of what else ran.

Pure measurement: takes a function without arguments, knows neither networks nor files. What is
done and why is told in ``docs/latency.md``.
"""

import resource
import time
from collections.abc import Callable
from typing import Literal

import torch

from cifar_lightning.runs.blocks import Block
from cifar_lightning.system.cores import steal_seconds

Clock = Literal["cuda_event", "perf_counter"]
Call = Callable[[], object]
# On systems without it, those of other threads count, too.
_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


def clock_of(device: torch.device) -> Clock:
    """Tell what times calls on a device."""
    return "cuda_event" if device.type == "cuda" else "perf_counter"


class Stopwatch:
    """Times calls on a device, in blocks.

    On CUDA each call is timed by its own pair of events between two synchronisations, from a pool
    whose events have been recorded before: an event is created when it is recorded first. What lies
    between the two is the device's work and its waiting for launches. Elsewhere each call is timed
    by ``time.perf_counter_ns``.

    Args:
        device: Where the work of the calls happens.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def block(self, call: Call, count: int, discarded: int = 0) -> Block:
        """Time calls, one after the other.

        Args:
            call: Does the work once; its result is dropped.
            count: How many.
            discarded: How many more come before them and don't count.
        """
        if self._device.type == "cuda":
            self._prepare_events(max(count, discarded))
        self._calls(call, discarded)
        self._synchronize()
        steal, switches, cpu, wall = (
            steal_seconds(),
            _switches(),
            time.thread_time(),
            time.perf_counter(),
        )
        walls, calls = self._calls(call, count)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        switches, steal = _switches() - switches, steal_seconds() - steal
        return Block(calls, wall, cpu, switches, max(0.0, steal), walls)

    def _calls(self, call: Call, count: int) -> tuple[list[float], list[float]]:
        """Give each call's duration by the wall clock, on CUDA only, and by the device's."""
        return self._on_cuda(call, count) if self._events else ([], self._here(call, count))

    def _here(self, call: Call, count: int) -> list[float]:
        durations = []
        for _ in range(count):
            start = time.perf_counter_ns()
            call()
            if self._device.type == "mps":
                torch.mps.synchronize()
            durations.append((time.perf_counter_ns() - start) / 1e6)
        return durations

    def _on_cuda(self, call: Call, count: int) -> tuple[list[float], list[float]]:
        walls = []
        for begin, end in self._events[:count]:
            torch.cuda.synchronize()
            start = time.perf_counter_ns()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            walls.append((time.perf_counter_ns() - start) / 1e6)
        return walls, [round(a.elapsed_time(b), 6) for a, b in self._events[:count]]

    def _prepare_events(self, count: int) -> None:
        """Make events where there are too few; the first recording of each creates it."""
        while len(self._events) < count:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            for event in pair:
                event.record()
            self._events.append(pair)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        elif self._device.type == "mps":
            torch.mps.synchronize()


def _switches() -> int:
    """Count how often this thread lost its core to another one."""
    return resource.getrusage(_THREAD).ru_nivcsw

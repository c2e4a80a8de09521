"""On a GPU, how long the device works and how long its work takes to be launched."""

import logging
import statistics
import time

import torch
from torch import Tensor

from cifar_lightning.benchmark.timing import Call, Stopwatch
from cifar_lightning.runs.latency import Launches
from cifar_lightning.variants.context import VariantContext
from cifar_lightning.variants.cuda_graph import capture

log = logging.getLogger(__name__)

CALLS = 20
FEWER = (CALLS, 10, 5, 2, 1)
REPEATS = 5  # the least counts: a process that shares the GPU only adds to it
MARGIN = 2  # the device sleeps so much longer than launching so many calls takes
CYCLES_PER_S = 2e9  # of a GPU's clock, about


def time_launches(call: Call, image: Tensor, prepared: VariantContext) -> Launches:
    """Time launching alone, the device alone, and a replay of the same pass as a CUDA graph.

    Args:
        call: One forward pass of the image.
        image: On the device.
        prepared: What is called, warm and switched.
    """
    enqueue_s = _enqueue_s(call)
    device_ms = _device_ms(call, enqueue_s)
    return Launches(1000 * enqueue_s, device_ms, _replayed_ms(image, prepared))


def _enqueue_s(call: Call) -> float:
    """Time a call until it returns, on a device that waits for it: a full queue would block it."""
    durations = []
    for _ in range(CALLS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(durations)


def _device_ms(call: Call, enqueue_s: float) -> float | None:
    """Time the device alone: while it sleeps, calls are queued, so none waits for its launch.

    Where it awoke before all were queued, fewer are: the driver's queue holds about a thousand
    launches, and whoever launches more has to wait. None where not even one call can be queued, as
    it waits for the device itself.
    """
    for calls in FEWER:
        tries = [_queued_ms(call, calls, enqueue_s) for _ in range(REPEATS)]
        if whole := [one for one in tries if one is not None]:
            return min(whole) / calls
    return None


def _queued_ms(call: Call, calls: int, enqueue_s: float) -> float | None:
    """Time calls that are queued behind a sleep; None where it ended before the last one was."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(MARGIN * CALLS * enqueue_s * CYCLES_PER_S))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    queued = not begin.query()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) if queued else None


def _replayed_ms(image: Tensor, prepared: VariantContext) -> float | None:
    if not prepared.eager:
        return None
    try:
        captured = capture(prepared.forward, image)
    except Exception as error:  # the measurement goes on; this only adds to it
        log.debug("the pass can't be captured", exc_info=error)
        return None
    return Stopwatch(image.device).block(captured.replay, CALLS, discarded=CALLS).mean_ms

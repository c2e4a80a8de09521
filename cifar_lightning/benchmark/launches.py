"""On a GPU, how long the device works and how long its work takes to be launched."""

import logging
import time

import torch
from torch import Tensor

from cifar_lightning.benchmark.timing import Call, Stopwatch
from cifar_lightning.runs.latency import Launches
from cifar_lightning.variants.context import VariantContext
from cifar_lightning.variants.cuda_graph import capture

log = logging.getLogger(__name__)

CALLS = 20  # small enough for the device's queue of launches
MARGIN = 2  # the device sleeps so much longer than launching took
CYCLES_PER_S = 2e9  # of a GPU's clock, about


def time_launches(call: Call, image: Tensor, prepared: VariantContext) -> Launches:
    """Time launching alone, the device alone, and a replay of the same pass as a CUDA graph.

    Args:
        call: One forward pass of the image.
        image: On the device.
        prepared: What is called, warm and switched.
    """
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    enqueue_s = time.perf_counter() - start
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(MARGIN * enqueue_s * CYCLES_PER_S))
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    torch.cuda.synchronize()
    device_ms = begin.elapsed_time(end) / CALLS
    return Launches(1000 * enqueue_s / CALLS, device_ms, _replayed_ms(image, prepared))


def _replayed_ms(image: Tensor, prepared: VariantContext) -> float | None:
    if not prepared.eager:
        return None
    try:
        captured = capture(prepared.forward, image)
    except Exception as error:  # the measurement goes on; this only adds to it
        log.debug("the pass can't be captured", exc_info=error)
        return None
    return Stopwatch(image.device).block(captured.replay, CALLS, discarded=CALLS).mean_ms

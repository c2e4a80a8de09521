"""A training beside another busy program: step times alone, busy from the start, busy later.

    python -m perf.busy            # about 6 minutes, on a machine that is otherwise idle

Each is measured with the runtime's own way of waiting and with `openmp_waiting.computing`,
interleaved.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn import functional

from cifar_lightning.models.mobilenet import mobilenet_v3_small
from cifar_lightning.system.openmp_waiting import computing
from perf.interleaved import conditions, interleave, table

ROUNDS = 7
SECONDS = 6.0  # of steps, each time
BATCH = 64


@contextmanager
def burner() -> Iterator[None]:
    """Keep one core busy by another process."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def training_step() -> Callable[[], None]:
    """Make a step of MobileNetV3-Small at output stride 16."""
    torch.manual_seed(0)
    network = mobilenet_v3_small(10, 16, 1.0, 0.2, 0.1, 1e-5).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def ms_a_step(step: Callable[[], None]) -> float:
    """Step for a while; the mean, as a training that has to wait for the slow ones, too."""
    start, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < SECONDS:
        step()
        steps += 1
    return 1e3 * elapsed / steps


def main() -> None:
    """Print the step times, and their ratios to those of a machine that is free."""
    step = training_step()
    for _ in range(10):
        step()

    def alone(ours: bool) -> float:
        with computing() if ours else nullcontext():
            return ms_a_step(step)

    def from_the_start(ours: bool) -> float:
        with burner(), computing() if ours else nullcontext():
            return ms_a_step(step)

    def later() -> float:
        with computing():
            ms_a_step(step)
            with burner():
                return ms_a_step(step)

    figures = interleave(
        {
            "alone, default": lambda: alone(False),
            "alone, adaptive": lambda: alone(True),
            "busy from the start, default": lambda: from_the_start(False),
            "busy from the start, adaptive": lambda: from_the_start(True),
            "busy later, adaptive": later,
        },
        ROUNDS,
    )
    print(table(figures, "ms a step", 1, "alone, default"))
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main()

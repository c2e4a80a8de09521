"""Images a second, and energy an image, of batches of 1 to 512 images on a GPU.

    python -m perf.gpu_batches [--backbones a,b] [--variants x,y] [--json FILE]

The images lie on the device, and calls are queued one after the other, as a server with enough to
do would. Each batch size has its windows of half a second, in random order, after it was warmed up.
Energy is the whole card's, by its own counter where it has one, else by its power; it is read
whenever the counter moves, so that a window begins and ends where the counter did.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cifar_lightning.benchmark.nvml import GPUMonitor, gpu_monitor
from cifar_lightning.variants.context import example_images
from perf.gpu_networks import (
    Builder,
    Network,
    Outcome,
    failed,
    prepare,
    synchronize,
    undisturbed,
)
from perf.gpu_table import Table, arguments, run

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
COMPILED_SIZES = (1, 8, 64, 512)  # each is compiled anew
BACKBONES = ("resnet8", "cifarnet", "mobilenetv3")
VARIANTS = ("fp32", "fused+fp16+channels_last+cuda_graph", "compile")
FIRST_CALLS = 5  # compile, record and replay
WARM_S = 0.2
CHUNK_S = 0.01  # of calls between two looks at clock and counter
WINDOW_S, WINDOWS = 0.5, 2


@dataclass(frozen=True)
class Energy:
    """Tells how much energy a GPU has taken.

    Attributes:
        source: ``counter``, ``power`` where only that is told, or None for neither.
        joules: Until now, from some moment on; None where nobody knows.
    """

    source: Literal["counter", "power"] | None
    joules: Callable[[], float | None]


def energy_of(device: torch.device) -> Energy:
    """Find out what tells a device's energy."""
    monitor = gpu_monitor(device) if device.type == "cuda" else "only a GPU tells"
    if isinstance(monitor, GPUMonitor):
        if monitor.energy_j() is not None:
            return Energy("counter", monitor.energy_j)
        if (watts := monitor.power_w()) is not None:
            return Energy("power", integrated(monitor.power_w, watts))
    return Energy(None, lambda: None)


def integrated(
    watts: Callable[[], float | None],
    first: float,
    now: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """Make joules of watts, which are taken as straight lines between two readings.

    Args:
        watts: Tells the power; where it tells None, the reading before counts on.
        first: The reading now.
        now: Seconds on a clock.
    """
    before, joules = (now(), first), 0.0

    def read() -> float:
        nonlocal before, joules
        told = watts()
        latest = now(), before[1] if told is None else told
        joules += (latest[0] - before[0]) * (latest[1] + before[1]) / 2
        before = latest
        return joules

    return read


@dataclass(frozen=True, kw_only=True)
class Row(Outcome):
    """The figures of a batch size of a variant of a backbone.

    Attributes:
        batch: Images a call; None where no size could be prepared.
        millijoules: Of an image; None where it is not told.
        windows: Images per second of each window.
    """

    batch: int | None = None
    images_per_s: float | None = None
    call_ms: float | None = None
    millijoules: float | None = None
    windows: list[float] = field(default_factory=list)


COLUMNS = {
    "Backbone": ("backbone", ""),
    "Variant": ("variant", ""),
    "Batch": ("batch", "d"),
    "Images/s": ("images_per_s", ",.0f"),
    "Call (ms)": ("call_ms", ".3f"),
    "Energy an image (mJ)": ("millijoules", ".4f"),
    "": ("remark", ""),
}


@dataclass
class Point:
    """A batch size that can be measured, and what was found until now."""

    network: Network
    images: Tensor
    chunk: int = 1
    calls: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    joules_calls: int = 0
    windows: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Make the calls that prepare something, and find out how many fit into a chunk."""
        with self.network.conditions():
            self._calls(FIRST_CALLS)
            begin, calls = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - begin) < WARM_S:
                self._calls(self.chunk)
                calls += self.chunk
        self.chunk = max(1, round(calls * CHUNK_S / elapsed))

    def measure(self, energy: Energy) -> None:
        """Make calls for the time of a window."""
        moved = list[tuple[int, float]]()  # after how many calls the counter stood where
        with self.network.conditions():
            self._calls(self.chunk)
            begin, calls = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - begin) < WINDOW_S:
                self._calls(self.chunk)
                calls += self.chunk
                joules = energy.joules()
                if joules is not None and (not moved or joules != moved[-1][1]):
                    moved.append((calls, joules))
        self.calls, self.seconds = self.calls + calls, self.seconds + elapsed
        self.windows.append(calls * len(self.images) / elapsed)
        if len(moved) > 2:  # the first reading is none of a counter that has just moved
            (first_calls, first), (last_calls, last) = moved[1], moved[-1]
            self.joules += last - first
            self.joules_calls += last_calls - first_calls

    def _calls(self, count: int) -> None:
        for _ in range(count):
            self.network.prepared.forward(self.images)
        synchronize(self.images.device)

    @property
    def row(self) -> Row:
        network, batch = self.network, len(self.images)
        millijoules = 1000 * self.joules / self.joules_calls / batch if self.joules_calls else None
        return Row(
            backbone=network.backbone,
            variant=network.variant,
            batch=batch,
            images_per_s=self.calls * batch / self.seconds,
            call_ms=1000 * self.seconds / self.calls,
            millijoules=millijoules,
            windows=self.windows,
        )


def rows(
    backbone: str,
    build: Builder,
    variants: Sequence[str],
    energy: Energy,
    device: torch.device,
) -> Iterator[Row]:
    """Measure all batch sizes of some variants in windows of random order."""
    points: list[Point] = []
    with ExitStack() as stack:
        for variant in variants:
            network = prepare(stack, backbone, build, variant, device)
            if isinstance(network, Outcome):
                yield Row(**vars(network))
                continue
            for batch in COMPILED_SIZES if compiled(variant) else SIZES:
                point = Point(network, example_images(batch, device))
                try:
                    point.warm_up()
                except Exception as error:  # the other sizes are measured all the same
                    failure = failed(backbone, variant, error, device)
                    yield Row(**vars(failure), batch=batch)
                    continue
                points.append(point)
        generator = random.Random(0)
        for _ in range(WINDOWS):
            for point in generator.sample(points, len(points)):
                point.measure(energy)
        yield from (point.row for point in points)


def compiled(variant: str) -> bool:
    """Tell whether each batch size of a variant has to be compiled."""
    return "compile" in variant


def main() -> None:
    """Print the table, or say why not."""
    told = arguments(__doc__, VARIANTS, BACKBONES)
    table = Table("Batch sizes", COLUMNS, told.json)
    energy = energy_of(told.device)
    table.conditions["energy"] = energy.source
    # What compiles comes last: it takes longest to prepare.
    kinds = [[one for one in told.variants if compiled(one) == late] for late in (False, True)]
    with undisturbed(told.device):
        table.begin(told.device)
        for variants in filter(None, kinds):
            for backbone, build in told.backbones.items():
                table.fill(rows(backbone, build, variants, energy, told.device))
        table.end(told.device)


if __name__ == "__main__":
    run(main)

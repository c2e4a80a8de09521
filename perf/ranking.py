"""Does a benchmark tell apart what differs, and only that? A hundred of them, on this machine.

    python -m perf.ranking                     # hours; the same command goes on
    python -m perf.ranking benchmarks=10       # fewer
    python -m perf.ranking folder=docs/results/ranking benchmarks=0    # only the tables

Every benchmark runs in fresh processes, every second one beside a program that burns a core for
random stretches, and leaves one file in the processor's folder. Six candidates: MobileNetV3-Small
with two values of dropout, which are two configurations of equal cost, in eager PyTorch and again
under ONNX Runtime; and twice the same network behind extra element-wise operations that cost about
2 and 3 %. Three pilots find how many those are. Where the mean over benchmarks is surely out of the
range that `perf.ranking_goals` asks for, there are more or fewer from then on, and that network's
benchmarks so far count no longer; their files stay.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cifar_lightning.benchmark.candidates import Source, references
from cifar_lightning.benchmark.processes import time_in_processes
from cifar_lightning.benchmark.record import record_of
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.models.mobilenet import mobilenet_v3_small
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.candidate import Candidate, recipe
from cifar_lightning.system.files import write_atomically
from cifar_lightning.system.openmp_waiting import computing
from cifar_lightning.system.processor import processor
from cifar_lightning.variants import registry
from perf.ranking_goals import (
    BENCHMARKS,
    EAGER,
    EXTRA,
    ONNX,
    Found,
    One,
    latest_operations,
    made_with,
    next_operations,
    read,
    rescaled,
    tables,
)

FOLDER = Path("outputs/ranking")
PILOT, PILOTS = 40, 3  # operations, and processes
STRETCHES_S = (1.0, 10.0)  # in which a core is burnt, and in which it is not


class Slowed(nn.Module):
    """A network behind operations that do nothing of use."""

    def __init__(self, network: nn.Module, operations: int) -> None:
        super().__init__()
        self.network, self.operations = network, operations

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.operations):
            images = images * 1.0
        logits: Tensor = self.network(images)
        return logits


@dataclass(frozen=True)
class Made(Source):
    """MobileNetV3-Small at output stride 8, with random weights, behind operations."""

    def build(self) -> nn.Module:
        """Build it as its candidate says."""
        torch.manual_seed(0)
        built = mobilenet_v3_small(10, 8, 1.0, self.candidate.model["dropout"], 0.1, 1e-5)
        operations = self.candidate.model["operations"]
        return (Slowed(built, operations) if operations else built).eval()


def source(label: str, variant: str, dropout: float, operations: int = 0) -> Source:
    """Make a candidate of random weights."""
    model = {"dropout": dropout, "operations": operations}
    made = Candidate(
        "candidate", label, label, model, variant, recipe(variant), registry.engines(variant), 1
    )
    return Made(made)


def benchmark(number: int, busy: bool, operations: dict[str, int]) -> One:
    """Run one benchmark, in fresh processes as ever."""
    pairs = {
        EAGER: (source("a", "fp32", 0.2), source("b", "fp32", 0.3)),
        ONNX: (source("a", "onnx", 0.2), source("b", "onnx", 0.3)),
    }
    extra = {name: source(name, "fp32", 0.2, count) for name, count in operations.items()}
    sources = [one for pair in pairs.values() for one in pair] + [*extra.values()]
    groups = [[one] for one in (*sources, *references(torch.device("cpu")))]
    start, began = time.perf_counter(), datetime.now(UTC)
    full, device = PROTOCOLS["full"], torch.device("cpu")
    protocol, seed, nowhere = full.in_each(full.processes), number * full.processes, (None, False)
    with computing(), burner(number) if busy else nullcontext():
        timed, failed = time_in_processes(full.processes, groups, device, protocol, seed, nowhere)
    assert not failed, failed
    assert not any(one.failures for one in timed), timed[0].failures
    record = record_of(f"ranking-{number}", began, "full", device, timed)
    numbers = {(one.label, one.variant): index for index, one in enumerate(record.candidates)}
    plain, reference = numbers["a", "fp32"], record.number("reference")
    return One(
        number=number,
        busy=busy,
        started=record.started,
        processor=record.environment.machine.processor.title,
        operations=operations,
        rounds=sum(len(one.rounds) for one in record.sessions),
        ended=record.ended,
        seconds=round(time.perf_counter() - start, 1),
        noise_floor_percent=percent(record.noise_floor.centre),
        relative={
            f"{one.label} {one.variant}": [
                round(float(np.median(means[:, index] / means[:, reference])), 5)
                for means in record.means
            ]
            for index, one in enumerate(record.candidates)
            if one.role != "reference"
        },
        pairs={
            EAGER: found(record, plain, numbers["b", "fp32"]),
            ONNX: found(record, numbers["a", "onnx"], numbers["b", "onnx"]),
            **{name: found(record, plain, numbers[name, "fp32"]) for name in extra},
        },
    )


def found(record: BenchmarkRecord, first: int, second: int) -> Found:
    """Compare two candidates by the very rule that a verdict uses."""
    one = record.difference(second, first)
    slower = record.slower(second, first)
    return Found(
        percent(one.centre),
        percent((one.high - one.low) / 2),
        slower or record.slower(first, second),
        slower,
    )


def percent(log: float) -> float:
    """Tell how much slower something is, of the logarithm of the ratio."""
    return round(100 * math.expm1(log), 3)


@contextmanager
def burner(seed: int) -> Iterator[None]:
    """Keep a core busy by another process, for random stretches."""
    program = (
        "import random, time\n"
        f"draw = random.Random({seed})\n"
        "while True:\n"
        f"    end = time.monotonic() + draw.uniform{STRETCHES_S}\n"
        "    while time.monotonic() < end: pass\n"
        f"    time.sleep(draw.uniform{STRETCHES_S})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def fresh(*arguments: str) -> None:
    """Run this module in a process of its own."""
    subprocess.run([sys.executable, "-m", "perf.ranking", *arguments], check=True)


def pilot(folder: Path) -> dict[str, int]:
    """Find how many operations cost as much as they should, by the mean of fresh processes."""
    found = []
    for number in range(PILOTS):
        path = folder / f"pilot-{number}.json"
        if not path.exists():
            operations = json.dumps({"pilot": PILOT})
            fresh(f"one={path}", f"number={number}", "busy=0", f"operations={operations}")
        found.append(json.loads(path.read_text())["pairs"]["pilot"]["percent"])
    cost = statistics.fmean(found)
    return {pair: rescaled(PILOT, cost, asked.costs) for pair, asked in EXTRA.items()}


def measure(folder: Path, wanted: int) -> None:
    """Measure until so many benchmarks count for every pair, each in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        ones = read(folder)
        operations = (
            {pair: next_operations(ones, pair) for pair in EXTRA} if ones else pilot(folder)
        )
        for pair, count in operations.items():
            if ones and (before := latest_operations(ones, pair)) != count:
                say(f"{pair}: {count} operations from now on; those of {before} miss their goal")
        done = min(len(made_with(ones, pair, count)) for pair, count in operations.items())
        if done >= wanted:
            return
        number = next(n for n in itertools.count(1) if not (folder / f"{n:03}.json").exists())
        fresh(
            f"one={folder / f'{number:03}.json'}",
            f"number={number}",
            f"busy={number % 2}",
            f"operations={json.dumps(operations)}",
        )
        say(f"{done + 1} of {wanted}")


def say(line: str) -> None:
    """Tell how far it is, beside the tables."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Measure what is missing, one process a benchmark, and print the tables."""
    given = dict(argument.split("=", 1) for argument in arguments)
    if "one" in given:
        number, busy = int(given["number"]), bool(int(given["busy"]))
        one = benchmark(number, busy, json.loads(given["operations"]))
        write_atomically(Path(given["one"]), json.dumps(asdict(one), indent=1) + "\n")
        return
    folder, wanted = Path(given.get("folder", FOLDER)), int(given.get("benchmarks", BENCHMARKS))
    if wanted:
        measure(folder / processor().slug, wanted)
    print(tables(read(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])

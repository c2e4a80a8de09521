"""Time an exported network in rounds against ResNet-8 in the same engine: python bench.py

Needs Python, numpy and the engine. Writes a measurement that `report` reads: copy it to the run's
folder, as outputs/runs/<run>/measurements. It is not ranked with those of `measure`.
"""

from __future__ import annotations  # a board's Python may be of 3.9

import argparse
import hashlib
import json
import math
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PROTOCOL = "bench"
BLOCK_S = 0.02  # so long takes a block of calls, on average
LOOKS = (126, 168, 224, 299, 398, 531, 708)  # rounds after which it looks whether to stop
TOLERANCE = 0.01  # half the width of the interval at which it stops, relative to its centre
WARM_UP_S = 1.0
PREEMPTED_ABOVE = 1.01  # wall time over processor time
MIN_SAMPLES = {50: 1, 90: 65, 95: 130, 99: 662}  # from which a percentile is told

Call = Callable[[Any], Any]
Load = Callable[[str, int], Call]


def time_block(call: Call, image: Any, count: int) -> tuple[list[float], bool]:
    """Time calls in milliseconds; tell whether something else ran in their place."""
    call(image)  # does not count
    wall, cpu, calls = time.perf_counter(), time.thread_time(), []
    for _ in range(count):
        start = time.perf_counter_ns()
        call(image)
        calls.append((time.perf_counter_ns() - start) / 1e6)
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    return calls, wall > PREEMPTED_ABOVE * cpu


def relative(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Tell a ratio of latencies with its 95 % interval, out of block means of the same rounds.

    The median, with an interval of order statistics that is wider where neighbouring rounds are
    alike (Geyer's initial positive sequence of the signs' autocorrelations).
    """
    logs = np.log(first) - np.log(second)
    n, ordered = len(logs), np.sort(logs)
    signs = np.sign(logs - np.median(ordered))
    total = 0.0
    for lag in range(1, n - 1, 2):
        pair = signs[lag:] @ signs[:-lag] + signs[lag + 1 :] @ signs[: -lag - 1]
        if pair <= 0:
            break
        total += float(pair / (signs @ signs))
    reach = statistics.NormalDist().inv_cdf(0.975) * math.sqrt(n * (1 + 2 * total)) / 2
    k = math.floor(n / 2 - reach)
    low, high = (ordered[k - 1], ordered[n - k]) if k >= 1 else (-math.inf, math.inf)
    return math.exp(np.median(ordered)), math.exp(low), math.exp(high)


def summed_up(calls: list[float]) -> dict[str, float | int | None]:
    """Sum up calls; percentiles are nearest-rank."""
    ordered, n = sorted(calls), len(calls)
    percentiles = {
        f"p{percent}_ms": ordered[-(-percent * n // 100) - 1] if n >= fewest else None
        for percent, fewest in MIN_SAMPLES.items()
    }
    ends = {"min_ms": ordered[0], "max_ms": ordered[-1]}
    spread = {"mean_ms": statistics.fmean(ordered), "std_ms": statistics.stdev(ordered)}
    return {"n": n, **spread, **ends, **percentiles}


def in_rounds(calls: tuple[Call, Call], image: Any, looks: tuple[int, ...]) -> dict[str, Any]:
    """Time the network and the reference in rounds: a block of each, in random order."""
    counts = []
    for call in calls:  # warmed up, which tells how many calls a block takes
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < WARM_UP_S or done < 2:
            call(image)
            done += 1
        counts.append(BLOCK_S * done / (time.perf_counter() - start))
    means: list[list[float]] = [[], []]
    samples: list[float] = []
    preempted = 0
    while True:
        for number in random.sample([0, 1], 2):
            count = max(1, round(counts[number] * random.uniform(0.8, 1.2)))
            block, disturbed = time_block(calls[number], image, count)
            means[number].append(statistics.fmean(block))
            if number == 0:
                samples += block
                preempted += disturbed
        rounds = len(means[0])
        if rounds in looks:
            centre, low, high = relative(*means)
            narrow = max(high / centre, centre / low if low else math.inf) <= 1 + TOLERANCE
            if narrow or rounds == looks[-1]:
                break
    share = preempted / rounds
    why = f"something else ran in {100 * share:.0f} % of its blocks" if share > 0.5 else None
    bounded = math.isfinite(high)
    return {
        "status": "disturbed" if why else "ok",
        "reason": why,
        "latency": summed_up(samples),
        "relative": {"centre": centre, **({"low": low, "high": high} if bounded else {})},
        "rounds": rounds,
        "ended": "converged" if narrow else "time",
        "converged": narrow,
        "preempted": share,
    }


def this_machine(packages: list[str]) -> dict[str, Any]:
    """Describe the machine and the versions, as far as they are told."""
    told = ""
    for path in ("/proc/device-tree/model", "/proc/cpuinfo"):
        if not told and Path(path).is_file():
            text = Path(path).read_text(errors="replace").strip("\0\n ")
            named = re.search(r"^(?:model name|Model)\s*:\s*(\S.*)$", text, re.M)
            told = named[1] if named else "" if path.endswith("cpuinfo") else text
    name = told or platform.processor() or platform.machine() or "unknown"
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    engines = {}
    for package in packages:
        try:
            engines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            engines[package] = "unknown"
    system = f"{platform.system()} {platform.machine()}"
    machine = {"system": system, "processor": {"name": name}, "cores": os.cpu_count()}
    return {
        "device": name[:250],
        "hardware": re.sub(r"[^a-z0-9]+", "-", name.lower())[:150].strip("-") or "unknown",
        "engines": engines,
        "environment": {"versions": versions | engines, "machine": machine},
    }


def measure(told: dict[str, Any], load: Load, threads: int, looks: tuple[int, ...]) -> Path:
    """Time one exported network, show the result, and write its measurement."""
    first, reference = HERE / told["files"][0], HERE / told["reference"][0]
    for name, digest in told["measurement"]["files"].items():
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"error: {HERE / name}: not the file that was exported")
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    start = time.perf_counter()
    network = load(str(first), threads)
    prepared = time.perf_counter()
    network(image)
    first_call = 1000 * (time.perf_counter() - prepared)
    found = in_rounds((network, load(str(reference), threads)), image, looks)
    record = told["measurement"] | this_machine(told["packages"]) | found
    record |= {"threads": threads, "preparation_s": prepared - start, "first_call_ms": first_call}
    unchecked = None if record["test_acc"] is not None else "accuracy not checked"
    record["reason"] = "; ".join(filter(None, (record["reason"], unchecked))) or None
    name = f"{record['variant']}@{record['hardware']}-t{threads}-{PROTOCOL}.json"
    (HERE / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ratio, latency = found["relative"], found["latency"]
    interval = f" ({ratio['low']:.3f} to {ratio['high']:.3f})" if "low" in ratio else ""
    print(
        f"{first.name}: {latency['mean_ms']:.3f} ms an image, {ratio['centre']:.3f}{interval} of "
        f"ResNet-8's in the same engine; {found['rounds']} rounds, {found['status']}\n{HERE / name}"
    )
    return HERE / name


def main(loads: dict[str, Load], looks: tuple[int, ...] = LOOKS) -> None:
    """Time what was exported to this folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", nargs="*", help="of those exported here; all of them if none")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    given = parser.parse_args()
    told = {
        path.stem.removeprefix("model-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(HERE.glob("model-*.json"))
    }
    for name in given.format or told:
        if name not in told:
            sys.exit(f"error: {name}: must be one of {', '.join(told)}, the formats in {HERE}")
        try:
            measure(told[name], loads[told[name]["load"]], given.threads, looks)
        except ImportError as error:
            packages = " ".join(["numpy", *told[name]["packages"]])
            sys.exit(f"error: {name} needs {error.name}: pip install {packages}")

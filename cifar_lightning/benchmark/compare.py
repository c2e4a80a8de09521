"""Timing the networks of several runs in turns."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch

from cifar_lightning.benchmark.contention import DISTURBED_ABOVE, Load, device_lock
from cifar_lightning.benchmark.evaluate import calibration
from cifar_lightning.benchmark.load import load_backbone, load_data
from cifar_lightning.benchmark.measure import BenchmarkSpec, new_measurement
from cifar_lightning.benchmark.timing import compare_latencies
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.errors import CifarLightningError, RunFailed, bad_value, reason_of
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.markdown import draw_table
from cifar_lightning.runs.measurement import Measurement, Repeat
from cifar_lightning.system import signals
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.system.devices import hardware_slug
from cifar_lightning.system.openmp_waiting import as_by_default
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Unsupported, example_images

log = logging.getLogger(__name__)


def measure_repeatedly(
    folder: Path, spec: BenchmarkSpec, device: torch.device, repeats: int, data_root: str | None
) -> list[Measurement]:
    """Measure in fresh processes, and keep the median one with all their figures."""
    names = ",".join(f"'{name}'" for name in spec.variants)
    arguments = [
        f"variants=[{names}]",
        f"threads=[{','.join(map(str, spec.threads))}]",
        f"protocol={spec.protocol}",
        f"device={device}",
    ]
    if data_root is not None:
        arguments.append(f"data_root='{data_root}'")
    taken: dict[str, list[Measurement]] = {}
    for number in range(repeats):
        log.info("process %d of %d", number + 1, repeats)
        # Of a copy of the run, so that whatever ends it leaves the run's own measurements alone.
        with tempfile.TemporaryDirectory() as temporary:
            copy = RunFolder.of(Path(temporary), folder.name)
            copy.path.mkdir(parents=True)
            shutil.copy(RunFolder(folder).record, copy.record)
            shutil.copy(RunFolder(folder).weights, copy.weights)
            reason = _measured_apart([f"run='{copy.path}'", *arguments])
            for name, threads in spec.combinations(device):
                path = copy.measurement(name, hardware_slug(device), threads, spec.protocol)
                if not path.exists():
                    raise RunFailed(f"a measuring process ended early: {reason}")
                taken.setdefault(path.name, []).append(Measurement.read(path))
    chosen = [_median_of(measurements) for measurements in taken.values()]
    for measurement in chosen:
        new_measurement(folder, measurement)
    return chosen


def _measured_apart(arguments: list[str]) -> str:
    """Measure in a process of its own; return its last words.

    Raises:
        Interrupted: If a signal has come, which is passed on.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning.measure", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while True:
            with suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=0.2)
                break
            if signals.received() is not None:
                process.terminate()
    signals.check()
    return (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]


def _median_of(measurements: list[Measurement]) -> Measurement:
    """Keep the measurement with the median mean, with every process's figures in it."""
    timed = sorted(
        ((m.latency, m) for m in measurements if m.latency), key=lambda pair: pair[0].mean_ms
    )
    if not timed:
        return measurements[-1]
    figures = [Repeat(one.mean_ms, one.p50_ms, one.p95_ms) for one, _ in timed]
    return replace(timed[len(timed) // 2][1], repeats=figures)


def compare(
    folders: Sequence[Path], spec: BenchmarkSpec, device: torch.device, data_root: str | None = None
) -> str:
    """Time the networks of several runs in turns, and draw each pair's difference as a table."""
    difference = ("First minus second (ms)", "95 % interval")
    header = ("First", "Second", "Variant", "Threads", *difference, "n", "Faster")
    lines: list[tuple[str, ...]] = []
    protocol = PROTOCOLS[spec.protocol]
    labels = [load_run(folder).label for folder in folders]
    if len({*labels}) < len(labels):  # such as the seeds of one ID
        labels = [folder.name for folder in folders]
    images = [load_data(folder, data_root) for folder in folders]
    image = example_images(1, device)
    for name, threads in spec.combinations(device):
        with torch.inference_mode(mode=False), ExitStack() as stack:
            stack.enter_context(device_lock(device))
            stack.enter_context(torch_threads(threads))
            calls = []
            for label, folder, data in zip(labels, folders, images, strict=True):
                try:
                    prepared = stack.enter_context(
                        registry.prepare(
                            name,
                            load_backbone(folder),
                            device,
                            lambda data=data: calibration(data),  # type: ignore[misc]
                        )
                    )
                except Unsupported as error:
                    raise bad_value(
                        "variants", name, f"what this device can run: {error}"
                    ) from error
                except CifarLightningError:
                    raise
                except Exception as error:
                    raise RunFailed(f"{label}, {name}: {reason_of(error)}") from error
                calls.append(lambda forward=prepared.forward: forward(image))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(as_by_default())
            for first, second in combinations(range(len(calls)), 2):
                load = Load(device)
                found = compare_latencies(
                    calls[first], calls[second], device, protocol, load.on_block_end
                )
                low, high = found.mean_ms - found.mean_ci_ms, found.mean_ms + found.mean_ci_ms
                faster = labels[first] if found.mean_ms < 0 else labels[second]
                verdict = "tie" if found.tie else faster
                if (load.mean or 0) > DISTURBED_ABOVE:
                    verdict += " (disturbed)"
                difference = (f"{found.mean_ms:+.4f}", f"{low:+.4f} to {high:+.4f}")
                pair = (labels[first], labels[second], name, str(threads))
                lines.append((*pair, *difference, str(found.n), verdict))
    return draw_table(header, lines, {3, 4, 6})

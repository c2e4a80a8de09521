"""Measure a trained run: each variant's accuracy, latency and size, recorded as JSON.

    python -m cifar_lightning.measure run=B1 'variants=[fp32,fused,onnx]'

does it in a fresh process, without training; ``run=A,B`` tells which of two networks is faster by
timing them in turns.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cifar_lightning.benchmark.compare import compare, measure_repeatedly
from cifar_lightning.benchmark.load import load_backbone, load_data
from cifar_lightning.benchmark.measure import BenchmarkSpec, measure
from cifar_lightning.cli.command import command
from cifar_lightning.comparison.publish import publish
from cifar_lightning.config.schema import MeasureConfig
from cifar_lightning.errors import RunFailed, bad_value
from cifar_lightning.runs.find import find_run
from cifar_lightning.system import signals
from cifar_lightning.system.devices import find_device
from cifar_lightning.system.openmp_waiting import computing

log = logging.getLogger(__name__)


@command("measure", MeasureConfig)
def main(config: MeasureConfig) -> None:
    """Measure a finished run and show its rows, or compare several."""
    spec = BenchmarkSpec(config.variants, config.threads, config.protocol).checked()
    device = find_device(config.device)
    outputs = Path(config.outputs)
    folders = [find_run(outputs, query) for query in config.run]
    with signals.deferred(), computing():
        if len(folders) > 1:
            if config.repeats > 1:
                raise bad_value("repeats", config.repeats, "1 where runs are compared")
            log.info("\n%s", compare(folders, spec, device, config.data_root))
            return
        (folder,) = folders
        data = load_data(folder, config.data_root)
        load_backbone(folder)
        if config.repeats > 1:
            measurements = measure_repeatedly(
                folder, spec, device, config.repeats, config.data_root
            )
        else:
            measurements = measure(folder, data, spec, device)
        failed = [f"{one.variant}: failed: {one.reason}" for one in measurements if one.failed]
        failed += publish(outputs, [folder], draw=True)
    if failed:
        raise RunFailed("\n".join(failed))

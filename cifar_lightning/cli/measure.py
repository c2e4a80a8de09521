"""Measure a trained run: each variant's accuracy, latency and size, recorded as JSON.

    python -m cifar_lightning.measure run=B1 'variants=[fp32,fused,onnx]'

does it in a fresh process, without training; ``run=A,B`` measures one run after the other.
"""

from pathlib import Path

from cifar_lightning.benchmark.load import load_backbone, load_data
from cifar_lightning.benchmark.measure import BenchmarkSpec, measure
from cifar_lightning.cli.command import command
from cifar_lightning.comparison.publish import publish
from cifar_lightning.config.schema import MeasureConfig
from cifar_lightning.errors import RunFailed
from cifar_lightning.runs.find import find_run
from cifar_lightning.system import signals
from cifar_lightning.system.devices import find_device
from cifar_lightning.system.openmp_waiting import computing


@command("measure", MeasureConfig)
def main(config: MeasureConfig) -> None:
    """Measure finished runs and show their rows."""
    spec = BenchmarkSpec(config.variants, config.threads, config.protocol).checked()
    device = find_device(config.device)
    outputs = Path(config.outputs)
    folders = [find_run(outputs, query) for query in config.run]
    with signals.deferred(), computing():
        data = [load_data(folder, config.data_root) for folder in folders]
        for folder in folders:
            load_backbone(folder)  # so that a mistake ends it before anything is measured
        measurements = [
            measurement
            for folder, images in zip(folders, data, strict=True)
            for measurement in measure(folder, images, spec, device)
        ]
        failed = [f"{one.variant}: failed: {one.reason}" for one in measurements if one.failed]
        failed += publish(outputs, folders, draw=True)
    if failed:
        raise RunFailed("\n".join(failed))

"""Measure trained runs: accuracy, latency and size under each variant, recorded as JSON.

    python -m cifar_lightning.measure run=B1 'variants=[fp32,fused,onnx]'

does it without training; ``run=A,B,C`` and ``run=all`` tell which of several is faster, and
``'model=[resnet8,mobilenetv3]'`` which network would be, before any is trained.
"""

import logging
from functools import partial
from pathlib import Path

from cifar_lightning.benchmark.candidates import (
    BenchmarkSpec,
    check_named,
    of_network,
    of_run,
    of_weights,
)
from cifar_lightning.benchmark.load import RunData, find_measurable
from cifar_lightning.benchmark.measure import Measured, measure, measured_here
from cifar_lightning.benchmark.summary import summary
from cifar_lightning.cli.command import command
from cifar_lightning.comparison.publish import publish
from cifar_lightning.config.schema import MeasureConfig
from cifar_lightning.errors import DeviceLost, RunFailed, UserError
from cifar_lightning.runs.find import is_weights
from cifar_lightning.runs.ownership import check_measurable
from cifar_lightning.system import signals
from cifar_lightning.system.devices import find_device, hardware_slug
from cifar_lightning.system.openmp_waiting import computing

log = logging.getLogger(__name__)


@command("measure", MeasureConfig)
def main(config: MeasureConfig) -> None:
    """Measure runs, or networks without any, beside each other; show what came out."""
    if not config.run and not config.networks:
        raise UserError("run: needs a value, say run=B1, run=all or 'model=[resnet8]'")
    spec = BenchmarkSpec(config.variants, config.threads, config.protocol).checked()
    device, outputs = find_device(config.device), Path(config.outputs)
    data = RunData(config.data_root, check=config.data_check)
    weights = [Path(query) for query in config.run if is_weights(query)]
    runs = [query for query in config.run if not is_weights(query)]
    for name in config.networks:
        check_named(name)
    folders = find_measurable(outputs, runs, data)  # a signal ends it at once
    check_measurable(outputs, folders)
    with signals.deferred(), computing():
        sources = [
            made(variant, threads)
            for made in [
                *(partial(of_run, folder) for folder in folders),
                *(partial(of_weights, path) for path in weights),
                *(partial(of_network, name) for name in config.networks),
            ]
            for variant, threads in spec.combinations(device)
        ]
        if not config.rerun:
            missing = [
                one for one in sources if not measured_here(one, device, spec.protocol, outputs)
            ]
            log.info("measured here before: %d of %d", len(sources) - len(missing), len(sources))
            sources = missing
        try:
            measured = measure(sources, spec, device, outputs, data, config.processes)
            failed = measured.failed
        except DeviceLost as error:
            measured, failed = Measured(), [str(error)]
        if folders:
            failed += publish(outputs, folders, draw=True, hardware=hardware_slug(device))
        if measured.record is not None:
            log.info("\n%s", summary(measured.record, measured.failures))
    signals.check()
    if failed:
        raise RunFailed("\n".join(failed))

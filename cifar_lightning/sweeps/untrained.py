"""The latency of networks before any training."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from cifar_lightning.benchmark.candidates import REFERENCE, BenchmarkSpec, Source, of_network
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.benchmark.measure import measure
from cifar_lightning.errors import UserError
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.timed_before import measured_before
from cifar_lightning.sweeps.found import Timed
from cifar_lightning.system import signals
from cifar_lightning.system.devices import hardware_slug
from cifar_lightning.system.openmp_waiting import computing

log = logging.getLogger(__name__)

PROTOCOL = "quick"  # it chooses what is trained; what is ranked is measured in full


def time_untrained(
    sources: Mapping[int, Source], spec: BenchmarkSpec, device: torch.device, outputs: Path
) -> dict[int, Timed]:
    """Measure networks beside each other, as far as they were not in these outputs.

    ResNet-8 in the same variant is measured with them: where it can't be, the variant can't.

    Args:
        sources: By the trials' numbers.
        spec: Of one variant and one number of threads.
        device: Where.
        outputs: Where the benchmark is recorded.

    Returns:
        Latencies by the trials' numbers; a network that can't be timed is left out.

    Raises:
        UserError: If the variant can't be had here.
        Interrupted: If a signal came.
    """
    keys = {one.candidate.key for one in sources.values()}
    records = measured_before(outputs, keys, hardware_slug(device), PROTOCOL)
    missing = [one for one in sources.values() if one.candidate.key not in records]
    if missing:
        (variant,), (threads,) = spec.variants, spec.threads
        resnet8 = of_network(REFERENCE, variant, threads)
        with signals.deferred(), computing():
            measured = measure([resnet8, *missing], spec, device, outputs, RunData())
        signals.check()
        for failure in measured.failures:
            if failure.candidate.key == resnet8.candidate.key:
                raise UserError(f"variant={variant}: {failure.reason}", "variant")
            log.warning("%s: %s", failure.candidate.label, failure.reason)
        if measured.record is not None:
            records |= dict.fromkeys(keys - {*records}, measured.record)
    timed = {}
    for number, source in sources.items():
        with suppress(KeyError):  # it could not be timed
            timed[number] = _timed(records[source.candidate.key], source.candidate.key)
    return timed


def _timed(record: BenchmarkRecord, key: str) -> Timed:
    numbers = {record.candidates[number].key: number for number in record.ranked}
    timing, floor_ms = record.timing(numbers[key]), record.floor_ms(numbers[key])
    relative, mean_ms = timing.relative, timing.latency.mean_ms
    return Timed(relative.centre, relative.low, relative.high, mean_ms, record.id, floor_ms)

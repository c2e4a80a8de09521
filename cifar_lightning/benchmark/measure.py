"""Measuring runs: accuracy, latency and size of their candidates, recorded as JSON."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from cifar_lightning.benchmark.accuracy import Accuracies, evaluated
from cifar_lightning.benchmark.alike import by_weights, checks, grouped, keyed, timeable
from cifar_lightning.benchmark.candidates import BenchmarkSpec, Source, of_run
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.benchmark.measurements import write_measurements
from cifar_lightning.benchmark.prepare import Failure
from cifar_lightning.benchmark.record import told_apart
from cifar_lightning.benchmark.together import Groups, time_together
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.errors import Interrupted, RunFailed
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.latency import LESS
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.shown import is_recorded
from cifar_lightning.runs.timed_before import measured_before
from cifar_lightning.system.devices import hardware_slug
from cifar_lightning.system.formatting import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What measuring gave.

    Attributes:
        measurements: In the order asked for.
        record: Of the benchmark; None where nothing was timed.
        failures: Of networks without a run.
        error: Why a measuring process failed, after others had measured; empty if none did.
    """

    measurements: list[Measurement] = field(default_factory=list)
    record: BenchmarkRecord | None = None
    failures: list[Failure] = field(default_factory=list)
    error: str = ""

    @property
    def failed(self) -> list[str]:
        """What failed, a line each; what this device can't run is no failure."""
        ones = [(one.run, one.variant, one.status, one.reason) for one in self.measurements]
        ones += [
            (one.candidate.label, one.candidate.variant, one.status, one.reason)
            for one in self.failures
        ]
        told = [
            f"{whose}, {variant}: failed: {reason}"
            for whose, variant, status, reason in ones
            if status == "failed"
        ]
        return [*filter(None, [self.error]), *told]


def measure_missing(
    folders: Sequence[Path], spec: BenchmarkSpec, device: torch.device, outputs: Path, data: RunData
) -> Measured:
    """Measure what runs have no measurement of here; a candidate that was timed is not again.

    Args:
        folders: The runs'.
        spec: What they should have.
        device: Where.
        outputs: Where the benchmark is recorded, and earlier ones are.
        data: Of the runs.

    Returns:
        The measurements made, which are also written, and what was timed.

    Raises:
        Interrupted: If a signal came before there was anything to keep.
    """
    on_gpu = device.type == "cuda"
    missing = [
        of_run(folder, variant, threads)
        for folder in folders
        for variant, threads in spec.combinations(device)
        if not Measurement.exists(folder, variant, threads, spec.protocol, on_gpu=on_gpu)
    ]
    if not missing:
        return Measured()
    accuracies = Accuracies(data, device)
    keys = {source.candidate.key for source in missing}
    records = measured_before(outputs, keys, hardware_slug(device), spec.protocol)
    known = [source for source in missing if source.candidate.key in records]
    if known:
        log.info("timed before: %d of %s", len(known), counted(len(missing), "candidate"))
    found = [
        made
        for source in evaluated(known)
        for made in write_measurements([source], records[source.candidate.key], [], accuracies)
    ]
    rest = [source for source in missing if source not in known]
    measured = measure(rest, spec, device, outputs, data)
    return replace(measured, measurements=found + measured.measurements)


def measured_here(source: Source, device: torch.device, protocol: str, outputs: Path) -> bool:
    """Tell whether a run has a measurement of exactly this candidate on this device.

    Its benchmark has to be in these outputs: another machine may have the same processor.
    """
    if source.folder is None:
        return False
    found, _ = Measurement.read_all(source.folder, load_run(source.folder))
    keys = {source.candidate.key, replace(source.candidate, by_weights=True).key}
    alike = [one for one in found if one.candidate in keys and one.counts_for(protocol)]
    here = [one for one in alike if one.hardware == hardware_slug(device)]
    return any(is_recorded(one, outputs) for one in here)


def measure(
    sources: Sequence[Source],
    spec: BenchmarkSpec,
    device: torch.device,
    outputs: Path,
    data: RunData,
    processes: int | None = None,
) -> Measured:
    """Time candidates beside each other, evaluate their accuracy, and record both.

    A variant that this device can't run, or that fails, gives a measurement that says so. A signal
    ends it after the current round; what was measured until then is recorded.

    Args:
        sources: What to measure; those that execute alike are timed once.
        spec: Gives the protocol.
        device: Where.
        outputs: Where the benchmark is recorded.
        data: Of the runs.
        processes: How many fresh ones share the rounds; 1 is this one; None: the protocol's.

    Raises:
        Interrupted: If a signal came before there was anything to keep.
        DeviceLost: If an error left the device of no use.
    """
    if not sources:
        return Measured()
    processes = processes or PROTOCOLS[spec.protocol].processes
    groups = timeable(grouped(sources))
    accuracies = Accuracies(data, device)
    # The first of a group is evaluated when it is ready to be timed, unless that is elsewhere.
    now = [source for group in groups for source in (group if processes > 1 else group[1:])]
    for source in evaluated([source for source in now if source.folder is not None]):
        accuracies.of(source)
    timed = partial(
        time_together,
        spec=spec,
        device=device,
        outputs=outputs,
        data=data,
        processes=processes,
        accuracies=accuracies,
    )
    first = timed([*groups, *checks(groups)])
    recorded, error = [(first, groups)], first.error
    if (suspects := told_apart(first.record)) and first.record.ended not in LESS:
        # Noise does that once in a while, but hardly twice.
        split = {key: by_weights(group) for key, group in keyed(groups) if key in suspects}
        parts = {key: split.get(key, [group]) for key, group in keyed(groups)}
        try:
            again = timed([part for of_one in parts.values() for part in of_one])
        except Interrupted:
            pass  # the first one tells no parts apart
        except RunFailed as failed:
            error = str(failed)
        else:
            error = again.error
            noise = [key for key, of_one in split.items() if not _tells_apart(again.record, of_one)]
            if len(noise) < len(split):
                # What noise told apart is one candidate in the first benchmark alone.
                later = [part for key in parts if key not in noise for part in parts[key]]
                merged = [group for key, group in keyed(groups) if key in noise]
                recorded = [(first, merged), (again, later)]
    written = [
        measurement
        for of_these, ones in recorded
        for measurement in write_measurements(
            [source for group in ones for source in group],
            of_these.record,
            of_these.failures,
            accuracies,
        )
    ]
    # Those that no run's measurement tells; each process has its own.
    told = {
        source.candidate.key
        for _, ones in recorded
        for group in ones
        for source in group
        if source.folder is not None
    }
    last, _ = recorded[-1]
    failures = {one.candidate.key: one for one in last.failures if one.candidate.key not in told}
    return Measured(written, last.record, [*failures.values()], error)


def _tells_apart(record: BenchmarkRecord, parts: Groups) -> bool:
    """Tell whether candidates' latencies depend on their weights, and say so."""
    if not record.tells_apart(*(part[0].candidate.key for part in parts[:2])):
        return False
    ones = [source.candidate for part in parts for source in part]
    log.warning(
        "%s, %s: the latency of %s depends on the weights; each is a candidate of its own",
        ones[0].network,
        ones[0].variant,
        ", ".join(one.label for one in ones),
    )
    return True

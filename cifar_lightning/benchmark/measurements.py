"""The measurements of runs, out of a benchmark's record and what was evaluated."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cifar_lightning.benchmark.accuracy import Accuracies
from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.prepare import Failure
from cifar_lightning.errors import Interrupted
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.latency import worth
from cifar_lightning.runs.measurement import Measurement

log = logging.getLogger(__name__)


def write_measurements(
    sources: Sequence[Source],
    record: BenchmarkRecord,
    failures: Sequence[Failure],
    accuracies: Accuracies,
) -> list[Measurement]:
    """Make and write the measurement of each run's candidate.

    Args:
        sources: The candidates; those of no run have no measurement.
        record: Of the benchmark.
        failures: Why candidates are not in it.
        accuracies: What is known of their accuracy; what is not is evaluated.
    """
    timed = {record.candidates[number].key: number for number in record.ranked}
    failed = {one.candidate.key: one for one in failures if one.candidate.role == "candidate"}
    made = []
    for source in sources:
        key = source.candidate.key
        if source.folder is None:
            continue
        if key in failed:
            measurement = _blank(source, record, failed[key].status, failed[key].reason)
        elif key not in timed:
            continue
        else:
            try:
                measurement = _of(source, record, timed[key], accuracies)
            except Interrupted:
                continue  # what was evaluated before is kept
        made.append(measurement)
        kept = new_measurement(source.folder, measurement)
        stays = "; the earlier measurement stays" if kept else ""
        name, status = measurement.variant, measurement.status
        if not measurement.has_figures:
            log.info("%s is %s: %s%s", name, status, measurement.reason, stays)
        elif kept:
            few = measurement.ended == "few"
            how = "timed in few processes" if few else "not timed to the end"
            log.info("%s of %s was %s%s", name, measurement.run, how, stays)
    return made


def new_measurement(folder: Path, measurement: Measurement) -> bool:
    """Write a measurement down, but none in place of one that says more.

    Those without figures say nothing, and those of a stopped benchmark, or of few processes, less
    than others.

    Returns:
        Whether an earlier one of the same weights was kept.
    """
    with suppress(OSError, ValueError):
        earlier = Measurement.read(measurement.path(folder))
        of_these = (earlier.weights, earlier.recipe) == (measurement.weights, measurement.recipe)
        of_one_rule = earlier.protocol_version == measurement.protocol_version
        less = of_one_rule and worth(measurement.ended) < worth(earlier.ended)
        if of_these and earlier.has_figures and (less or not measurement.has_figures):
            return True
    measurement.save(folder)
    return False


def _blank(
    source: Source,
    record: BenchmarkRecord,
    status: Literal["ok", "unsupported", "failed"],
    reason: str | None,
) -> Measurement:
    candidate = source.candidate
    assert candidate.run is not None
    return Measurement(
        run=candidate.run,
        variant=candidate.variant,
        status=status,
        reason=reason,
        device=record.device,
        hardware=record.hardware,
        threads=candidate.threads,
        clock=record.clock,
        protocol=record.protocol,
        protocol_version=record.protocol_version,
        test_acc=None,
        size_bytes=None,
        code=record.code,
        environment=record.environment,
        recipe=candidate.recipe,
        engines=candidate.engines,
        candidate=candidate.key,
        weights=candidate.weights,
    )


def _of(
    source: Source, record: BenchmarkRecord, number: int, accuracies: Accuracies
) -> Measurement:
    """Fill a run's measurement with what a benchmark says of its candidate."""
    found = accuracies.of(source)
    if isinstance(found, str):
        return _blank(source, record, "failed", found)
    candidate, timing = record.candidates[number], record.timing(number)
    reasons = [*timing.disturbances, *([found.missing] if found.missing else [])]
    return replace(
        _blank(source, record, "ok", None),
        status="disturbed" if timing.disturbed else "ok",
        reason="; ".join(reasons) or None,
        test_acc=found.test_acc,
        confusion=found.confusion,
        carried_over=found.carried_over,
        files=found.files,
        # What was timed may have had random weights, of which an exporter keeps equal ones once.
        size_bytes=found.size_bytes or candidate.size_bytes,
        delegated=candidate.delegated,
        environment=replace(
            record.environment,
            flags=candidate.flags,
            convolution_error=candidate.convolution_error,
            contradiction=candidate.contradiction,
        ),
        benchmark=record.id,
        latency=timing.latency,
        relative=timing.relative,
        floor_ms=record.floor_ms(number),
        rounds=timing.rounds,
        ended=timing.ended,
        converged=timing.converged,
        preempted=timing.preempted,
        preparation_s=candidate.preparation_s,
        first_call_ms=candidate.first_call_ms,
        peak_bytes=candidate.peak_bytes,
        subnormals=candidate.subnormals,
        notes=candidate.notes,
        wall=timing.wall,
        gpu=timing.gpu,
        launches=candidate.launches,
    )

"""Candidates and the references timed beside each other: one benchmark, and its record."""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from cifar_lightning.benchmark.accuracy import Accuracies
from cifar_lightning.benchmark.candidates import BenchmarkSpec, Source, references
from cifar_lightning.benchmark.floors import floors
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.benchmark.prepare import Failure
from cifar_lightning.benchmark.processes import time_in_processes
from cifar_lightning.benchmark.record import record_of
from cifar_lightning.benchmark.rounds import DISCARDED
from cifar_lightning.benchmark.session import time_here
from cifar_lightning.config.protocols import MIN_ROUNDS, PROTOCOLS, Protocol
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.folder import RUNS, RunFolder
from cifar_lightning.runs.timed_before import prepared_before
from cifar_lightning.system.devices import hardware_slug
from cifar_lightning.system.files import check_inside, write_atomically
from cifar_lightning.system.formatting import counted, duration
from cifar_lightning.variants import registry

log = logging.getLogger(__name__)

START_S = 5.0  # until a fresh process has imported what it needs

Groups = list[list[Source]]


@dataclass(frozen=True)
class Recorded:
    """A benchmark that was recorded.

    Attributes:
        record: What was timed.
        failures: What could not be.
        error: Why a process failed after others had measured; empty if none did.
    """

    record: BenchmarkRecord
    failures: list[Failure]
    error: str


def time_together(
    groups: Groups,
    spec: BenchmarkSpec,
    device: torch.device,
    outputs: Path,
    data: RunData,
    processes: int,
    accuracies: Accuracies,
) -> Recorded:
    """Time candidates and the references beside each other, and record it."""
    whole, started, tail = PROTOCOLS[spec.protocol], datetime.now(UTC), secrets.token_hex(3)
    protocol = whole.in_each(processes)
    everyone = [*groups, *([source] for source in [*references(device), *floors(groups)])]
    _tell_duration(everyone, protocol, processes, prepared_before(outputs, hardware_slug(device)))
    seed, where, error = int(tail, 16), (data.root, data.check), ""
    if processes == 1:
        timed = [time_here(everyone, device, protocol, seed, data.for_timing, accuracies.look)]
    else:
        timed, error = time_in_processes(processes, everyone, device, protocol, seed, where)
    record = record_of(f"{started:%Y%m%d-%H%M%S}-{tail}", started, spec.protocol, device, timed)
    folders = [source.folder for group in groups for source in group if source.folder]
    for place in {outputs.resolve(), *(_outputs_of(folder, outputs) for folder in folders)}:
        check_inside(place, path := BenchmarkRecord.path(place, record.id))
        write_atomically(path, record.to_json())
    rounds = sum(len(one.rounds) for one in record.sessions)
    if any(one.ended == "time" for one in record.sessions) and rounds < MIN_ROUNDS:
        said = "only %d rounds in %g s for each candidate, %d are needed: kept, but not converged"
        log.warning(said, rounds, whole.budget_s, MIN_ROUNDS)
    failures = [failure for one in timed for failure in one.failures]
    asked = [one for one in failures if one.candidate.role != "floor"]
    told = {one.reason for one in asked}
    for one in failures:
        if one.candidate.role == "floor" and one.reason not in told:
            log.info("%s: no floor: %s", one.candidate.variant, one.reason)
    return Recorded(record, asked, error)


def _tell_duration(
    groups: Groups, protocol: Protocol, processes: int, prepared: Mapping[str, float]
) -> None:
    """Tell about how long timing will take.

    Args:
        groups: What is timed, the references among them.
        protocol: Of each process.
        processes: How many there are.
        prepared: Seconds that preparing each variant took before.
    """
    blocks_s = protocol.expected_rounds * protocol.block_s * (1 + DISCARDED)
    timed = processes * len(groups)
    variants = [group[0].candidate.variant for group in groups]
    # What is shipped as files is exported by the first process, and loaded by the others.
    times = [1 if registry.format_of(variant) else processes for variant in variants]
    besides_s = sum(n * prepared.get(one, 0.0) for n, one in zip(times, variants, strict=True))
    besides_s += processes * START_S if processes > 1 else 0.0
    unknown = sorted({*variants} - {*prepared})
    log.info(
        "%s and 3 references in interleaved rounds (%s protocol%s): about %s, at most %s%s",
        counted(sum(group[0].candidate.role == "candidate" for group in groups), "candidate"),
        protocol.name,
        f", {processes} processes" if processes > 1 else "",
        duration(timed * (protocol.warmup_s + blocks_s) + besides_s),
        duration(timed * (protocol.warmup_max_s + protocol.budget_s) + besides_s),
        f", and what the preparation of {', '.join(unknown)} takes" if unknown else "",
    )


def _outputs_of(folder: Path, outputs: Path) -> Path:
    """Tell to which outputs a run belongs; one that was moved elsewhere to those of the command."""
    folder = folder.resolve()
    return RunFolder(folder).outputs if folder.parent.name == RUNS else outputs.resolve()

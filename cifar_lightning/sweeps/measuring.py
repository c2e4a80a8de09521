"""Measuring the runs of a sweep beside each other, once all of them are trained."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cifar_lightning.errors import Interrupted, reason_of
from cifar_lightning.sweeps.jobs import Failure, Job
from cifar_lightning.system.formatting import counted
from cifar_lightning.system.outcome import Outcome

log = logging.getLogger(__name__)


def measure(jobs: Sequence[Job]) -> list[Failure]:
    """Measure what runs of jobs lack, those together that are to be measured alike.

    Returns:
        The jobs whose measuring failed.
    """
    failures: list[Failure] = []
    alike: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        if job.config["benchmark"]["variants"]:
            device = str(job.config["trainer"].get("accelerator", "auto"))
            root = str(job.config["data"].get("root"))  # where all data of a benchmark lie
            alike.setdefault((job.benchmark, device, root), []).append(job)
    for (_, accelerator, _), group in alike.items():
        try:
            failures += _measured(group, accelerator)
        except Interrupted:
            break
        except Exception as error:
            log.debug("measuring failed", exc_info=True)
            outcome = Outcome("failed", f"measuring: {reason_of(error)}")
            failures += [Failure(job, 1, outcome) for job in group]
    return failures


def _measured(jobs: Sequence[Job], accelerator: str) -> list[Failure]:
    # Heavy, and only needed here.
    from cifar_lightning.benchmark.candidates import BenchmarkSpec
    from cifar_lightning.benchmark.load import RunData
    from cifar_lightning.benchmark.measure import measure_missing
    from cifar_lightning.system.devices import find_device

    config = jobs[0].config
    settings = {key: one for key, one in config["benchmark"].items() if key != "_target_"}
    spec = BenchmarkSpec(**settings).checked("benchmark.")
    by_name = {job.folder.name: job for job in jobs}
    log.info("measuring %s", counted(len(by_name), "run"))
    found = measure_missing(
        [job.folder for job in by_name.values()],
        spec,
        find_device(accelerator),
        Path(config["outputs"]),
        RunData(config["data"].get("root")),
    )
    failures = [
        Failure(by_name[one.run], 1, Outcome("failed", f"measuring {one.variant}: {one.reason}"))
        for one in found.measurements
        if one.failed
    ]
    if found.error:
        outcome = Outcome("failed", f"measuring: {found.error}")
        failures += [Failure(job, 1, outcome) for job in by_name.values()]
    return failures

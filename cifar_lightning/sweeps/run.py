"""A multirun: every job checked before the first starts, each then a process of its own.

A job is the same command without ``-m``, so it can be given again alone; one that is finished is
not started.
"""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.comparison.publish import publish, seeds_table
from cifar_lightning.config import schema
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs.completed import finished, take_up
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps.executors import Place, Process, outcome_file
from cifar_lightning.sweeps.jobs import Failure, Job
from cifar_lightning.sweeps.measuring import measure
from cifar_lightning.system import signals
from cifar_lightning.system.formatting import duration
from cifar_lightning.system.locks import alone
from cifar_lightning.system.outcome import Outcome

log = logging.getLogger(__name__)

POLL_S = 0.1
CONSOLE = schema.CONF_DIR / "hydra" / "job_logging" / "console.yaml"
SKIP_BENCHMARK = "benchmark.variants=[]"  # trains and tests; the same command without it measures


def run(all_jobs: Sequence[Job], place: Place, merged: int = 0) -> None:
    """Run what is missing, and show the rows of all jobs.

    Args:
        all_jobs: From `jobs`.
        place: Where they run.
        merged: How many more were asked for that come to the same as others.

    Raises:
        RunFailed: If a job failed.
        UserError: If jobs failed by mistakes of the user's alone, such as missing data.
        Interrupted: If the user stopped it.
    """
    if failures := attempt(all_jobs, place, merged):
        lines = "\n".join(f"{failure.job.label}: {failure.reason}" for failure in failures)
        mistakes = all(failure.status == UserError.exit_status for failure in failures)
        raise UserError(lines) if mistakes else RunFailed(lines)


def attempt(all_jobs: Sequence[Job], place: Place, merged: int = 0) -> list[Failure]:
    """Run what is missing, and show the rows of all jobs; return those that failed.

    A job that fails is recorded, and the others go on.

    Args:
        all_jobs: As for `run`.
        place: As for `run`.
        merged: As for `run`.

    Raises:
        Interrupted: If the user stopped it.
    """
    console = OmegaConf.load(CONSOLE)
    assert isinstance(console, DictConfig)
    configure_log(console)  # Hydra does that for a single run only
    if merged:
        log.info("%d jobs come to %d", len(all_jobs) + merged, len(all_jobs))
    missing = [job for job in all_jobs if not job.done]
    if len(missing) < len(all_jobs):
        log.info("%d of %d jobs are finished", len(all_jobs) - len(missing), len(all_jobs))
        for job in all_jobs:
            if earlier := finished(job.folder, job.config):
                take_up(job.folder, earlier, job.config)
    first = list({job.folder: job for job in reversed(missing)}.values())[::-1]
    with signals.deferred():
        # Beside each other, so that they can be ranked; a single job does it itself.
        apart = place.apart or len(all_jobs) > 1
        doing, *more = ("training", SKIP_BENCHMARK) if apart else ("running",)
        failures = _run_each(first, place, doing, *more)
        broken = {failure.job.folder for failure in failures}
        if apart and signals.received() is None:
            failures += measure([job for job in missing if job.folder not in broken])
    # A job that was killed could not; and a single job has shown its rows.
    outputs = Path(all_jobs[0].config["outputs"])
    shown = [job.folder for job in all_jobs] if apart or not missing else []
    folders = list(dict.fromkeys(shown))
    for line in publish(outputs, folders):
        log.warning("%s", line)
    if means := seeds_table(folders):
        log.info("\n%s", means)
    if signals.received():
        raise signals.error("interrupted; the same command again runs what is missing")
    return failures


@dataclass
class _Running:
    number: int
    job: Job
    slot: int
    process: Process
    output: Path
    started: float


def _run_each(jobs: Sequence[Job], place: Place, doing: str, *more: str) -> list[Failure]:
    """Run jobs, so many at a time as the place takes; return those that failed."""
    failures: list[Failure] = []
    waiting = deque(enumerate(jobs, 1))
    free = list(range(min(place.max_parallel, len(jobs))))
    running: list[_Running] = []
    told = False
    with tempfile.TemporaryDirectory() as outputs:
        try:
            while waiting or running:
                if signals.received() and not told:
                    told = True
                    waiting.clear()
                    _end(running)
                while waiting and free:
                    number, job = waiting.popleft()
                    log.info("%s %d of %d: %s", doing, number, len(jobs), job.label)
                    slot, output = free.pop(0), Path(outputs) / str(number)
                    process = place.start(job, [*job.overrides, *more], slot, output)
                    running.append(_Running(number, job, slot, process, output, time.time()))
                for one in list(running):
                    status = one.process.poll()
                    if status is None:
                        continue
                    running.remove(one)
                    free.append(one.slot)
                    if status and not signals.received():
                        failures.append(_failure(one, status))
                    took = duration(time.time() - one.started)
                    outcome = f"ended with status {status}" if status else "done"
                    log.info("%d of %d %s after %s", one.number, len(jobs), outcome, took)
                time.sleep(POLL_S)
        finally:
            _end(running)
    return failures


def _end(running: Iterable[_Running]) -> None:
    for one in running:
        one.process.terminate()


def _failure(one: _Running, status: int) -> Failure:
    outcome = Outcome.read(outcome_file(one.output))
    reason = _reason(one, status, outcome)
    if outcome is None:  # it could not say so itself
        return Failure(one.job, status, reason, "killed" if status < 0 else "failed")
    return Failure(one.job, status, reason, outcome.kind, outcome.key)


def _reason(one: _Running, status: int, outcome: Outcome | None) -> str:
    """Tell why a job failed, and keep its output beside the run, if there is any of both."""
    folder = one.job.folder
    if status == UserError.exit_status:  # the run, if there is one, is as it was
        return outcome.message if outcome else _last_line(one.output) or "refused"
    if one.output.exists() and folder.exists():
        shutil.copy(one.output, RunFolder(folder).output)
    with suppress(FileNotFoundError, ValueError, UserError):
        with alone(RunFolder(folder).lock, "held"):
            record = Run.load(folder)
            if record.status == "running":  # it could not say so itself
                record = replace(record, status="failed", error=_death(status)).save(folder)
        if record.error and RunFolder(folder).record.stat().st_mtime >= one.started:
            return record.error
    return outcome.message if outcome else _last_line(one.output) or _death(status)


def _last_line(output: Path) -> str:
    """Read the last line of what a job printed, of whatever bytes."""
    printed = output.read_text(errors="backslashreplace") if output.exists() else ""
    return printed.strip().rpartition("\n")[2].removeprefix("error: ")


def _death(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-status).name}{memory}"

"""A multirun: every job checked before the first starts, each then a process of its own.

A job is the same command without ``-m``, so it can be given again alone; one that is finished is
not started.
"""

import logging
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_lightning.comparison.publish import publish, seeds_table
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs.completed import take_up
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.related import renamed, shared_ids
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps.executors import Executor, Process, outcome_file
from cifar_lightning.sweeps.jobs import Failure, Job
from cifar_lightning.sweeps.measuring import measure
from cifar_lightning.system import signals
from cifar_lightning.system.formatting import counted, duration
from cifar_lightning.system.locks import alone
from cifar_lightning.system.outcome import Outcome

log = logging.getLogger(__name__)

POLL_S = 0.1
SKIP_BENCHMARK = "benchmark.variants=[]"  # trains and tests; the same command without it measures


def run(jobs: Sequence[Job], executor: Executor) -> None:
    """Run what is missing, and show the rows of all jobs; errors also as `attempt`.

    Args:
        jobs: From `jobs.jobs`.
        executor: Where they run.

    Raises:
        RunFailed: If a job failed.
        UserError: If jobs failed by mistakes of the user's alone, such as missing data.
    """
    begin = time.time()
    failures = attempt(jobs, executor)
    if len(jobs) > 1:
        failed = f", {len(failures)} failed" if failures else ""
        log.info("%s in %s%s", counted(len(jobs), "job"), duration(time.time() - begin), failed)
    if failures:
        lines = "\n".join(f"{failure.job.label}: {failure.outcome.message}" for failure in failures)
        mistakes = all(failure.status == UserError.exit_status for failure in failures)
        raise UserError(lines) if mistakes else RunFailed(lines)


def attempt(jobs: Sequence[Job], executor: Executor) -> list[Failure]:
    """Do the same, but record jobs that fail and return them.

    Raises:
        Interrupted: If the user stopped it.
    """
    missing, renewed = [], {}
    for job in jobs:
        if finished := job.finished:
            now = take_up(job.folder, finished, job.config)
            if now.label != finished.label:
                log.info("%s", renamed(now, finished))
                renewed[now.name] = job.config
        else:
            missing.append(job)
            renewed[job.folder.name] = job.config
    if len(jobs) > 1:  # a single one says so itself
        for line in shared_ids(Path(jobs[0].config["outputs"]), renewed):
            log.warning("%s", line)
    if len(missing) < len(jobs):
        log.info("%d of %d jobs are finished", len(jobs) - len(missing), len(jobs))
    first = list({job.folder: job for job in reversed(missing)}.values())[::-1]
    with signals.deferred():
        # Beside each other, so that they can be ranked; a single job does it itself.
        later = executor.measures_later and len(jobs) > 1
        doing, *more = ("training", SKIP_BENCHMARK) if later else ("running",)
        failures = _run_each(first, executor, doing, *more)
        broken = {failure.job.folder for failure in failures}
        left = [job for job in missing if job.folder not in broken]
        if not later:  # what other jobs of the same runs ask for
            again = [job for job in left if job not in first]
            failures += _run_each(again, executor, "measuring", "rerun=false")
        elif signals.received() is None:
            failures += measure(left)
    # A job that was killed could not; and a single job has shown its rows.
    shown = [job.folder for job in jobs] if len(jobs) > 1 or not missing else []
    folders = list(dict.fromkeys(shown))
    varied = {job.folder.name: job.varied for job in jobs}
    for line in publish(Path(jobs[0].config["outputs"]), folders, varied=varied):
        log.warning("%s", line)
    if means := seeds_table(folders, varied):
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


def _run_each(
    jobs: Sequence[Job], executor: Executor, doing: str, *overrides: str
) -> list[Failure]:
    """Run jobs, so many at a time as the executor takes; return those that failed."""
    failures: list[Failure] = []
    waiting = deque(enumerate(jobs, 1))
    free = list(range(min(executor.max_parallel, len(jobs))))
    running: list[_Running] = []
    told = full = False
    begin = time.time()
    with tempfile.TemporaryDirectory() as outputs:
        try:
            while waiting or running:
                if signals.received() and not told:
                    told = True
                    waiting.clear()
                    _end(running)
                while waiting and free and not full:
                    number, job = waiting[0]
                    log.info("%s %d of %d: %s", doing, number, len(jobs), job.label)
                    slot, output = free[0], Path(outputs) / str(number)
                    try:
                        process = executor.start(job, [*job.overrides, *overrides], slot, output)
                    except UserError as error:
                        if not running:
                            raise
                        # Perhaps a cluster has as many as it takes.
                        log.warning("%s; it is tried again when a job has ended", error)
                        full = True
                        break
                    waiting.popleft()
                    free.pop(0)
                    running.append(_Running(number, job, slot, process, output, time.time()))
                for one in list(running):
                    status = one.process.poll()
                    if status is None:
                        continue
                    running.remove(one)
                    full = False
                    free.append(one.slot)
                    if status and not signals.received():
                        failures.append(_failure(one, status))
                    done = len(jobs) - len(waiting) - len(running)
                    _tell(one, status, done, len(jobs), time.time() - begin)
                time.sleep(POLL_S)
        finally:
            _end(running)
    return failures


def _tell(one: _Running, status: int, done: int, jobs: int, seconds: float) -> None:
    """Say how a job ended, how far the sweep is and how long the rest may take."""
    left = f", about {duration(seconds / done * (jobs - done))} left" if done < jobs else ""
    outcome = f"ended with status {status} after" if status else "took"
    took = duration(time.time() - one.started)
    log.info(
        "%d of %d jobs done after %s%s (%s %s %s)",
        *(done, jobs, duration(seconds), left, one.job.label, outcome, took),
    )


def _end(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()


def _failure(one: _Running, status: int) -> Failure:
    """Tell why a job failed, and keep its output beside the run, if there is any of both."""
    folder = one.job.folder
    said = Outcome.read(outcome_file(one.output))
    message = said.message if said else _last_line(one.output)
    if status == UserError.exit_status:  # the run, if there is one, is as it was
        message = message or "refused"
    else:
        if one.output.exists() and folder.exists():
            shutil.copy(one.output, RunFolder(folder).output)
        death = said.message if said else _death(status)
        message = _recorded_error(one, death) or message or death
    # One that was killed could not say so itself.
    said = said or Outcome("killed" if status < 0 else RunFailed.kind, message)
    return Failure(one.job, status, replace(said, message=message))


def _recorded_error(one: _Running, death: str) -> str | None:
    """Read the error of this job in the run's record; write it there if the job could not."""
    folder = one.job.folder
    with suppress(FileNotFoundError, ValueError, UserError):
        with alone(RunFolder(folder).lock, "held"):
            record = Run.load(folder)
            if record.status == "running":
                record = replace(record, status="failed", error=death).save(folder)
        if RunFolder(folder).record.stat().st_mtime >= one.started:
            return record.error
    return None


def _last_line(output: Path) -> str:
    """Read the last line of what a job printed, of whatever bytes."""
    printed = output.read_text(errors="backslashreplace") if output.exists() else ""
    return printed.strip().rpartition("\n")[2].removeprefix("error: ")


def _death(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-status).name}{memory}"

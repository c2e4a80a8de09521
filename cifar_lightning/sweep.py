"""A multirun: every job checked before the first starts, each then a process of its own.

A job is the same command without ``-m``, so it can be given again alone; one that is finished is
not started.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning import config as configuration
from cifar_lightning import identity, interruption
from cifar_lightning.cores import usable_cores
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.files import alone
from cifar_lightning.finished import duration, finished, take_up
from cifar_lightning.folders import LOCK, OUTPUT, run_folder
from cifar_lightning.outcome import VARIABLE, Outcome
from cifar_lightning.results import RUNS, Run, group_means, markdown, rows_of, write_table

log = logging.getLogger(__name__)

POLL_S = 0.1
CONSOLE = configuration.CONF_DIR / "hydra" / "job_logging" / "console.yaml"
LATER = "benchmark.variants=[]"  # trains and tests; the same command without it measures


@dataclass(frozen=True)
class Job:
    """One run of a multirun.

    Attributes:
        overrides: Of the command line, this job's values in place of the sweep's.
        label: The overrides in which it differs from the other jobs.
        config: Resolved.
        folder: The run's.
    """

    overrides: tuple[str, ...]
    label: str
    config: dict[str, Any]
    folder: Path

    @property
    def done(self) -> bool:
        return finished(self.folder, self.config) is not None

    @property
    def benchmark(self) -> str:
        return json.dumps(self.config["benchmark"], sort_keys=True)


def jobs(
    job_overrides: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]
) -> list[Job]:
    """Compose, resolve and check every job; jobs that come to the same thing are one.

    Args:
        job_overrides: Of each job.
        compose: Makes a job's configuration.

    Raises:
        UserError: With a line for every mistake in any of them.
    """
    counts = Counter(override for overrides in job_overrides for override in overrides)
    found: dict[tuple[Path, str], Job] = {}
    mistakes: dict[str, None] = {}
    for number, overrides in enumerate(job_overrides):
        varied = [text for text in overrides if counts[text] < len(job_overrides)]
        try:
            composed = compose(overrides)
            with open_dict(composed):
                composed.hydra.job.id = composed.hydra.job.num = number
            config = identity.resolve(composed)
            configuration.check(config)
            name = configuration.run_name(config, composed.hydra.runtime.choices)
            folder = run_folder(Path(config["outputs"]), name)
            job = Job(tuple(overrides), " ".join(varied) or name, config, folder)
            if not job.done:
                from cifar_lightning.experiment import build  # torch: only where there is work

                build(config, folder)
        except Exception as error:
            known = configuration.explain(error)
            if known is None:
                raise
            mistakes[str(known)] = None
        else:
            found.setdefault((folder, job.benchmark), job)
    if mistakes:
        raise UserError("\n".join(mistakes))
    if not found:
        raise UserError("-m: this sweep has no jobs")
    return list(found.values())


# --- Where jobs run -------------------------------------------------------------------------


class Process(Protocol):
    """A job that was started; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Tell its exit status; None while it is under way."""

    def terminate(self) -> None:
        """Ask it to end after its current batch."""


class Place(Protocol):
    """What starts jobs.

    Attributes:
        at_once: How many at a time.
        apart: Whether training and measuring have to be kept apart.
    """

    at_once: int

    @property
    def apart(self) -> bool: ...

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        """Start a job; where several run at a time, they write their output to a file."""


def _outcome_file(output: Path) -> Path:
    """Tell where a job on this machine leaves its outcome."""
    return output.with_name(f"{output.name}.outcome")


def command_line(overrides: Sequence[str]) -> list[str]:
    """Make the command that runs one job alone."""
    script = str(configuration.CONF_DIR.parent / "train.py")
    return [sys.executable, script, *_search_path(sys.argv[1:]), *overrides]


def _search_path(arguments: Sequence[str]) -> list[str]:
    """Hand on where Hydra looks for more configuration files; it keeps these from the jobs."""
    handed = [text for text in arguments if text.lstrip("+").startswith("hydra.searchpath=")]
    for option in ("--config-dir", "-cd"):
        if option in arguments[:-1]:
            handed += ["--config-dir", arguments[arguments.index(option) + 1]]
    return handed + [text for text in arguments if text.startswith("--config-dir=")]


@dataclass
class ThisMachine:
    """Processes on this machine; on several GPUs each takes one."""

    at_once: int

    @property
    def apart(self) -> bool:
        return self.at_once > 1

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        told = {VARIABLE: str(_outcome_file(output))}
        if self.at_once == 1:
            return subprocess.Popen(command_line(overrides), env=os.environ | told)
        with output.open("ab") as stream:
            return subprocess.Popen(
                command_line(overrides),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment(job, slot) | told,
            )

    def environment(self, job: Job, slot: int) -> dict[str, str]:
        """Share the machine: a GPU each, and the cores."""
        shares = {}
        if "OMP_NUM_THREADS" not in os.environ:
            shares["OMP_NUM_THREADS"] = str(max(1, usable_cores() // self.at_once))
        gpus = self._gpus
        if len(gpus) > 1 and job.config["trainer"].get("devices", 1) == 1:
            shares["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        return shares

    @cached_property
    def _gpus(self) -> list[str]:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))


class Slurm:
    """Jobs of a SLURM cluster, each measured where it was trained.

    Args:
        cluster: ``slurm`` or ``local``.
        parameters: Of submitit's executor; None is left out.

    Raises:
        UserError: If submitit is not installed, there is no SLURM or a parameter is unknown.
    """

    at_once = sys.maxsize
    apart = False

    def __init__(self, cluster: str, parameters: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "hydra/launcher=slurm: needs submitit: pip install 'cifar-lightning[slurm]'"
            ) from error

        def make(folder: Path) -> Any:
            return submitit.AutoExecutor(folder=folder, cluster=cluster)

        self._make = make
        self._parameters = {key: value for key, value in parameters.items() if value is not None}
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._make(Path(folder)).update_parameters(**self._parameters)
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher: {' '.join(str(error).split())}") from error

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        trainer = job.config["trainer"]
        executor = self._make(job.folder.parent.parent / "sweeps" / "slurm")
        processes = trainer.get("devices", 1)
        executor.update_parameters(
            name=job.folder.name,
            nodes=trainer.get("num_nodes", 1),
            tasks_per_node=processes if isinstance(processes, int) else 1,
            **self._parameters,
        )
        submitted = executor.submit(Submission(command_line(overrides), str(Path.cwd())))
        log.info("job %s: %s", submitted.job_id, job.label)
        return _Submitted(submitted)


@dataclass(frozen=True)
class Submission:
    """What submitit runs on a node."""

    command: list[str]
    cwd: str

    def __call__(self) -> int:
        return subprocess.run(self.command, cwd=self.cwd).returncode

    def checkpoint(self) -> Any:
        """Go on in a new job when this one's time is up: the same command continues the run."""
        import submitit

        again = replace(self, command=[*self.command, "rerun=false"])
        return submitit.helpers.DelayedSubmission(again)


@dataclass(frozen=True)
class _Submitted:
    """A job of submitit's as a process."""

    job: Any

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return next((int(status) for status in self.job.results() if status), 0)
        except Exception as error:  # cancelled, lost or killed
            log.debug("job %s", self.job.job_id, exc_info=error)
            return 1

    def terminate(self) -> None:
        self.job.cancel()


# --- Running them ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A job that did not end well.

    Attributes:
        job: The job.
        status: Its exit status; negative is the number of the signal that killed it.
        reason: For people.
        kind: Of the error that ended it; ``killed`` after a signal.
        key: Of the configuration, if that was refused for it.
    """

    job: Job
    status: int
    reason: str
    kind: str
    key: str | None = None


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
    with interruption.deferred():
        failures = _run_each(first, place, *(("training", LATER) if place.apart else ("running",)))
        broken = {failure.job.folder for failure in failures}
        # What is left only measures: all of it where that was kept apart, else what other jobs of
        # the same runs ask for.
        left = [job for job in missing if job.folder not in broken]
        left = left if place.apart else [job for job in left if job not in first]
        place = ThisMachine(1) if place.apart else place
        failures += _run_each(left, place, "measuring", "rerun=false")
    outputs = Path(all_jobs[0].config["outputs"])
    if (outputs / RUNS).exists():
        write_table(outputs)  # a job that was killed could not
    if len(all_jobs) > 1 or place.apart or not missing:  # else the one job has shown its rows
        _show(all_jobs)
    if interruption.received():
        raise interruption.error("interrupted; the same command again runs what is missing")
    return failures


def _show(jobs: Sequence[Job]) -> None:
    folders = dict.fromkeys(job.folder for job in jobs)
    rows = [row for folder in folders for row in rows_of(folder)]
    log.info("\n%s", markdown(rows))
    if means := group_means(rows):
        log.info("%s", means)


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
    free = list(range(min(place.at_once, len(jobs))))
    running: list[_Running] = []
    told = False
    with tempfile.TemporaryDirectory() as outputs:
        try:
            while waiting or running:
                if interruption.received() and not told:
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
                    if status and not interruption.received():
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
    outcome = Outcome.read(_outcome_file(one.output))
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
        shutil.copy(one.output, folder / OUTPUT)
    with suppress(FileNotFoundError, ValueError, UserError):
        with alone(folder / LOCK, "held"):
            record = Run.load(folder)
            if record.status == "running":  # it could not say so itself
                record = replace(record, status="failed", error=_death(status)).save(folder)
        if record.error and (folder / Run.FILE).stat().st_mtime >= one.started:
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

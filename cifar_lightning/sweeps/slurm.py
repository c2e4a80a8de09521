"""Jobs of a SLURM cluster, through submitit.

Whether a job has ended is asked of SLURM's queue: submitit asks its accounting, which needs a
database that many clusters go without.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.sweeps.executors import Process, command_line, outcome_file
from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.system.environment import installation
from cifar_lightning.system.formatting import relative
from cifar_lightning.system.outcome import VARIABLE, Outcome

log = logging.getLogger(__name__)

ASK_EVERY_S = 5.0
RESULT_WITHIN_S = 15.0  # of a job's end, on a shared file system


class SlurmExecutor:
    """Jobs of a SLURM cluster, each measured where it was trained.

    Args:
        cluster: ``slurm`` or ``local``.
        parameters: Of submitit's executor; None is left out.

    Raises:
        UserError: If submitit is not installed, there is no SLURM or a parameter is unknown.
    """

    max_parallel = sys.maxsize
    measures_later: ClassVar[bool] = False

    def __init__(self, cluster: str, parameters: Mapping[str, Any]) -> None:
        try:
            from submitit import AutoExecutor
        except ImportError as error:
            needed = installation("slurm")
            raise UserError(f"hydra/launcher=slurm: needs submitit: {needed}") from error
        self._make = partial(AutoExecutor, cluster=cluster)
        self._parameters = {key: value for key, value in parameters.items() if value is not None}
        self._has_ended = _Queue().has_ended if cluster == "slurm" else _has_ended_here
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._make(folder).update_parameters(**self._parameters)
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise _refused(error) from error

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        trainer = job.config["trainer"]
        executor = self._make(job.folder.parent.parent / "sweeps" / "slurm")
        executor.update_parameters(
            name=job.folder.name,
            nodes=trainer.get("num_nodes", 1),
            tasks_per_node=trainer.get("devices", 1),
            **self._parameters,
        )
        try:
            submitted = executor.submit(Submission(command_line(overrides), Path.cwd()))
        except Exception as error:  # whatever sbatch did not like
            raise _refused(error) from error
        log.info("job %s: %s", submitted.job_id, job.label)
        return _Submitted(submitted, self._has_ended, output)


@dataclass(frozen=True)
class Ended:
    """How one task of a job has ended.

    Attributes:
        status: Of its command.
        outcome: What the command said itself.
    """

    status: int
    outcome: Outcome | None


@dataclass(frozen=True)
class Submission:
    """What submitit runs on a node, as each of a job's tasks."""

    command: list[str]
    cwd: Path

    def __call__(self) -> Ended:
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder, "outcome")
            env = os.environ | {VARIABLE: str(told)}
            status = subprocess.run(self.command, cwd=self.cwd, env=env).returncode
            return Ended(status, Outcome.read(told))

    def checkpoint(self) -> Any:
        """Go on in a new job when this one's time is up: the same command continues the run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, command=[*self.command, "rerun=false"]))


@dataclass
class _Submitted:
    """A job of submitit's as a process.

    Attributes:
        job: Submitit's.
        has_ended: Tells of a job and the time of its submission whether it has ended.
        output: Where a job on this machine would write it.
    """

    job: Any
    has_ended: Callable[[Any, float], bool]
    output: Path
    submitted: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def poll(self) -> int | None:
        if not self.has_ended(self.job, self.submitted):
            return None
        self.ended = self.ended or time.monotonic()
        tasks = [self.job.task(number) for number in range(self.job.num_tasks)]
        if not all(task.paths.result_pickle.exists() for task in tasks):
            if time.monotonic() - self.ended < RESULT_WITHIN_S:
                return None
            return self._failed(f"ended without a result ({_state(self.job.job_id)})")
        try:
            results: list[Ended] = self.job.results()
        except Exception as error:  # submitit's own, with a whole traceback in its text
            reasons = re.findall(r"^[\w.]+: (.+)$", str(error), re.MULTILINE)
            return self._failed(reasons[-1] if reasons else type(error).__name__)
        worst = next((one for one in results if one.status), results[0])
        if worst.outcome:
            worst.outcome.write(outcome_file(self.output))
        return worst.status

    def terminate(self) -> None:
        self.job.cancel(check=False)  # it may have ended meanwhile

    def _failed(self, reason: str) -> int:
        log.warning("output of job %s: %s", self.job.job_id, relative(self.job.paths.stderr))
        said = Outcome("killed", f"job {self.job.job_id}: {reason}")
        said.write(outcome_file(self.output))
        return RunFailed.exit_status


class _Queue:
    """The jobs that SLURM has not ended yet, asked for now and then and for all at once."""

    def __init__(self) -> None:
        self._asked = -ASK_EVERY_S
        self._jobs: set[str] | None = None  # None: not to be had

    def has_ended(self, job: Any, submitted: float) -> bool:
        """Tell whether a job that was in the queue is there no more."""
        now = time.monotonic()
        if self._asked < submitted or now - self._asked >= ASK_EVERY_S:
            self._asked, self._jobs = now, self._ask()
        return self._jobs is not None and job.job_id not in self._jobs

    def _ask(self) -> set[str] | None:
        try:
            told = _told("squeue", "--me", "--noheader", "--format=%A")
        except (OSError, subprocess.SubprocessError):  # the controller is away for a while
            log.debug("squeue failed", exc_info=True)
            return None
        return {*told.split()}


def _has_ended_here(job: Any, submitted: float) -> bool:
    return bool(job.done())


def _state(job_id: str) -> str:
    """Tell how SLURM says that a job has ended, while it remembers: a few minutes."""
    try:
        told = _told("scontrol", "--oneliner", "show", "job", job_id)
    except (OSError, subprocess.SubprocessError):
        told = ""
    found = re.search(r"JobState=(\w+)", told)
    return found[1] if found else "killed, cancelled, or its node failed"


def _told(*command: str) -> str:
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return ended.stdout


def _refused(error: Exception) -> UserError:
    lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines()]
    return UserError(f"hydra.launcher: {'; '.join(filter(None, lines))}")

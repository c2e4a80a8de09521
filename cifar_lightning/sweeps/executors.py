"""Where jobs run: processes on this machine, or jobs of a SLURM cluster, through submitit."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cifar_lightning.errors import UserError
from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.environment import installation
from cifar_lightning.system.outcome import VARIABLE

log = logging.getLogger(__name__)


class Process(Protocol):
    """A job that was started; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Tell its exit status; None while it is under way."""

    def terminate(self) -> None:
        """Ask it to end after its current batch."""


class Executor(Protocol):
    """What starts jobs.

    Attributes:
        max_parallel: How many at a time.
        measures_later: Whether several of its jobs are measured here, together at the end.
    """

    max_parallel: int
    measures_later: ClassVar[bool]

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        """Start a job; where several run at a time, they write their output to a file."""


def outcome_file(output: Path) -> Path:
    """Tell where a job on this machine leaves its outcome."""
    return output.with_name(f"{output.name}.outcome")


def _command_line(overrides: Sequence[str]) -> list[str]:
    """Make the command that runs one job alone."""
    return [sys.executable, "-m", "cifar_lightning.train", *_search_path(sys.argv[1:]), *overrides]


def _search_path(arguments: Sequence[str]) -> list[str]:
    """Hand on where Hydra looks for more configuration files; it keeps these from the jobs."""
    handed = [text for text in arguments if text.lstrip("+").startswith("hydra.searchpath=")]
    for option in ("--config-dir", "-cd"):
        if option in arguments[:-1]:
            handed += ["--config-dir", arguments[arguments.index(option) + 1]]
    return handed + [text for text in arguments if text.startswith("--config-dir=")]


@dataclass
class LocalExecutor:
    """Processes on this machine; on several GPUs each takes one."""

    max_parallel: int
    measures_later: ClassVar[bool] = True

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        command = _command_line(overrides)
        env = os.environ | {VARIABLE: str(outcome_file(output))}
        if self.max_parallel == 1:
            return subprocess.Popen(command, env=env)
        with output.open("ab") as stream:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=env | self.environment(job, slot),
            )

    def environment(self, job: Job, slot: int) -> dict[str, str]:
        """Divide the machine among the jobs: a GPU each, and the cores."""
        parts = {}
        if "OMP_NUM_THREADS" not in os.environ:
            parts["OMP_NUM_THREADS"] = str(max(1, usable_cores() // self.max_parallel))
        if len(self._gpus) > 1 and job.config["trainer"].get("devices", 1) == 1:
            parts["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return parts

    @cached_property
    def _gpus(self) -> list[str]:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))


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
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._make(folder).update_parameters(**self._parameters)
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher: {' '.join(str(error).split())}") from error

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        trainer = job.config["trainer"]
        processes = trainer.get("devices", 1)
        executor = self._make(job.folder.parent.parent / "sweeps" / "slurm")
        executor.update_parameters(
            name=job.folder.name,
            nodes=trainer.get("num_nodes", 1),
            tasks_per_node=processes if isinstance(processes, int) else 1,
            **self._parameters,
        )
        submitted = executor.submit(Submission(_command_line(overrides), Path.cwd()))
        log.info("job %s: %s", submitted.job_id, job.label)
        return _Submitted(submitted)


@dataclass(frozen=True)
class Submission:
    """What submitit runs on a node."""

    command: list[str]
    cwd: Path

    def __call__(self) -> int:
        return subprocess.run(self.command, cwd=self.cwd).returncode

    def checkpoint(self) -> Any:
        """Go on in a new job when this one's time is up: the same command continues the run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, command=[*self.command, "rerun=false"]))


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

"""Jobs on a SLURM cluster, through submitit."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.sweeps.executors import Process, command_line
from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.system.environment import installation

log = logging.getLogger(__name__)


class Slurm:
    """Jobs of a SLURM cluster, each measured where it was trained.

    Args:
        cluster: ``slurm`` or ``local``.
        parameters: Of submitit's executor; None is left out.

    Raises:
        UserError: If submitit is not installed, there is no SLURM or a parameter is unknown.
    """

    max_parallel = sys.maxsize
    apart = False

    def __init__(self, cluster: str, parameters: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                f"hydra/launcher=slurm: needs submitit: {installation('slurm')}"
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

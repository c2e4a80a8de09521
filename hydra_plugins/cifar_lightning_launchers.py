"""The launchers of a multirun, where Hydra finds plugins; `cifar_lightning.sweeps` does the work.

Hydra imports this file at every start, so nothing heavy is imported here.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from cifar_lightning.cli.command import mark_started
from cifar_lightning.errors import bad_value

log = logging.getLogger(__name__)


class ProcessLauncher(Launcher):
    """Runs each job of a multirun as a process of its own on this machine.

    Args:
        n_jobs: Jobs at a time. With more than one, all of them train first, and are measured one
            after the other at the end; on several GPUs each takes one.

    Raises:
        UserError: If ``n_jobs`` is below 1.
    """

    here = True  # or on nodes, whose devices are not those of this machine

    def __init__(self, n_jobs: int = 1) -> None:
        if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs < 1:
            raise bad_value("hydra.launcher.n_jobs", n_jobs, "an integer of at least 1")
        self.n_jobs = n_jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        loader: Any = hydra_context.config_loader
        # Read once, not by each job again.
        loader.repository = CachingConfigRepository(loader.repository)
        self._compose = partial(loader.load_sweep_config, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from cifar_lightning.sweeps import jobs, run

        mark_started()
        found = jobs.jobs(job_overrides, self._compose, here=self.here)
        if len(found) < len(job_overrides):
            log.info("%d jobs come to %d", len(job_overrides), len(found))
        run.run(found, self._executor())
        return []  # each job's outcome is in its own folder

    def _executor(self) -> Any:
        from cifar_lightning.sweeps.executors import LocalExecutor

        return LocalExecutor(self.n_jobs)


class SlurmLauncher(ProcessLauncher):
    """Submits each job of a multirun to SLURM, and waits for all of them.

    ``conf/hydra/launcher/slurm.yaml`` has the defaults of its arguments, and says what they mean.
    """

    here = False

    def __init__(
        self, partition: str | None, gpus: int, cpus: int, minutes: int, more: Any, cluster: str
    ) -> None:
        super().__init__()
        self.parameters = {
            "slurm_partition": partition,
            "gpus_per_node": gpus,
            "cpus_per_task": cpus,
            "timeout_min": minutes,
            **more,
        }
        self.cluster = cluster

    def _executor(self) -> Any:
        from cifar_lightning.sweeps.slurm import SlurmExecutor

        return SlurmExecutor(self.cluster, self.parameters)

"""The jobs of a sweep: composed, resolved and checked before the first one starts."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from cifar_lightning.config import rules, user_errors
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.runs import identity, resolve
from cifar_lightning.runs.completed import finished
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run
from cifar_lightning.system.outcome import Outcome


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
    def finished(self) -> Run | None:
        return finished(self.folder, self.config)

    @property
    def benchmark(self) -> str:
        return json.dumps(self.config["benchmark"], sort_keys=True)


@dataclass(frozen=True)
class Failure:
    """A job that did not end well.

    Attributes:
        job: The job.
        status: Its exit status; negative is the number of the signal that killed it.
        outcome: Of its kind, ``killed`` is one that a signal ended.
    """

    job: Job
    status: int
    outcome: Outcome


def jobs(
    job_overrides: Sequence[Sequence[str]], compose: Callable[[list[str]], DictConfig]
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
            composed = compose(list(overrides))
            with open_dict(composed):
                composed.hydra.job.id = composed.hydra.job.num = number
            config = resolve.resolve(composed)
            rules.check(config)
            if config["trainer"].get("fast_dev_run"):
                raise bad_value("trainer.fast_dev_run", True, "false in a sweep: it leaves no run")
            name = identity.run_name(config, composed.hydra.runtime.choices)
            folder = RunFolder.of(Path(config["outputs"]), name).path
            job = Job(tuple(overrides), " ".join(varied) or name, config, folder)
            if job.finished is None:
                from cifar_lightning.training.build import build  # torch: where there is work

                build(config, folder)
        except Exception as error:
            known = user_errors.to_user_error(error)
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

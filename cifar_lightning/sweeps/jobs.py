"""The jobs of a sweep: composed, resolved and checked before the first one starts."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from cifar_lightning.system.progress import tracked


@dataclass(frozen=True)
class Job:
    """One run of a multirun.

    Attributes:
        overrides: Of the command line, this job's values in place of the sweep's.
        label: The overrides in which it differs from the other jobs.
        config: Resolved.
        folder: The run's.
        varied: The values of the keys in which it differs from the other jobs.
    """

    overrides: tuple[str, ...]
    label: str
    config: dict[str, Any]
    folder: Path
    varied: Mapping[str, str] = field(default_factory=dict)

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
    job_overrides: Sequence[Sequence[str]],
    compose: Callable[[list[str]], DictConfig],
    *,
    here: bool = True,
) -> list[Job]:
    """Compose, resolve and check every job; jobs that come to the same thing are one.

    Args:
        job_overrides: Of each job.
        compose: Makes a job's configuration.
        here: Whether they train on this machine, so their devices must be there.

    Raises:
        UserError: With a line for every mistake in any of them.
    """
    counts = Counter(override for overrides in job_overrides for override in overrides)
    found: dict[tuple[Path, str], Job] = {}
    mistakes: dict[int, str] = {}
    missing: dict[int, Job] = {}
    for number, overrides in enumerate(tracked(job_overrides, "composed", "jobs")):
        varied = [text for text in overrides if counts[text] < len(job_overrides)]
        with _noted(mistakes, number):
            job = _composed(number, overrides, varied, compose, here)
            known = found.setdefault(which := (job.folder, job.benchmark), job)
            if job.config["test"] and not known.config["test"]:  # it does what the other does
                known = found[which] = job
            if known is job and job.finished is None:
                missing[number] = job
    _build(missing, mistakes, here)
    if mistakes:
        lines = dict.fromkeys(line for _, line in sorted(mistakes.items()))
        raise UserError("\n".join(lines))
    if not found:
        raise UserError("-m: this sweep has no jobs")
    return list(found.values())


def _composed(
    number: int,
    overrides: Sequence[str],
    varied: Sequence[str],
    compose: Callable[[list[str]], DictConfig],
    here: bool,
) -> Job:
    composed = compose(list(overrides))
    resolve.check_choices(composed.hydra.runtime.choices)
    devices = composed.trainer.get("devices", 1)
    if not here and (not isinstance(devices, int) or devices == -1):
        # It would be this machine's, and with it the run's name.
        raise bad_value("trainer.devices", devices, "a number: the nodes' devices are not known")
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    config = resolve.resolve(composed)
    rules.check(config)
    if config["trainer"].get("fast_dev_run"):
        raise bad_value("trainer.fast_dev_run", True, "false in a sweep: it leaves no run")
    name = identity.run_name(config, composed.hydra.runtime.choices)
    folder = RunFolder.of(Path(config["outputs"]), name).path
    return Job(tuple(overrides), " ".join(varied) or name, config, folder, _values(varied))


def _values(overrides: Iterable[str]) -> dict[str, str]:
    """Take overrides apart; a key that is left out has no value."""
    return {
        key.lstrip("+~"): value or "left out"
        for key, _, value in (override.partition("=") for override in overrides)
    }


def _build(missing: Mapping[int, Job], mistakes: dict[int, str], here: bool) -> None:
    """Build what jobs consist of, jobs of one network after each other: it is built once."""
    if not missing:
        return
    from cifar_lightning.training.build import build  # torch: where there is work

    def network(item: tuple[int, Job]) -> str:
        return json.dumps(item[1].config["model"], sort_keys=True)

    last, backbone = "", None
    for number, job in tracked(sorted(missing.items(), key=network), "checked", "jobs"):
        if (this := network((number, job))) != last:
            last, backbone = this, None
        with _noted(mistakes, number):
            backbone = build(job.config, job.folder, backbone, here=here).classifier.backbone


@contextmanager
def _noted(mistakes: dict[int, str], number: int) -> Iterator[None]:
    """Keep a job's mistake, if it is one of the user's."""
    try:
        yield
    except Exception as error:
        known = user_errors.to_user_error(error)
        if known is None:
            raise
        mistakes[number] = str(known)

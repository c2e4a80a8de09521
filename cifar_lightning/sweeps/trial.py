"""A trial of a search: an ordinary run, as ``train.py`` makes it."""

import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial

import hydra
from hydra.core.hydra_config import HydraConfig

from cifar_lightning.config.schema import TrainConfig, TuneConfig
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.runs import identity
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import executors, jobs, run
from cifar_lightning.sweeps import space as spaces
from cifar_lightning.sweeps.space import Space
from cifar_lightning.system.locks import locked
from cifar_lightning.system.outcome import Outcome

# Endings that a trial's own settings can bring about. A mistake in a key of the space is another;
# whatever else ends a trial, such as a full disk, would end the next one, too.
OF_SETTINGS = {"not_finite", "crashed", "killed"}
OWN_KEYS = {one.name for one in fields(TuneConfig)} - {one.name for one in fields(TrainConfig)}
OWN_GROUPS = {"search"}


def shared_overrides(base: Sequence[str] = ()) -> list[str]:
    """Tell the overrides that every trial has: those of the search, then the command line's.

    Args:
        base: The search's, as far as the command line says nothing of the same key.
    """
    given = [
        override
        for override in HydraConfig.get().overrides.task
        if key_of(override).partition(".")[0] not in OWN_KEYS | OWN_GROUPS
    ]
    said = {key_of(override) for override in given}
    return [*(override for override in base if key_of(override) not in said), *given]


def key_of(override: str) -> str:
    """Tell which key an override is of."""
    return override.lstrip("+~").partition("=")[0]


def checked(shared: Sequence[str], space: Space) -> jobs.Job:
    """See that the space and its ends are allowed; return the job without a draw from it.

    Raises:
        UserError: With a line for every mistake.
    """
    found = composed([[*shared], *([*shared, *end] for end in spaces.ends(space))])
    for job in found:
        if job.config["data"]["val_fraction"] == 0:
            raise bad_value("data.val_fraction", 0, "above 0: held-out images judge the trials")
        if job.config["trainer"].get("limit_val_batches") == 0:
            raise bad_value("trainer.limit_val_batches", 0, "above 0: they judge the trials")
    return found[0]


def composed(job_overrides: Sequence[Sequence[str]]) -> list[jobs.Job]:
    """Compose and check the jobs of overrides."""
    return jobs.jobs(job_overrides, partial(hydra.compose, "train", return_hydra_config=True))


def study_name(base: jobs.Job, *more: object) -> str:
    """Name a study after everything that its trials share, so other settings make another."""
    shared = [identity.training_config(base.config), *more]
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    return f"{base.folder.name.rpartition('-')[0]}-{digest}"


def train(overrides: Sequence[str], searched: Collection[str]) -> Run | Outcome:
    """Train one trial.

    Args:
        overrides: Of its job.
        searched: The keys that the search sets.

    Returns:
        Its run; or why these settings can't be trained.

    Raises:
        UserError: If the user made a mistake that is not one of this trial's settings.
        RunFailed: If it failed otherwise; the same command again takes the trial up.
        Interrupted: If the user stopped it.
    """
    try:
        (job,) = composed([[*overrides, run.SKIP_BENCHMARK]])
    except UserError as error:  # the settings without a draw were right
        return Outcome(error.kind, str(error), error.key)
    if job.folder.exists():  # another process may have drawn the same
        with locked(RunFolder(job.folder).lock, f"waiting: {job.folder.name} is trained elsewhere"):
            pass
    failures = run.attempt([job], executors.LocalExecutor(1))
    with suppress(FileNotFoundError, ValueError):
        record = Run.load(job.folder)
        if record.status == "finished":  # trained and tested; what failed, if anything, came after
            return record
    (outcome,) = (failure.outcome for failure in failures)
    refused = outcome.kind == UserError.kind
    if outcome.kind in OF_SETTINGS or (
        refused and any(spaces.concerns(outcome.key, key) for key in searched)
    ):
        return outcome
    raise (UserError if refused else RunFailed)(outcome.message)

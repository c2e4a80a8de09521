"""A trial of a search: an ordinary run, as ``train.py`` makes it."""

import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial

import hydra
from hydra.core.hydra_config import HydraConfig

from cifar_lightning.config.schema import TrainConfig, TuneConfig
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.runs import identity
from cifar_lightning.runs.completed import lacks_test
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


@dataclass(frozen=True)
class Shared:
    """The overrides that every trial of a search has.

    Attributes:
        base: The search's own.
        given: The command line's, but for those of the search itself.
    """

    base: Sequence[str]
    given: Sequence[str]

    @classmethod
    def of(cls, base: Sequence[str] = ()) -> "Shared":
        given = [
            override
            for override in HydraConfig.get().overrides.task
            if key_of(override).partition(".")[0] not in OWN_KEYS | OWN_GROUPS
        ]
        return cls(base, given)

    def overrides(self, *own: str) -> list[str]:
        """Add a trial's own ones.

        Of the search's, those count that nobody says anything else of, and that the option has
        which is chosen for their group.
        """
        said = {key_of(override): override.partition("=")[2] for override in (*self.given, *own)}

        def counts(override: str) -> bool:
            key = key_of(override)
            group, _, inner = key.partition(".")
            fits = not inner or group not in said or inner in spaces.keys_of(group, said[group])
            return key not in said and fits

        return [*filter(counts, self.base), *self.given, *own]


def key_of(override: str) -> str:
    """Tell which key an override is of."""
    return override.lstrip("+~").partition("=")[0]


def checked(
    shared: Shared, space: Space, lengths: Sequence[str] = ()
) -> tuple[jobs.Job, list[jobs.Job]]:
    """See that the space and its ends are allowed.

    Args:
        shared: Of all trials.
        space: The space.
        lengths: Overrides of each of which some trials have one; its ends are tried with the last.

    Returns:
        The job without a draw from it, and those of its ends.

    Raises:
        UserError: With a line for every mistake.
    """
    each: list[tuple[str, ...]] = [(one,) for one in lengths] or [()]
    *_, base = bases = composed([shared.overrides(*own) for own in each])
    found = composed([shared.overrides(*lengths[-1:], *end) for end in spaces.ends(space)])
    for job in (*bases, *found):
        if job.config["data"]["val_fraction"] == 0:
            raise bad_value("data.val_fraction", 0, "above 0: held-out images judge the trials")
        if job.config["trainer"].get("limit_val_batches") == 0:
            raise bad_value("trainer.limit_val_batches", 0, "above 0: they judge the trials")
    return base, found


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
        # What failed after the training, if anything, is none of the trial's.
        if record.status == "finished" and not lacks_test(record, job.config):
            return record
    (outcome,) = (failure.outcome for failure in failures)
    refused = outcome.kind == UserError.kind
    if outcome.kind in OF_SETTINGS or (
        refused and any(spaces.concerns(outcome.key, key) for key in searched)
    ):
        return outcome
    raise (UserError if refused else RunFailed)(outcome.message)

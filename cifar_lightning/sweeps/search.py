"""A search for the settings with the best validation accuracy; its trials are ordinary runs.

The test split has no say: a trial's value is its run's ``val_acc``.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config import rules
from cifar_lightning.errors import RunFailed, UserError, bad_value, reason_of
from cifar_lightning.runs import identity
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import executors, jobs, run
from cifar_lightning.sweeps import space as spaces
from cifar_lightning.sweeps.space import Space, as_override
from cifar_lightning.system.environment import installation
from cifar_lightning.system.files import check_inside, is_disk_full
from cifar_lightning.system.locks import alone
from cifar_lightning.system.outcome import Outcome

log = logging.getLogger(__name__)

STUDIES = "tune.db"  # in the outputs
SHOWN = 5  # of the best trials
HOPELESS_AFTER = 3  # trials, all of them failed for the same reason
KILLED_WITH_SEARCH = 3  # times, and a trial is taken up no more
# Endings that a trial's own settings can bring about. A mistake in a key of the space is another;
# whatever else ends a trial, such as a full disk, would end the next one, too.
OF_SETTINGS = {"not_finite", "crashed", "killed"}
BEGUN, LEFT = "begun", "left"  # how often a trial was; it was not left where the search was killed


def search(cfg: DictConfig) -> None:
    """Run trials until there are ``n_trials``, those of earlier commands included.

    Args:
        cfg: Composed from ``conf/tune.yaml``.

    Raises:
        UserError: If the space or the configuration is wrong, or Optuna is not installed.
        RunFailed: If no trial ended well.
        Interrupted: If the user stopped it; the same command again goes on.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"tune.py needs Optuna: {installation('tune')}") from error
    space = spaces.flatten_space(OmegaConf.to_container(cfg.space, resolve=True))  # type: ignore[arg-type]
    rules.check({"n_trials": cfg.n_trials})
    given = [
        override
        for override in HydraConfig.get().overrides.task
        if override.lstrip("+~").partition("=")[0].partition(".")[0] not in spaces.OWN_KEYS
    ]
    base = _checked(given, space)
    outputs = Path(base.config["outputs"])
    outputs.mkdir(parents=True, exist_ok=True)
    check_inside(outputs, outputs / STUDIES)
    name = _study_name(base, space)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with alone(outputs / f".{name}.lock", f"study {name}: already running in another process"):
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{outputs.resolve() / STUDIES}",
                study_name=name,
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # another user's, damaged, or no such file at all
            if is_disk_full(error):
                raise
            raise UserError(f"{outputs / STUDIES}: can't be used: {reason_of(error)}") from error
        ended = sum(trial.state.is_finished() for trial in study.get_trials())
        log.info("study %s: %d of %d trials are done", name, ended, cfg.n_trials)
        for trial in _trials(study, cfg.n_trials, base.config["seed"]):
            overrides = spaces.draw(trial, space)
            log.info("trial %d of %d: %s", trial.number + 1, cfg.n_trials, " ".join(overrides))
            trial.set_user_attr(BEGUN, trial.user_attrs.get(BEGUN, 0) + 1)
            try:
                ending = _run([*given, *overrides, run.SKIP_BENCHMARK], space)
            except BaseException:
                trial.set_user_attr(LEFT, trial.user_attrs.get(LEFT, 0) + 1)
                raise
            if isinstance(ending, Run):
                trial.set_user_attr("run", ending.name)
                study.tell(trial, ending.val_acc)
            else:
                log.warning("this trial failed: %s", ending.message)
                trial.set_user_attr("reason", ending.message)
                trial.set_user_attr("cause", f"{ending.kind} {ending.key}")
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                _end_if_hopeless(study)
        _show(study)


def _trials(study: Any, count: int, seed: int) -> Iterator[Any]:
    """Yield the trials that have not ended: those that an earlier command left, then new ones.

    A trial in which the search was killed again and again, perhaps for want of memory, has failed.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    earlier = study.get_trials()
    for number in range(count):
        # Another seed each time, or a search that goes on would draw the same again.
        study.sampler = TPESampler(seed=seed + number)
        if number >= len(earlier):
            yield study.ask()
            continue
        left = earlier[number]
        if left.state.is_finished():
            continue
        if left.user_attrs.get(BEGUN, 0) - left.user_attrs.get(LEFT, 0) < KILLED_WITH_SEARCH:
            yield Trial(study, left._trial_id)  # with the same settings, so its run continues
        else:
            study.tell(number, state=TrialState.FAIL)


def _run(overrides: list[str], space: Space) -> Run | Outcome:
    """Train one trial.

    Returns:
        Its run; or why these settings can't be trained.

    Raises:
        UserError: If the user made a mistake that is not one of this trial's settings.
        RunFailed: If it failed otherwise; the same command again takes the trial up.
        Interrupted: If the user stopped it.
    """
    try:
        (job,) = _jobs([overrides])
    except UserError as error:  # the settings without a draw were right
        return Outcome(error.kind, str(error), error.key)
    failures = run.attempt([job], executors.LocalExecutor(1))
    with suppress(FileNotFoundError, ValueError):
        record = Run.load(job.folder)
        if record.status == "finished":  # trained and tested; what failed, if anything, came after
            return record
    (outcome,) = (failure.outcome for failure in failures)
    refused = outcome.kind == UserError.kind
    if outcome.kind in OF_SETTINGS or (
        refused and any(spaces.concerns(outcome.key, key) for key in space)
    ):
        return outcome
    raise (UserError if refused else RunFailed)(outcome.message)


def _end_if_hopeless(study: Any) -> None:
    """End a search whose every trial failed for one and the same reason.

    Raises:
        RunFailed: If it is one.
    """
    trials = study.get_trials()
    failed = [trial.user_attrs for trial in trials if "cause" in trial.user_attrs]
    alike = len({attributes["cause"] for attributes in failed}) == 1
    if alike and len(failed) >= HOPELESS_AFTER and all(trial.value is None for trial in trials):
        raise RunFailed(
            f"{study.study_name}: all {len(failed)} trials failed for the same reason; the last "
            f"one: {failed[-1]['reason']}"
        )


def _checked(given: list[str], space: Space) -> jobs.Job:
    """See that the space and its ends are allowed; return the job without a draw from it."""
    jobs = _jobs([given, *([*given, end] for end in spaces.ends(space))])
    for job in jobs:
        if job.config["data"]["val_fraction"] == 0:
            raise bad_value("data.val_fraction", 0, "above 0: held-out images judge the trials")
    return jobs[0]


def _jobs(job_overrides: list[list[str]]) -> list[jobs.Job]:
    return jobs.jobs(job_overrides, partial(hydra.compose, "train", return_hydra_config=True))


def _study_name(base: jobs.Job, space: Space) -> str:
    """Name the study after everything that its trials share, so other settings make another."""
    shared = [identity.training_config(base.config), space]
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    return f"{base.folder.name.rpartition('-')[0]}-{digest}"


def _show(study: Any) -> None:
    """Show what failed, the best trials, and the overrides of the best."""
    done = []
    for trial in study.get_trials():
        if trial.value is not None:
            done.append(trial)
        elif trial.state.is_finished():
            reason = trial.user_attrs.get("reason", "the search was killed in it again and again")
            log.warning("failed: %s: %s", _settings(trial), reason)
    if not done:
        raise RunFailed(f"{study.study_name}: no trial ended well")
    done.sort(key=lambda trial: trial.value, reverse=True)
    name = done[0].user_attrs["run"]  # trials are of few networks: none was measured
    log.info("for the best one's latency: python -m cifar_lightning.measure run=%s", name)
    for trial in done[:SHOWN]:
        log.info("%.2f %% val acc  %s  %s", trial.value, trial.user_attrs["run"], _settings(trial))
    best = " ".join(as_override(key, value) for key, value in done[0].params.items())
    log.info("best: %s", best)


def _settings(trial: Any) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else as_override(key, value)
        for key, value in trial.params.items()
    )

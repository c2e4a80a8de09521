"""A search for the settings with the best validation accuracy; its trials are ordinary runs.

The test split has no say: a trial's value is its run's ``val_acc``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_lightning import config as configuration
from cifar_lightning import sweep
from cifar_lightning.errors import RunFailed, UserError, bad_value, unknown_name
from cifar_lightning.files import alone, check_inside
from cifar_lightning.results import Run

log = logging.getLogger(__name__)

STUDIES = "tune.db"  # in the outputs
OWN_KEYS = ("n_trials", "space")
RANGE_KEYS = ("low", "high", "log", "choices")
SHOWN = 5  # of the best trials
HOPELESS_AFTER = 3  # trials, all of them failed for the same reason
KILLED_WITH_SEARCH = 3  # times, and a trial is taken up no more
# Endings that a trial's own settings can bring about. A mistake in a key of the space is another;
# whatever else ends a trial, such as a full disk, would end the next one, too.
OF_SETTINGS = {"not_finite", "crashed", "killed"}
Space = Mapping[str, Mapping[str, Any]]


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
        raise UserError("tune.py needs Optuna: pip install 'cifar-lightning[tune]'") from error
    space = _flat(OmegaConf.to_container(cfg.space, resolve=True))  # type: ignore[arg-type]
    configuration.check({"n_trials": cfg.n_trials})
    given = [
        override
        for override in HydraConfig.get().overrides.task
        if override.lstrip("+~").partition("=")[0].partition(".")[0] not in OWN_KEYS
    ]
    base = _checked(given, space)
    outputs = Path(base.config["outputs"])
    outputs.mkdir(parents=True, exist_ok=True)
    check_inside(outputs, outputs / STUDIES)
    name = _study_name(base, space)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with alone(outputs / f".{name}.lock", f"another process is at the study {name}"):
        study = optuna.create_study(
            storage=f"sqlite:///{outputs.resolve() / STUDIES}",
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
        ended = _take_up(study)
        log.info("study %s: %d of %d trials are done", name, ended, cfg.n_trials)
        for number in range(ended, cfg.n_trials):
            # Another seed each time, or a search that goes on would draw the same again.
            seed = base.config["seed"] + number
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = study.ask()
            overrides = [_override(key, value) for key, value in _draw(trial, space)]
            log.info("trial %d of %d: %s", number + 1, cfg.n_trials, " ".join(overrides))
            try:
                ended_as = _run([*given, *overrides], space)
            except BaseException:
                trial.set_user_attr(LEFT, True)  # by its own will, so it can go on
                raise
            if isinstance(ended_as, Run):
                trial.set_user_attr("run", ended_as.name)
                study.tell(trial, ended_as.val_acc)
            else:
                log.warning("this trial failed: %s", ended_as.text)
                trial.set_user_attr("reason", ended_as.text)
                trial.set_user_attr("cause", ended_as.cause)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                _end_if_hopeless(study)
        _show(study)


@dataclass(frozen=True)
class _Untrainable:
    """Why a trial's settings can't be trained.

    Attributes:
        cause: The same for trials that fail alike.
        text: For people.
    """

    cause: str
    text: str


def _run(overrides: list[str], space: Space) -> Run | _Untrainable:
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
        return _Untrainable(f"refused {error.key}", str(error))
    for failure in sweep.attempt([job], sweep.ThisMachine(1)):
        record = _record(job.folder)
        if record is not None and record.status == "finished":
            break  # trained and tested; what failed came after
        if failure.kind in OF_SETTINGS:
            return _Untrainable(failure.kind, failure.reason)
        if failure.kind == UserError.kind:
            if any(_concerns(failure.key, key) for key in space):
                return _Untrainable(f"refused {failure.key}", failure.reason)
            raise UserError(failure.reason)
        raise RunFailed(failure.reason)
    return Run.load(job.folder)


def _record(folder: Path) -> Run | None:
    try:
        return Run.load(folder)
    except (FileNotFoundError, ValueError):
        return None


def _concerns(refused: str | None, key: str) -> bool:
    """Tell whether a refused key is one of the space's, lies in it, or holds it."""
    return refused is not None and (
        f"{refused}.".startswith(f"{key}.") or key.startswith(refused + ".")
    )


LEFT = "left"  # a trial that an error or a signal ended in good order; one killed with us has none
KILLED = "killed"  # how often the search was killed in this trial


def _take_up(study: Any) -> int:
    """Begin again with the trials that an earlier command left; return how many have ended.

    Their runs have the same names again, and so continue. A trial in which the search was killed
    again and again, perhaps for want of memory, has failed.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        killed = trial.user_attrs.get(KILLED, 0) + (LEFT not in trial.user_attrs)
        study.tell(trial.number, state=TrialState.FAIL)
        if killed < KILLED_WITH_SEARCH:
            again = {"instead_of": trial.number, KILLED: killed}
            study.enqueue_trial(trial.params, user_attrs=again)
    trials = study.get_trials()
    finished = [trial for trial in trials if trial.state.is_finished()]
    return len(finished) - sum("instead_of" in trial.user_attrs for trial in trials)


def _end_if_hopeless(study: Any) -> None:
    """End a search whose every trial failed for one and the same reason.

    Raises:
        RunFailed: If it is one.
    """
    trials = study.get_trials()
    failed = [trial for trial in trials if "cause" in trial.user_attrs]
    done = any(trial.value is not None for trial in trials)
    causes = {trial.user_attrs["cause"] for trial in failed}
    if not done and len(failed) >= HOPELESS_AFTER and len(causes) == 1:
        raise RunFailed(
            f"{study.study_name}: all {len(failed)} trials failed for the same reason; the last "
            f"one: {failed[-1].user_attrs['reason']}"
        )


def _draw(trial: Any, space: Space) -> Iterator[tuple[str, Any]]:
    for key, entry in space.items():
        if "choices" in entry:
            yield key, trial.suggest_categorical(key, entry["choices"])
        else:
            low, high = entry["low"], entry["high"]
            whole = isinstance(low, int) and isinstance(high, int)
            suggest = trial.suggest_int if whole else trial.suggest_float
            yield key, suggest(key, low, high, log=entry.get("log", False))


def _override(key: str, value: Any) -> str:
    """Write a setting as the command line takes it."""
    return f"{key}={'null' if value is None else value}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Space:
    """Name every range of the space by its key in the configuration, such as ``optim.lr``."""
    space: dict[str, Mapping[str, Any]] = {}
    for key, value in node.items():
        if not isinstance(value, Mapping) or not value:
            raise bad_value(
                f"space.{prefix}{key}", value, "{low: ..., high: ...}, {choices: [...]}"
            )
        if set(value) & set(RANGE_KEYS):
            space[prefix + key] = value
        else:
            space |= _flat(value, f"{prefix}{key}.")
    return space


def _checked(given: list[str], space: Space) -> sweep.Job:
    """See that the space and its ends are allowed; return the job without a draw from it."""
    if not space:
        raise bad_value("space", "{}", "at least one key with low and high, or choices")
    ends = [_override(key, value) for key, entry in space.items() for value in _ends(key, entry)]
    jobs = _jobs([given, *([*given, end] for end in ends)])
    for job in jobs:
        if job.config["data"]["val_fraction"] == 0:
            raise bad_value("data.val_fraction", 0, "above 0: held-out images judge the trials")
    return jobs[0]


def _ends(key: str, entry: Mapping[str, Any]) -> list[Any]:
    """Tell the values between which a range lies, or all of its choices."""
    for name in entry:
        if name not in RANGE_KEYS:
            raise unknown_name(f"space.{key}.{name}", "key", name, RANGE_KEYS)
    if "choices" in entry:
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices or len(entry) > 1:
            raise bad_value(f"space.{key}", entry, "{choices: [...]} with at least one")
        return choices
    low, high = entry.get("low"), entry.get("high")
    numbers = [v for v in (low, high) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or numbers[0] >= numbers[1]:
        raise bad_value(f"space.{key}", entry, "numbers, low below high")
    if entry.get("log") and numbers[0] <= 0:
        raise bad_value(f"space.{key}.low", low, "a number above 0 where log is true")
    return numbers


def _jobs(job_overrides: list[list[str]]) -> list[sweep.Job]:
    return sweep.jobs(
        job_overrides,
        lambda overrides: hydra.compose("train", list(overrides), return_hydra_config=True),
    )


def _study_name(base: sweep.Job, space: Space) -> str:
    """Name the study after everything that its trials share, so other settings make another."""
    shared = [configuration.training_config(base.config), space]
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    return f"{base.folder.name.rpartition('-')[0]}-{digest}"


def _show(study: Any) -> None:
    """Show what failed, the best trials, and the overrides of the best."""
    from optuna.trial import TrialState

    trials = study.get_trials()
    taken_up = {trial.user_attrs.get("instead_of") for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.number not in taken_up:
            reason = trial.user_attrs.get("reason", "the search was killed in it again and again")
            log.warning("failed: %s: %s", _settings(trial), reason)
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        raise RunFailed(f"{study.study_name}: no trial ended well")
    done.sort(key=lambda trial: trial.value, reverse=True)
    for trial in done[:SHOWN]:
        log.info("%.2f %% val acc  %s  %s", trial.value, trial.user_attrs["run"], _settings(trial))
    best = " ".join(_override(key, value) for key, value in done[0].params.items())
    log.info("best: %s", best)


def _settings(trial: Any) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else _override(key, value)
        for key, value in trial.params.items()
    )

"""A search for the settings with the best validation accuracy; its trials are ordinary runs.

The test split has no say: a trial's value is its run's ``val_acc``.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config import rules
from cifar_lightning.config.options import as_override
from cifar_lightning.errors import RunFailed
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import space as spaces
from cifar_lightning.sweeps.sampler import of_settings
from cifar_lightning.sweeps.study import KILLED, Study
from cifar_lightning.sweeps.trial import Shared, checked, study_name, train
from cifar_lightning.system.formatting import counted

log = logging.getLogger(__name__)

SHOWN = 5  # of the best trials
HOPELESS_AFTER = 3  # trials, all of them failed for the same reason


def search(cfg: DictConfig) -> None:
    """Run trials until there are ``n_trials``, those of earlier commands included.

    Args:
        cfg: Composed from ``conf/tune.yaml``.

    Raises:
        UserError: If the space or the configuration is wrong, or Optuna is not installed.
        RunFailed: If no trial ended well.
        Interrupted: If the user stopped it; the same command again goes on.
    """
    space = spaces.flatten_space(OmegaConf.to_container(cfg.space, resolve=True))  # type: ignore[arg-type]
    rules.check({"n_trials": cfg.n_trials})
    shared = Shared.of()
    base, _ = checked(shared, space)
    name = study_name(base, spaces.as_plain(space))
    outputs, sampler = Path(base.config["outputs"]), partial(of_settings, base.config["seed"])
    with Study(outputs, name, ["maximize"], cfg.storage, sampler) as study:
        log.info("study %s: %d of %d trials are done", name, study.ended, cfg.n_trials)
        while (trial := study.take(cfg.n_trials)) is not None:
            overrides = spaces.draw(trial, space)
            log.info("trial %d of %d: %s", trial.number + 1, cfg.n_trials, " ".join(overrides))
            with study.claims[trial.number].work():
                ending = train(shared.overrides(*overrides), space)
            if isinstance(ending, Run):
                trial.set_user_attr("run", ending.name)
                assert ending.val_acc is not None
                study.tell(trial, ending.val_acc)
            else:
                log.warning("this trial failed: %s", ending.message)
                study.fail(trial, ending.message, f"{ending.kind} {ending.key}")
                _end_if_hopeless(study)
        if others := study.elsewhere:
            log.info("other processes are at work on %s", counted(len(others), "trial"))
        _show(study)


def _end_if_hopeless(study: Study) -> None:
    """End a search whose every trial failed for one and the same reason.

    Raises:
        RunFailed: If it is one.
    """
    trials = study.trials
    failed = [trial.user_attrs for trial in trials if "cause" in trial.user_attrs]
    alike = len({attributes["cause"] for attributes in failed}) == 1
    if alike and len(failed) >= HOPELESS_AFTER and all(trial.value is None for trial in trials):
        raise RunFailed(
            f"{study.name}: all {len(failed)} trials failed for the same reason; the last "
            f"one: {failed[-1]['reason']}"
        )


def _show(study: Study) -> None:
    """Show what failed, the best trials, and the overrides of the best."""
    done = []
    for trial in study.trials:
        if trial.value is not None:
            done.append(trial)
        elif trial.state.is_finished():
            reason = trial.user_attrs.get("reason", KILLED)
            log.warning("failed: %s: %s", _settings(trial), reason)
    if not done:
        raise RunFailed(f"{study.name}: no trial ended well")
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

"""How a training run that ends early is recorded, and what the user is told."""

import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cifar_lightning import errors
from cifar_lightning.comparison.publish import publish
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run
from cifar_lightning.system import signals
from cifar_lightning.system.files import is_disk_full
from cifar_lightning.training.build import Experiment

log = logging.getLogger(__name__)


def classify_failure(
    experiment: Experiment, error: BaseException, config: dict[str, Any]
) -> errors.CifarLightningError | None:
    """Turn what ended the work early into the error that the user sees; None leaves it as it is."""
    name = experiment.folder.name
    stopped = isinstance(error, errors.Interrupted | KeyboardInterrupt | SystemExit)
    if stopped or (isinstance(error, Exception) and signals.received()):
        # Signals reach a loader's worker processes, too, and show as failures of theirs.
        again = "without rerun=true" if config["rerun"] else "again"
        return signals.error(f"{name}: interrupted; the same command {again} continues it")
    if isinstance(error, errors.NotFinite):
        return errors.NotFinite(f"{name}: {error}")
    if isinstance(error, errors.UserError | errors.RunFailed):
        return error
    if is_disk_full(error):
        return errors.RunFailed(
            f"{name}: no space left for {experiment.folder}; "
            "free some, and the same command again continues it"
        )
    if isinstance(error, Exception):
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        # Of the system, such as a folder that is gone, or of what this training run asks for.
        kind = errors.RunFailed if isinstance(error, OSError) else errors.Crashed
        return kind(f"{name}: {line}; see {RunFolder(experiment.folder).log}")
    return None


def record_failure(experiment: Experiment, ending: errors.CifarLightningError) -> None:
    """Write down how the run ended; on a full disk it stays as it was."""
    log.debug("the run ended early", exc_info=True)  # for train.log
    with suppress(OSError, ValueError):
        record = Run.load(experiment.folder)
        if record.status != "running" or isinstance(ending, errors.UserError):
            return  # it had not begun, or was trained before
        if isinstance(ending, errors.Interrupted):
            replace(record, status="interrupted").save(experiment.folder)
        else:
            line = str(ending).removeprefix(f"{experiment.folder.name}: ").partition("; see ")[0]
            replace(record, status="failed", error=line).save(experiment.folder)
            publish(RunFolder(experiment.folder).outputs)

"""Where a training run begins, and how one that ends early is recorded."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.benchmark.contention import lock_path
from cifar_lightning.comparison.publish import publish
from cifar_lightning.errors import (
    CifarLightningError,
    Crashed,
    Interrupted,
    NotFinite,
    RunFailed,
    UserError,
    bad_value,
)
from cifar_lightning.models.complexity import count_macs, count_parameters
from cifar_lightning.runs.completed import changes_since
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import MEGA, Run, read_weights
from cifar_lightning.runs.table import check_table
from cifar_lightning.system import environment, signals, untrusted
from cifar_lightning.system.devices import device_name
from cifar_lightning.system.files import check_inside, is_disk_full, remove_unfinished
from cifar_lightning.system.formatting import relative
from cifar_lightning.system.locks import check_lock
from cifar_lightning.training.callbacks import NameInCheckpoints
from cifar_lightning.training.components import teachers_folder
from cifar_lightning.training.experiment import Experiment, training_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        record: The run as it is now.
        checkpoint: To continue from; None at the very beginning.
        step: The optimizer's steps that are done.
    """

    record: Run
    checkpoint: Path | None = None
    step: int = 0


def begin(experiment: Experiment, config: dict[str, Any], choices: dict[str, str]) -> Start:
    """Look at what is there already and decide where to begin; prepare the run's folder.

    Raises:
        UserError: If the data can't be read, or what an earlier command left can't be used.
    """
    folder, outputs = experiment.folder, Path(config["outputs"])
    check_table(outputs)
    if experiment.benchmark.spec.variants:
        check_lock(lock_path(training_device(experiment)))
    if "cache_dir" in config["data"]:
        check_inside(outputs, Path(config["data"]["cache_dir"]))
    before = None if config["rerun"] else _earlier(folder)
    fingerprint = experiment.data.images.fingerprint
    experiment.data.check_batches(experiment.trainer.world_size)
    if before is not None and before.data_fingerprint != fingerprint:
        raise UserError(
            f"{folder}: this run was trained on other data ({before.data_fingerprint}, now "
            f"{fingerprint}); give the data another data.name, or start over with rerun=true"
        )
    if before is not None and before.status == "finished" and RunFolder(folder).weights.exists():
        read_weights(folder, before)
        return Start(before)
    if config["distill"] is not None:
        teacher = load_run(teachers_folder(config))
        if teacher.data_fingerprint != fingerprint:
            raise bad_value(
                "distill.teacher",
                teacher.name,
                f"data {fingerprint}, its are {teacher.data_fingerprint}",
            )
    _greet(experiment)
    start = Start(
        Run(
            name=folder.name,
            id=config["id"] or (before.id if before else None),
            choices=choices,
            config=config,
            status="running",
            started=before.started if before else datetime.now(UTC).isoformat(timespec="seconds"),
            data_fingerprint=fingerprint,
            classes=list(experiment.data.images.classes),
            code=environment.code(),
            versions=environment.versions(),
            machine=environment.machine(
                device_name(training_device(experiment)), torch.get_num_threads()
            ),
            params=count_parameters(experiment.classifier.backbone),
            macs=count_macs(experiment.classifier.backbone),
        )
    )
    if before is not None:
        start = _continued(experiment, before, start)
    if start.checkpoint is None:  # also of a run that did not come to its first one
        _clear(folder)
    remove_unfinished(folder)
    remove_unfinished(RunFolder(folder).checkpoints)
    start.record.save(folder)
    return start


def _earlier(folder: Path) -> Run | None:
    """Read what an earlier command left of this run."""
    try:
        return Run.load(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{RunFolder(folder).record}: damaged; start over with rerun=true"
        ) from error


def _continued(experiment: Experiment, before: Run, start: Start) -> Start:
    """Begin at the last finished epoch of an earlier command, if there is one.

    Raises:
        UserError: If a checkpoint is damaged, another run's, or needed and gone.
    """
    paths = RunFolder(experiment.folder)
    path, best = paths.last, paths.best
    if not path.exists():
        if before.status == "finished":
            raise UserError(
                f"{paths.checkpoints}: {before.name} is trained, but its weights and checkpoints "
                "are gone; start over with rerun=true"
            )
        return start
    if experiment.best is not None and not best.exists():
        raise UserError(
            f"{best}: is gone, and with it the best weights so far; start over with rerun=true"
        )
    epoch, step = _check_checkpoint(path, before.name)
    if best.exists():
        _check_checkpoint(best, before.name)
    log.info("continuing after epoch %d", epoch + 1)
    for change in changes_since(before):
        log.warning("since the run began changed: %s", change)
    then, now = before.machine.threads, start.record.machine.threads
    if then != now:
        log.warning(
            "since the run began changed: threads, %s -> %s; sums are rounded otherwise", then, now
        )
    return replace(start, checkpoint=path, step=step)


def _check_checkpoint(path: Path, name: str) -> tuple[int, int]:
    """Read a checkpoint's epoch and step, and see that it is of the run of that name."""
    try:
        with untrusted.open_regular(path) as stream:
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
        epoch, step = int(checkpoint["epoch"]), int(checkpoint["global_step"])
        run = str(checkpoint[NameInCheckpoints.KEY])
    except Exception as error:
        raise UserError(f"{path}: damaged; start over with rerun=true") from error
    if run != name:
        raise UserError(f"{path}: of the run {run}; start over with rerun=true")
    return epoch, step


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, but not this command's own log."""
    for path in RunFolder(folder).results:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def classify_failure(
    experiment: Experiment, error: BaseException, config: dict[str, Any]
) -> CifarLightningError | None:
    """Turn what ended the work early into the error that the user sees; None leaves it as it is."""
    name = experiment.folder.name
    stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
    if stopped or (isinstance(error, Exception) and signals.received()):
        # Signals reach a loader's worker processes, too, and show as failures of theirs.
        again = (
            "the same command without rerun=true" if config["rerun"] else "the same command again"
        )
        return signals.error(f"{name}: interrupted; {again} continues it")
    if isinstance(error, NotFinite):
        return NotFinite(f"{name}: {error}")
    if isinstance(error, UserError | RunFailed):
        return error
    if is_disk_full(error):
        return RunFailed(
            f"{name}: no space left for {experiment.folder}; "
            "free some, and the same command again continues it"
        )
    if isinstance(error, Exception):
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        # Of the system, such as a folder that is gone, or of what this training asks for.
        kind = RunFailed if isinstance(error, OSError) else Crashed
        return kind(f"{name}: {line}; see {RunFolder(experiment.folder).log}")
    return None


def record_failure(experiment: Experiment, ending: CifarLightningError, outputs: Path) -> None:
    """Write down how the run ended; on a full disk it stays as it was."""
    log.debug("the run ended early", exc_info=True)  # for train.log
    with suppress(OSError, ValueError):
        record = Run.load(experiment.folder)
        if record.status != "running" or isinstance(ending, UserError):
            return  # it had not begun, or was trained before
        if isinstance(ending, Interrupted):
            replace(record, status="interrupted").save(experiment.folder)
        else:
            line = str(ending).removeprefix(f"{experiment.folder.name}: ").partition("; see ")[0]
            replace(record, status="failed", error=line).save(experiment.folder)
            publish(outputs)


def _greet(experiment: Experiment) -> None:
    backbone = experiment.classifier.backbone
    log.info(
        "%s in %s on %s: %.2f M parameters, %.2f M MACs",
        experiment.folder.name,
        relative(experiment.folder),
        device_name(training_device(experiment)),
        count_parameters(backbone) / MEGA,
        count_macs(backbone) / MEGA,
    )

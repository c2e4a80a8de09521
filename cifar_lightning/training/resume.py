"""Where a training run begins: anew, or where an earlier command left it."""

import logging
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from cifar_lightning.benchmark.contention import lock_paths
from cifar_lightning.benchmark.data_check import difference, summary
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.models.complexity import count_macs, count_parameters
from cifar_lightning.runs.completed import changes_since
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.gpu import Fp32Precision
from cifar_lightning.runs.ownership import check_measurable
from cifar_lightning.runs.related import relations
from cifar_lightning.runs.run import MEGA, Run, listed_run
from cifar_lightning.runs.table import check_table
from cifar_lightning.runs.weights import read_weights
from cifar_lightning.system import environment
from cifar_lightning.system.devices import device_name
from cifar_lightning.system.files import check_inside, open_regular, remove_unfinished
from cifar_lightning.system.formatting import relative
from cifar_lightning.system.locks import check_lock
from cifar_lightning.training.build import Experiment
from cifar_lightning.training.components import check_classes, teachers_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumeState:
    """Where a training run begins.

    Attributes:
        record: The run as it is now.
        checkpoint: To continue from; None at the very beginning.
        step: The optimizer's steps that are done.
    """

    record: Run
    checkpoint: Path | None = None
    step: int = 0


def prepare_run(
    experiment: Experiment, config: dict[str, Any], choices: dict[str, str]
) -> ResumeState:
    """Look at what is there already and decide where to begin; prepare the run's folder.

    Raises:
        UserError: If the data can't be read, or what an earlier command left can't be used.
    """
    folder, outputs = experiment.folder, Path(config["outputs"])
    check_table(outputs)
    if experiment.benchmark.variants:
        for path in lock_paths(experiment.device):
            check_lock(path)
        check_measurable(outputs, [folder])
    if "cache_dir" in config["data"]:
        check_inside(outputs, Path(config["data"]["cache_dir"]))
    before = None if config["rerun"] else _earlier(folder)
    experiment.data.prepare_data()
    images = experiment.data.images
    experiment.data.check_batches(experiment.trainer)
    if before is not None and (other := difference(before, images)) is not None:
        raise UserError(
            f"{folder}: this run was trained on other data ({before.data_fingerprint}, now "
            f"{images.fingerprint}: {other}); give the data another data.name, or start over with "
            "rerun=true"
        )
    if before is not None and before.status == "finished" and RunFolder(folder).weights.exists():
        read_weights(folder, before)
        return ResumeState(before)
    if config["distill"] is not None:
        teacher = load_run(teachers_folder(config))
        if (other := difference(teacher, images)) is not None:
            theirs = f"data {images.fingerprint}, its are {teacher.data_fingerprint} ({other})"
            raise bad_value("distill.teacher", teacher.name, theirs)
    check_classes(config, images.classes)
    backbone, device = experiment.classifier.backbone, device_name(experiment.device)
    params, macs = count_parameters(backbone), count_macs(backbone)
    log.info(
        "%s in %s on %s: %.2f M parameters, %.2f M MACs",
        *(folder.name, relative(folder), device, params / MEGA, macs / MEGA),
    )
    start = ResumeState(
        Run(
            name=folder.name,
            id=config["id"] or (before.id if before else None),
            choices=choices,
            config=_recorded(config),
            status="running",
            started=before.started if before else datetime.now(UTC).isoformat(timespec="seconds"),
            data_fingerprint=images.fingerprint,
            data=summary(images),
            classes=list(images.classes),
            code=environment.code(),
            versions=environment.versions(),
            machine=environment.machine(device, torch.get_num_threads()),
            params=params,
            macs=macs,
            fp32_precision=_fp32_precision(experiment.device),
        )
    )
    known = listed_run(folder)  # also of a run that starts over
    for line in relations(outputs, start.record, known if isinstance(known, Run) else None):
        log.warning("%s", line)
    if before is not None:
        start = _continued(experiment, before, start)
    if start.checkpoint is None:  # also of a run that did not come to its first one
        _clear(folder)
    remove_unfinished(folder)
    remove_unfinished(RunFolder(folder).checkpoints)
    start.record.save(folder)
    return start


def _recorded(config: dict[str, Any]) -> dict[str, Any]:
    """Write down where the data are so that it means the same in another folder.

    Left out are where initial weights lay, which are known by what they are, and whether to test:
    the accuracy tells whether that was done.
    """
    data, init = config["data"], config["init"]
    if "root" in data:
        data = data | {"root": str(Path(data["root"]).absolute())}
    if init is not None:
        init = {key: value for key, value in init.items() if key != "path"}
    kept = {key: value for key, value in config.items() if key != "test"}
    return kept | {"data": data, "init": init}


def _fp32_precision(device: torch.device) -> Fp32Precision | None:
    """Tell how fp32 numbers are multiplied in training; Lightning leaves torch's switches alone."""
    if device.type != "cuda":
        return None
    has_tf32 = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    switches: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    found: list[Literal["ieee", "tf32"]] = [
        "tf32" if has_tf32 and switch.fp32_precision == "tf32" else "ieee" for switch in switches
    ]
    return Fp32Precision(*found)


def _start_over(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; start over with rerun=true")


def _earlier(folder: Path) -> Run | None:
    """Read what an earlier command left of this run."""
    try:
        return Run.load(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _start_over(RunFolder(folder).record, "damaged") from error


def _continued(experiment: Experiment, before: Run, start: ResumeState) -> ResumeState:
    """Begin at the last finished epoch of an earlier command, if there is one.

    Raises:
        UserError: If a checkpoint is damaged, another run's, or needed and gone.
    """
    paths = RunFolder(experiment.folder)
    if not paths.last.exists():
        if before.status == "finished":
            gone = f"{before.name} is trained, but its weights and checkpoints are gone"
            raise _start_over(paths.checkpoints, gone)
        return start
    last = _read_checkpoint(paths.last, before.name)
    if paths.best.exists():
        _read_checkpoint(paths.best, before.name)
    elif any(state.get("best_model_score") is not None for state in last.callbacks.values()):
        raise _start_over(paths.best, "is gone, and with it the best weights so far")
    log.info("continuing after epoch %d", last.epoch + 1)
    changes = changes_since(before)
    if (then := before.machine.threads) != (now := start.record.machine.threads):
        changes.append(f"threads, {then} -> {now}; sums are rounded otherwise")
    for change in changes:
        log.warning("since the run began changed: %s", change)
    return replace(start, checkpoint=paths.last, step=last.global_step)


@dataclass(frozen=True)
class _Checkpoint:
    """What is read of one of Lightning's."""

    epoch: int
    global_step: int
    callbacks: dict[str, dict[str, Any]]
    run: str  # `RunState.NAME`


def _read_checkpoint(path: Path, name: str) -> _Checkpoint:
    """Read a checkpoint, and see that it is of the run of that name."""
    try:
        with open_regular(path) as stream:
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
        found = msgspec.convert(loaded, _Checkpoint)
    except Exception as error:
        raise _start_over(path, "damaged") from error
    if found.run != name:
        raise _start_over(path, f"of the run {found.run}")
    return found


def _clear(folder: Path) -> None:
    """Remove what an earlier training run left, but not this command's own log."""
    for path in RunFolder(folder).results:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

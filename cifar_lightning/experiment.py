"""One experiment from configuration to results: build, fit, test. The only place that wires."""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from tqdm.contrib.logging import logging_redirect_tqdm

from cifar_lightning import config as configuration
from cifar_lightning import provenance
from cifar_lightning.callbacks import EpochSeed, RunProgressBar, duration
from cifar_lightning.classifier import ImageClassifier, parameter_groups
from cifar_lightning.data import ImageDataModule
from cifar_lightning.errors import Interrupted, RunFailed, UserError, bad_value
from cifar_lightning.footprint import count_macs, count_parameters
from cifar_lightning.measure import WEIGHTS, device_name
from cifar_lightning.results import MEGA, Row, Run, markdown, rows_of, write_table

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
# Each component, with the arguments that the code gives it or can't do without: the configuration
# has no say in those.
GIVEN: dict[str, tuple[str, ...]] = {
    "model": (),
    "optim": ("params",),
    "scheduler": ("optimizer", "total_steps"),
    "augment": (),
    "data": ("augment",),
    "benchmark": (),
    "trainer": (
        "barebones",
        "callbacks",
        "default_root_dir",
        "enable_checkpointing",
        "enable_model_summary",
        "fast_dev_run",
        "logger",
        "num_sanity_val_steps",
        "use_distributed_sampler",
    ),
}


@dataclass(frozen=True)
class Experiment:
    """Everything a training is made of."""

    folder: Path
    data: ImageDataModule
    classifier: ImageClassifier
    trainer: Trainer
    best: ModelCheckpoint
    timer: Timer


def run(cfg: DictConfig) -> None:
    """Bring the configured run to its row of the results table.

    A finished run is shown, an interrupted one continued, a new one trained.

    Args:
        cfg: Composed and checked by `config.check`.

    Raises:
        UserError: If the configuration or the input is wrong; nothing was trained then.
        RunFailed: If the training failed; ``run.json`` says why.
        Interrupted: If the user stopped it.
    """
    config = configuration.resolve(cfg)
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    before = None if config["rerun"] else _earlier(folder)
    if before is not None and before.status == "finished":
        _show_finished(before, folder, config)
        return

    _quiet()
    experiment = build(config, folder)
    _greet(experiment)
    data = experiment.data
    fingerprint = data.images.fingerprint
    _ = data.indices
    if before is not None and before.data_fingerprint != fingerprint:
        raise UserError(
            f"{folder}: this run was trained on other data ({before.data_fingerprint}, now "
            f"{fingerprint}); give the data another data.name, or start over with rerun=true"
        )
    last = _last_checkpoint(folder) if before is not None else None
    if before is None:
        _clear(folder)
    record = Run(
        name=folder.name,
        id=config["id"],
        choices={key: str(hydra.runtime.choices[key]) for key in configuration.NAMING_GROUPS},
        config=config,
        status="running",
        started=before.started if before else datetime.now(UTC).isoformat(timespec="seconds"),
        data_fingerprint=fingerprint,
        code=provenance.code(),
        versions=provenance.versions(),
        machine=provenance.machine()
        | {"device": device_name(experiment.trainer.strategy.root_device)},
        params=count_parameters(experiment.classifier.backbone),
        macs=count_macs(experiment.classifier.backbone),
    ).save(folder)
    try:
        record = fit(experiment, record, last)
        record = test(experiment, record)
    except (KeyboardInterrupt, SystemExit) as stop:
        replace(Run.load(folder), status="interrupted").save(folder)
        raise Interrupted(
            f"{folder.name}: interrupted; the same command again continues it"
        ) from stop
    except UserError:
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        replace(Run.load(folder), status="failed", error=line).save(folder)
        write_table(Path(config["outputs"]))
        log.debug("the run failed", exc_info=True)  # for train.log
        raise RunFailed(f"{folder.name}: {line}; see {folder / 'train.log'}") from error
    write_table(Path(config["outputs"]))
    _show(folder, rows_of(folder))


def build(config: dict[str, Any], folder: Path) -> Experiment:
    """Build every part from a resolved configuration; reads no data.

    Raises:
        UserError: If a component's keys or values are wrong.
    """
    for name, given in GIVEN.items():
        configuration.check_component(name, config[name], given)
    _check_devices(config)
    seed_everything(config["seed"], verbose=False)
    backbone = _construct("model", config["model"])
    optimizer = _construct("optim", config["optim"])
    scheduler = _construct("scheduler", config["scheduler"])
    _try_optimizer(optimizer, scheduler, backbone)
    augment = {key: _construct(f"augment.{key}", node) for key, node in config["augment"].items()}
    data = _construct("data", config["data"], augment=augment)
    classifier = ImageClassifier(
        backbone,
        num_classes=config["data"]["num_classes"],
        optimizer=optimizer,
        scheduler=scheduler,
        label_smoothing=config["label_smoothing"],
        channels_last=config["channels_last"],
        compile=config["compile"],
    )
    checkpoints = folder / CHECKPOINTS
    # Written after validation, best first: last.ckpt then knows the best one so far.
    best, last = (
        ModelCheckpoint(
            dirpath=checkpoints,
            filename=filename,
            monitor=monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        for filename, monitor in (("best", "val/acc"), ("last", None))
    )
    timer = Timer()
    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    trainer = _construct(
        "trainer",
        config["trainer"],
        callbacks=[
            EpochSeed(config["seed"]),
            RunProgressBar(),
            timer,
            _construct("benchmark", config["benchmark"]),
            best,
            last,
        ],
        default_root_dir=str(folder),
        enable_model_summary=False,
        logger=logger,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    return Experiment(folder, data, classifier, trainer, best, timer)


def fit(experiment: Experiment, record: Run, last: Path | None) -> Run:
    """Train to the end and write the best backbone's weights."""
    trainer = experiment.trainer
    if last is None:
        text = OmegaConf.to_yaml(OmegaConf.create(record.config))
        logger = trainer.loggers[0]
        assert isinstance(logger, TensorBoardLogger)
        logger.experiment.add_text("configuration", f"```yaml\n{text}```")
    with logging_redirect_tqdm():
        trainer.fit(
            experiment.classifier,
            datamodule=experiment.data,
            ckpt_path=str(last) if last else None,
            weights_only=True,
        )
    checkpoint = torch.load(experiment.best.best_model_path, map_location="cpu", weights_only=True)
    prefix = "backbone."
    weights = {
        key.removeprefix(prefix): tensor.contiguous()
        for key, tensor in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    temporary = experiment.folder / f".{WEIGHTS}"
    save_file(weights, temporary)
    temporary.replace(experiment.folder / WEIGHTS)
    score = experiment.best.best_model_score
    assert score is not None
    return replace(
        record,
        val_acc=percent(float(score)),
        train_seconds=experiment.timer.time_elapsed("train"),
    ).save(experiment.folder)


def test(experiment: Experiment, record: Run) -> Run:
    """Test the best checkpoint once; the Benchmark callback measures it after that."""
    (metrics,) = experiment.trainer.test(
        experiment.classifier,
        datamodule=experiment.data,
        ckpt_path=experiment.best.best_model_path,
        weights_only=True,
        verbose=False,
    )
    return replace(record, status="finished", test_acc=percent(metrics["test/acc"])).save(
        experiment.folder
    )


def percent(share: float) -> float:
    """Turn a float32 share into percent without its rounding error."""
    return round(100 * share, 4)


# --- Building -------------------------------------------------------------------------------


def _construct(name: str, node: dict[str, Any], **given: Any) -> Any:
    """Instantiate one component; what its constructor refuses is the user's mistake."""
    try:
        return instantiate(node, **given, _convert_="all")
    except (InstantiationException, MisconfigurationException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | MisconfigurationException):
            raise _refused(name, cause) from error
        raise


def _refused(name: str, cause: BaseException) -> UserError:
    line = " ".join(str(cause).split())
    return UserError(f"{name}.{line}" if re.match(r"\w+=", line) else f"{name}: {line}")


def _try_optimizer(optimizer: Any, scheduler: Any, backbone: torch.nn.Module) -> None:
    """Build both once on the real parameters, so that their mistakes show before data are read."""
    name = "optim"
    try:
        tried = optimizer(parameter_groups(backbone))
        name = "scheduler"
        scheduler(tried, total_steps=100)
    except (ValueError, TypeError) as error:
        raise _refused(name, error) from error


def _check_devices(config: dict[str, Any]) -> None:
    trainer = config["trainer"]
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", 1)
    gpus = torch.cuda.device_count()
    on_cpu = accelerator == "cpu" or (
        accelerator == "auto" and not gpus and not torch.backends.mps.is_available()
    )
    if accelerator in ("gpu", "cuda") and not gpus:
        raise bad_value("trainer.accelerator", accelerator, "cpu or auto: there is no GPU here")
    available = (os.cpu_count() or 1) if on_cpu else max(gpus, 1)
    counted = isinstance(devices, int) and devices != -1
    if counted and not 1 <= devices <= available:
        raise bad_value("trainer.devices", devices, f"1 to {available} on this machine")
    if on_cpu and config["precision"] == "16-mixed":
        raise bad_value("precision", "16-mixed", "32-true or bf16-mixed on a CPU")


# --- Continuing -----------------------------------------------------------------------------


def _earlier(folder: Path) -> Run | None:
    """Read what an earlier command left of this run."""
    try:
        return Run.load(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / Run.FILE}: damaged; start over with rerun=true") from error


def _last_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint to continue from, and see that it can be read.

    Raises:
        UserError: If it is damaged.
    """
    path = folder / CHECKPOINTS / "last.ckpt"
    if not path.exists():
        return None
    try:
        epoch = torch.load(path, map_location="cpu", weights_only=True)["epoch"]
    except Exception as error:
        raise UserError(f"{path}: damaged; start over with rerun=true") from error
    log.info("continuing after epoch %d", epoch + 1)
    return path


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, but not this command's own log."""
    for name in (CHECKPOINTS, "measurements", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (WEIGHTS, Run.FILE):
        (folder / name).unlink(missing_ok=True)


# --- Telling --------------------------------------------------------------------------------


def _quiet() -> None:
    """Keep Lightning's general advice off the console; what matters is said in our own words."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*exists and is not empty.*",  # a continued run's checkpoints
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)


def _greet(experiment: Experiment) -> None:
    backbone = experiment.classifier.backbone
    log.info(
        "%s in %s on %s: %.2f M parameters, %.2f M MACs",
        experiment.folder.name,
        _relative(experiment.folder),
        device_name(experiment.trainer.strategy.root_device),
        count_parameters(backbone) / MEGA,
        count_macs(backbone) / MEGA,
    )


def _show_finished(record: Run, folder: Path, config: dict[str, Any]) -> None:
    if config["id"] not in (None, record.id):
        replace(record, id=config["id"]).save(folder)
    log.info("%s is finished; rerun=true would train it again", record.name)
    write_table(Path(config["outputs"]))
    _show(folder, rows_of(folder))


def _show(folder: Path, rows: list[Row]) -> None:
    log.info("\n%s", markdown(rows))
    record = Run.load(folder)
    if record.train_seconds is not None:
        log.info("trained in %s", duration(record.train_seconds))
    for path in sorted((folder / CHECKPOINTS).glob("*.ckpt")):
        log.info("%s", _relative(path))
    log.info("%s", _relative(folder / WEIGHTS))
    log.info("%s", _relative(folder.parent.parent / "results.md"))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

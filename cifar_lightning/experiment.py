"""One experiment from configuration to results: build, fit, test. The only place that wires."""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save as to_bytes
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from cifar_lightning import board, escaping, gate, identity, interruption, provenance
from cifar_lightning import config as configuration
from cifar_lightning.callbacks import (
    AtomicCheckpoints,
    AveragedWeights,
    Benchmark,
    EpochSeed,
    FiniteLoss,
    MisclassifiedImages,
    MovableCheckpoint,
    NameInCheckpoints,
    RunProgressBar,
    StopWhenAsked,
    TrainingImages,
)
from cifar_lightning.classifier import ImageClassifier, parameter_groups
from cifar_lightning.company import lock_path
from cifar_lightning.cores import usable_cores
from cifar_lightning.data import ImageDataModule
from cifar_lightning.distill import Distillation
from cifar_lightning.errors import (
    CifarLightningError,
    Crashed,
    Interrupted,
    NotFinite,
    RunFailed,
    UserError,
    bad_value,
    reason_of,
)
from cifar_lightning.files import (
    alone,
    check_inside,
    check_lock,
    is_disk_full,
    remove_unfinished,
    write_atomically,
)
from cifar_lightning.finished import changes_since, relative, show, show_again
from cifar_lightning.folders import (
    CHECKPOINTS,
    LOCK,
    LOG,
    RESULTS,
    TENSORBOARD,
    WEIGHTS,
    read_weights,
    run_folder,
)
from cifar_lightning.footprint import count_macs, count_parameters
from cifar_lightning.measure import device_name, load_backbone
from cifar_lightning.results import (
    MEGA,
    Measurement,
    Network,
    Run,
    check_table,
    load_run,
    write_table,
)
from cifar_lightning.waiting import computing

log = logging.getLogger(__name__)

# Each component, with the arguments that the code gives it or can't do without: the configuration
# has no say in those.
GIVEN: dict[str, tuple[str, ...]] = {
    "model": (),
    "optim": ("params",),
    "scheduler": ("optimizer", "total_steps"),
    "augment": (),
    "distill": ("backbone",),
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
        "plugins",
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
    best: ModelCheckpoint | None
    last: ModelCheckpoint
    timer: Timer
    benchmark: Benchmark

    @property
    def leads(self) -> bool:
        """Whether this is the one process, or the first of several: it alone writes files."""
        return bool(self.trainer.is_global_zero)

    @property
    def chosen(self) -> ModelCheckpoint:
        """The checkpoint that is tested: the best one, or without validation the last one."""
        return self.best or self.last

    def save(self, record: Run) -> Run:
        return record.save(self.folder) if self.leads else record


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


def run(cfg: DictConfig) -> None:
    """Bring the configured run to its rows of the results table.

    Whatever is done already is not done again: a finished run is shown, an interrupted one
    continued. Of several processes the first one decides, and the others do the same.

    Args:
        cfg: Composed and checked by `config.check`.

    Raises:
        UserError: If the configuration or the input is wrong; nothing was trained then.
        RunFailed: If the training failed; ``run.json`` says why.
        Interrupted: If the user stopped it.
    """
    config = identity.resolve(cfg)
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    choices = {key: str(hydra.runtime.choices[key]) for key in configuration.NAMING_GROUPS}
    experiment = build(config, folder)
    with ExitStack() as stack:
        stack.enter_context(computing())
        if experiment.leads:
            stack.enter_context(alone(folder / LOCK, f"{folder.name}: another process is at it"))
        try:
            _run(experiment, config, choices)
        except BaseException as error:
            ending = _ending(experiment, error, config)
            if ending is None:
                raise
            if experiment.leads:
                _record_ending(experiment, ending, Path(config["outputs"]))
            elif isinstance(ending, Interrupted | NotFinite):
                return  # the first process says so for all
            raise ending from error


def _run(experiment: Experiment, config: dict[str, Any], choices: dict[str, str]) -> None:
    start = begin(experiment, config, choices) if experiment.leads else None
    if experiment.trainer.world_size > 1:
        start = _agree(experiment.trainer, start)
    assert start is not None
    trained = start.record.status == "finished"
    if not trained:
        with interruption.deferred():
            test(experiment, fit(experiment, start))
    if experiment.leads:
        _complete(experiment, config, trained)


def _complete(experiment: Experiment, config: dict[str, Any], trained: bool) -> None:
    """Do what follows a finished training: measure what is missing, draw, write the table, show.

    None of it can take the training back: what goes wrong is said in the end, and the same command
    does it again.

    Args:
        experiment: Of the run, which is finished.
        config: Resolved.
        trained: Whether it was finished already when this command began.

    Raises:
        RunFailed: If something went wrong.
        Interrupted: If a signal came; what was measured is in the table.
    """
    folder, outputs = experiment.folder, Path(config["outputs"])
    failures: list[str] = []

    @contextmanager
    def tried(what: str) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            log.debug("%s failed", what, exc_info=True)
            failures.append(f"{what}: {reason_of(error)}")

    measurements: list[Measurement] = []
    try:
        with tried("measuring"), interruption.deferred():
            measurements = experiment.benchmark.measure(
                folder, experiment.data, _device(experiment)
            )
    finally:
        if measurements or not trained:
            with tried("drawing for TensorBoard"):
                board.draw(folder)
        with tried("writing the table"):
            write_table(outputs)
    failures += [f"measuring {one.variant}: {one.reason}" for one in measurements if one.failed]
    with tried("showing the rows"):
        if trained:
            show_again(folder, Run.load(folder), config)
        else:
            show(folder)
    if failures:
        raise RunFailed(
            f"{folder.name}: trained and tested, but {'; '.join(failures)}; "
            "the same command again does what is missing"
        )


def begin(experiment: Experiment, config: dict[str, Any], choices: dict[str, str]) -> Start:
    """Look at what is there already and decide where to begin; prepare the run's folder.

    Raises:
        UserError: If the data can't be read, or what an earlier command left can't be used.
    """
    folder, outputs = experiment.folder, Path(config["outputs"])
    check_table(outputs)
    if experiment.benchmark.request.variants:
        check_lock(lock_path(_device(experiment)))
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
    if before is not None and before.status == "finished" and (folder / WEIGHTS).exists():
        read_weights(folder, before)
        return Start(before)
    if config["distill"] is not None:
        teacher = load_run(_teachers_folder(config))
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
            code=provenance.code(),
            versions=provenance.versions(),
            machine=provenance.machine(device_name(_device(experiment)), torch.get_num_threads()),
            params=count_parameters(experiment.classifier.backbone),
            macs=count_macs(experiment.classifier.backbone),
        )
    )
    if before is not None:
        start = _continued(experiment, before, start)
    if start.checkpoint is None:  # also of a run that did not come to its first one
        _clear(folder)
    remove_unfinished(folder)
    remove_unfinished(folder / CHECKPOINTS)
    start.record.save(folder)
    return start


def build(config: dict[str, Any], folder: Path) -> Experiment:
    """Build every part from a resolved configuration; reads no data.

    Raises:
        UserError: If a component's keys or values are wrong.
    """
    _quiet()
    for name, given in GIVEN.items():
        if config[name] is not None:
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
        optimizer=optimizer,
        scheduler=scheduler,
        label_smoothing=config["label_smoothing"],
        channels_last=config["channels_last"],
        compile=config["compile"],
        distillation=_teacher(config),
    )
    checkpoints = folder / CHECKPOINTS
    # Written after validation, best first: last.ckpt then knows the best one so far.
    best, last = (
        MovableCheckpoint(
            dirpath=checkpoints,
            filename=filename,
            monitor=monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        for filename, monitor in (("best", "val/acc"), ("last", None))
    )
    validates = config["data"]["val_fraction"] > 0
    averaging = [AveragedWeights(config["ema"])] if config["ema"] is not None else []
    timer = Timer()
    benchmark = _construct("benchmark", config["benchmark"])
    trainer = _construct(
        "trainer",
        config["trainer"],
        callbacks=[
            EpochSeed(config["seed"]),
            NameInCheckpoints(folder.name),
            StopWhenAsked(),
            FiniteLoss(),
            TrainingImages(),
            MisclassifiedImages(),
            RunProgressBar(),
            timer,
            *averaging,
            *([best] if validates else ()),
            last,
        ],
        default_root_dir=str(folder),
        enable_model_summary=False,
        logger=False,  # `fit` knows where its curves begin
        num_sanity_val_steps=0,
        plugins=_plugins(),
        use_distributed_sampler=False,
        **({} if validates else {"limit_val_batches": 0}),
    )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        # Its processes begin inside `fit`, when it is too late to agree on where to begin.
        raise bad_value("trainer.strategy", config["trainer"]["strategy"], "auto, ddp or the like")
    return Experiment(
        folder, data, classifier, trainer, best if validates else None, last, timer, benchmark
    )


def fit(experiment: Experiment, start: Start) -> Run:
    """Train to the end and write the chosen backbone's weights."""
    trainer, record = experiment.trainer, start.record
    trainer.logger = _logger(experiment.folder, start)
    with logging_redirect_tqdm():
        trainer.fit(
            experiment.classifier,
            datamodule=experiment.data,
            ckpt_path=str(start.checkpoint) if start.checkpoint else None,
            weights_only=True,
        )
    score = experiment.best.best_model_score if experiment.best else None
    if experiment.leads:
        chosen = experiment.chosen.best_model_path
        state = torch.load(chosen, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "backbone."
        weights = {
            key.removeprefix(prefix): tensor.contiguous()
            for key, tensor in state.items()
            if key.startswith(prefix)
        }
        content = to_bytes(weights, Network.of(record).metadata)
        write_atomically(experiment.folder / WEIGHTS, content)
        record = replace(record, weights=sha256(content).hexdigest())
    return experiment.save(
        replace(
            record,
            val_acc=None if score is None else percent(float(score)),
            train_seconds=experiment.timer.time_elapsed("train"),
        )
    )


def test(experiment: Experiment, record: Run) -> Run:
    """Test the chosen checkpoint once; from here on the run is finished, whatever follows."""
    (metrics,) = experiment.trainer.test(
        experiment.classifier,
        datamodule=experiment.data,
        ckpt_path=experiment.chosen.best_model_path,
        weights_only=True,
        verbose=False,
    )
    return experiment.save(
        replace(record, status="finished", test_acc=percent(metrics["test/acc"]))
    )


def percent(share: float) -> float:
    """Turn a float32 share into percent without its rounding error."""
    return round(100 * share, 4)


# --- Building -------------------------------------------------------------------------------


def _teacher(config: dict[str, Any]) -> Distillation | None:
    """Build the teacher of a distilled run.

    Raises:
        UserError: If its classes or its data are others, or it has learnt from images that are to
            choose the student's checkpoint.
    """
    node = config["distill"]
    if node is None:
        return None
    folder = _teachers_folder(config)
    teacher = load_run(folder)
    alike = ["num_classes", "name", "mean", "std"]
    if config["data"]["val_fraction"] > 0:
        alike += ["val_fraction", "split_seed"]
    for key in alike:
        there, here = teacher.config["data"][key], config["data"][key]
        if there != here:
            raise bad_value("distill.teacher", teacher.name, f"data.{key}={here}, its is {there}")
    distillation: Distillation = _construct("distill", node, backbone=load_backbone(folder))
    return distillation


def _teachers_folder(config: dict[str, Any]) -> Path:
    name: str = config["distill"]["teacher"]
    return run_folder(Path(config["outputs"]), name)


def _plugins() -> list[Any]:
    """Whole checkpoints; and under SLURM no checkpoint in mid-epoch when time runs out."""
    plugins: list[Any] = [AtomicCheckpoints()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


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
    available = usable_cores() if on_cpu else max(gpus, 1)
    counted = isinstance(devices, int) and devices != -1
    if counted and not 1 <= devices <= available:
        raise bad_value("trainer.devices", devices, f"1 to {available} on this machine")
    if "TORCHELASTIC_RUN_ID" in os.environ and counted:
        started = int(os.environ["WORLD_SIZE"]) // trainer.get("num_nodes", 1)
        if devices != started:
            raise bad_value("trainer.devices", devices, f"{started}, what torchrun started a node")
    if on_cpu and config["data"].get("device") == "gpu":
        raise bad_value("data.device", "gpu", "cpu: the training has no GPU")
    if on_cpu and config["precision"] == "16-mixed":
        raise bad_value("precision", "16-mixed", "32-true or bf16-mixed on a CPU")


# --- Beginning and continuing ---------------------------------------------------------------


def _agree(trainer: Trainer, start: Start | None) -> Start:
    """Start the other processes, unless something else did, and tell them where to begin."""
    strategy = trainer.strategy
    assert strategy.launcher is not None
    # The same launching happens again, without new processes, when the trainer fits.
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
    agreed = strategy.broadcast(start)
    assert agreed is not None
    if not trainer.is_global_zero:
        logging.getLogger().setLevel(logging.ERROR)
    return agreed


def _earlier(folder: Path) -> Run | None:
    """Read what an earlier command left of this run."""
    try:
        return Run.load(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / Run.FILE}: damaged; start over with rerun=true") from error


def _continued(experiment: Experiment, before: Run, start: Start) -> Start:
    """Begin at the last finished epoch of an earlier command, if there is one.

    Raises:
        UserError: If a checkpoint is damaged, another run's, or needed and gone.
    """
    folder = experiment.folder / CHECKPOINTS
    path, best = folder / "last.ckpt", folder / "best.ckpt"
    if not path.exists():
        if before.status == "finished":
            raise UserError(
                f"{folder}: {before.name} is trained, but its weights and checkpoints are gone; "
                "start over with rerun=true"
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
        with gate.open_regular(path) as stream:
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
        epoch, step = int(checkpoint["epoch"]), int(checkpoint["global_step"])
        run = str(checkpoint[NameInCheckpoints.KEY])
    except Exception as error:
        raise UserError(f"{path}: damaged; start over with rerun=true") from error
    if run != name:
        raise UserError(f"{path}: of the run {run}; start over with rerun=true")
    return epoch, step


def _device(experiment: Experiment) -> torch.device:
    return experiment.trainer.strategy.root_device


class _Curves(TensorBoardLogger):
    """Leaves out the machine's name, and the epoch's number, which Lightning adds to everything."""

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        if self._experiment is None:
            self._experiment = board.Writer(self.log_dir, **self._kwargs)
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)


def _logger(folder: Path, start: Start) -> TensorBoardLogger:
    """Write TensorBoard's files; what a killed process wrote beyond ``start.step`` is dropped."""
    logger = _Curves(
        folder,
        name="",
        version=TENSORBOARD,
        purge_step=start.step if start.checkpoint else None,
    )
    if start.checkpoint is None:
        # Without paths and addresses: curves are passed on.
        shown = configuration.training_config(start.record.config)
        text = OmegaConf.to_yaml(OmegaConf.create(shown))
        logger.experiment.add_text("configuration", escaping.markdown_block(text, "yaml"))
    return logger


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, but not this command's own log."""
    for path in (folder / name for name in RESULTS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# --- Ending otherwise -----------------------------------------------------------------------


def _ending(
    experiment: Experiment, error: BaseException, config: dict[str, Any]
) -> CifarLightningError | None:
    """Turn what ended the work early into the error that the user sees; None leaves it as it is."""
    name = experiment.folder.name
    stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
    if stopped or (isinstance(error, Exception) and interruption.received()):
        # Signals reach a loader's worker processes, too, and show as failures of theirs.
        again = (
            "the same command without rerun=true" if config["rerun"] else "the same command again"
        )
        return interruption.error(f"{name}: interrupted; {again} continues it")
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
        return kind(f"{name}: {line}; see {experiment.folder / LOG}")
    return None


def _record_ending(experiment: Experiment, ending: CifarLightningError, outputs: Path) -> None:
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
            write_table(outputs)


# --- Telling --------------------------------------------------------------------------------


def _quiet() -> None:
    """Keep Lightning's general advice off the console; what matters is said in our own words."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # the root's get it, too
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # their reports
    for message in (
        ".*exists and is not empty.*",  # a continued run's checkpoints
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*sync_dist=True.*",  # the metrics are over all processes already
    ):
        warnings.filterwarnings("ignore", message)


def _greet(experiment: Experiment) -> None:
    backbone = experiment.classifier.backbone
    log.info(
        "%s in %s on %s: %.2f M parameters, %.2f M MACs",
        experiment.folder.name,
        relative(experiment.folder),
        device_name(_device(experiment)),
        count_parameters(backbone) / MEGA,
        count_macs(backbone) / MEGA,
    )

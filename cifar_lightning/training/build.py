"""Everything a training run is made of, built from its configuration."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import nn

from cifar_lightning.benchmark.candidates import BenchmarkSpec
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run
from cifar_lightning.training import callbacks, components
from cifar_lightning.training.arguments import check_devices, check_trainer, validates
from cifar_lightning.training.averaging import EMA
from cifar_lightning.training.components import construct
from cifar_lightning.training.loggers import build_loggers
from cifar_lightning.training.module import ImageClassifier
from cifar_lightning.training.pictures import MisclassifiedImages, TrainingImages
from cifar_lightning.training.progress import Bar, Estimate, bar_wanted


@dataclass(frozen=True)
class Experiment:
    """Everything a training run is made of.

    Attributes:
        failures: What went wrong beside the training, a line each; none of it ends it.
    """

    folder: Path
    data: ImageDataModule
    classifier: ImageClassifier
    trainer: Trainer
    best: ModelCheckpoint | None
    last: ModelCheckpoint
    timer: Timer
    benchmark: BenchmarkSpec
    failures: list[str]

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the one process, or the first of several: it alone writes files."""
        return bool(self.trainer.is_global_zero)

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device

    @property
    def chosen(self) -> ModelCheckpoint:
        """The checkpoint that is tested: the best one, or where nothing was validated the last."""
        return self.best if self.best and self.best.best_model_path else self.last

    def save(self, record: Run) -> Run:
        return record.save(self.folder) if self.is_global_zero else record


def build(
    config: dict[str, Any], folder: Path, backbone: nn.Module | None = None, *, here: bool = True
) -> Experiment:
    """Build every part from a resolved configuration; reads no data.

    Args:
        config: Resolved.
        folder: The run's.
        backbone: One of the same ``model`` node, where the rest is only to be checked.
        here: Whether it trains on this machine, so its devices must be there.

    Raises:
        UserError: If a component's keys or values are wrong.
    """
    silence_lightning()
    check_trainer(config)
    if here:
        check_devices(config)
    seed_everything(config["seed"], verbose=False)
    if backbone is None or config["init"] is not None:
        backbone = components.build_backbone(config)
    optimizer = construct("optim", config["optim"], ("params",))
    scheduler = construct("scheduler", config["scheduler"], ("optimizer", "total_steps"))
    components.try_optimizer(optimizer, scheduler, backbone)
    augment = {key: construct(f"augment.{key}", node) for key, node in config["augment"].items()}
    data = construct("data", config["data"], augment=augment)
    teacher = components.build_teacher(config)
    networks = {"model": backbone} | ({"distill.teacher": teacher.backbone} if teacher else {})
    components.try_sizes(augment, networks)
    classifier = ImageClassifier(
        config["model"],
        backbone,
        optimizer=optimizer,
        scheduler=scheduler,
        label_smoothing=config["label_smoothing"],
        channels_last=config["channels_last"],
        compile=config["compile"],
        initialized=config["init"] is not None,
        distillation=teacher,
    )
    node, validating = dict(config["trainer"]), validates(config)
    if not here:  # Lightning would look for the devices
        node |= {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
    paths = RunFolder(folder)
    best = callbacks.RelocatableCheckpoint(paths.best, "val/acc") if validating else None
    last = callbacks.RelocatableCheckpoint(paths.last, None)
    timer_node = {"_target_": f"{Timer.__module__}.Timer", "duration": node.pop("max_time", None)}
    timer = construct("trainer.max_time", timer_node)
    if timer.time_remaining() == 0:
        raise bad_value("trainer.max_time", config["trainer"]["max_time"], "above 0")
    node.setdefault("enable_progress_bar", bar_wanted())
    if not config["data"]["val_fraction"]:
        node["limit_val_batches"] = 0
    all_callbacks = [
        callbacks.EpochSeed(config["seed"]),
        callbacks.RunState(folder.name),
        callbacks.GracefulShutdown(),
        TrainingImages(),
        MisclassifiedImages(),
        Estimate(),
        timer,
        *([Bar()] if node["enable_progress_bar"] else ()),
        *([callbacks.StepLimit()] if "max_steps" in node else ()),
        *([EMA(config["ema"])] if config["ema"] is not None else ()),
        *components.build_callbacks(config["callbacks"] or {}, validating),
        # Written after validation, best first: last.ckpt then knows the best one so far.
        *([best, last] if best else [last]),
    ]
    failures: list[str] = []
    trainer = construct(
        "trainer",
        node,
        callbacks=all_callbacks,
        default_root_dir=str(folder),
        enable_model_summary=False,
        logger=build_loggers(config["logger"] or {}, folder, failures),
        num_sanity_val_steps=0,
        # Whole checkpoints; and under SLURM no checkpoint in mid-epoch when time runs out.
        plugins=[callbacks.AtomicCheckpointIO(paths.best), *(_slurm(config) if here else ())],
        use_distributed_sampler=False,
    )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        # Its processes begin inside `fit`, when it is too late to agree on where to begin.
        raise bad_value("trainer.strategy", config["trainer"]["strategy"], "auto, ddp or the like")
    # No variants measure nothing, so that the same command can do it later.
    benchmark = construct("benchmark", config["benchmark"]).checked("benchmark.", may_be_empty=True)
    return Experiment(folder, data, classifier, trainer, best, last, timer, benchmark, failures)


def _slurm(config: dict[str, Any]) -> list[SLURMEnvironment]:
    """Take SLURM's environment where there is one.

    Raises:
        UserError: If it was not asked for as Lightning needs it: it would wait for processes that
            nobody starts.
    """
    if not SLURMEnvironment.detect():
        return []
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), config["trainer"].get("num_nodes", 1)
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise bad_value("SLURM_NTASKS", tasks, "1 without srun; or begin with it: srun python ...")
    try:
        environment = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise UserError(f"SLURM_NTASKS={tasks}: {error}") from error
    devices = config["trainer"].get("devices", 1)
    if devices != tasks // nodes:
        allowed = f"{tasks // nodes}, the tasks on a node that SLURM was asked for"
        raise bad_value("trainer.devices", devices, allowed)
    return [environment]


def silence_lightning() -> None:
    """Keep Lightning's general advice off the console; what matters is said in our own words."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # the root's get it, too
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # their reports
    for message in (
        ".*exists and is not empty.*",  # a continued run's checkpoints
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*could not find the monitored key.*",  # in an epoch without validation
        ".*LeafSpec.*",
        ".*TensorFloat32 tensor cores.*",  # torch.compile's; precision= decides
        ".*`srun` command is available.*",  # where a cluster's jobs are submitted
        ".*sync_dist=True.*",  # the metrics are over all processes already
    ):
        warnings.filterwarnings("ignore", message)

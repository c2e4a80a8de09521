"""Building components from their configuration, and checking the devices they ask for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException

from cifar_lightning.benchmark.load import load_backbone
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.training.distillation import Distillation
from cifar_lightning.training.module import parameter_groups

# Each component, with the arguments that the code gives it or can't do without: the configuration
# has no say in those.
RESERVED_ARGUMENTS: dict[str, tuple[str, ...]] = {
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


def build_teacher(config: dict[str, Any]) -> Distillation | None:
    """Build the teacher of a distilled run.

    Raises:
        UserError: If its classes or its data are others, or it has learnt from images that are to
            choose the student's checkpoint.
    """
    node = config["distill"]
    if node is None:
        return None
    folder = teachers_folder(config)
    teacher = load_run(folder)
    alike = ["num_classes", "name", "mean", "std"]
    if config["data"]["val_fraction"] > 0:
        alike += ["val_fraction", "split_seed"]
    for key in alike:
        there, here = teacher.config["data"][key], config["data"][key]
        if there != here:
            raise bad_value("distill.teacher", teacher.name, f"data.{key}={here}, its is {there}")
    distillation: Distillation = construct("distill", node, backbone=load_backbone(folder))
    return distillation


def teachers_folder(config: dict[str, Any]) -> Path:
    """Tell the folder of the teacher's run."""
    name: str = config["distill"]["teacher"]
    return RunFolder.of(Path(config["outputs"]), name).path


def construct(name: str, node: dict[str, Any], **given: Any) -> Any:
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


def try_optimizer(optimizer: Any, scheduler: Any, backbone: torch.nn.Module) -> None:
    """Build both once on the real parameters, so that their mistakes show before data are read."""
    name = "optim"
    try:
        tried = optimizer(parameter_groups(backbone))
        name = "scheduler"
        scheduler(tried, total_steps=100)
    except (ValueError, TypeError) as error:
        raise _refused(name, error) from error


def check_devices(config: dict[str, Any]) -> None:
    """See that the devices are there and can compute as asked.

    Raises:
        UserError: If not.
    """
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

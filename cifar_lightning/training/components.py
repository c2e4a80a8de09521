"""Building components from their configuration."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException

from cifar_lightning.benchmark.load import load_backbone
from cifar_lightning.config.components import check_component
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.training.distillation import Distillation
from cifar_lightning.training.module import parameter_groups

METRICS = ("train/loss", "train/acc", "val/loss", "val/acc", "lr")  # once an epoch


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
    return construct("distill", node, backbone=load_backbone(folder))  # type: ignore[no-any-return]


def teachers_folder(config: dict[str, Any]) -> Path:
    """Tell the folder of the teacher's run."""
    return RunFolder.of(Path(config["outputs"]), config["distill"]["teacher"]).path


def build_callbacks(nodes: Mapping[str, Any], validating: bool) -> list[Callback]:
    """Build what the ``callbacks`` group names.

    Raises:
        UserError: If its settings are wrong, or it looks at a metric that there is none of.
    """
    metrics = [name for name in METRICS if validating or not name.startswith("val/")]
    why = "" if validating else "; there is no validation, so nothing to watch"
    found = {name: construct(f"callbacks.{name}", node) for name, node in nodes.items()}
    for name, callback in found.items():
        if (monitor := getattr(callback, "monitor", None)) not in (None, *metrics):
            raise bad_value(f"callbacks.{name}.monitor", monitor, f"{', '.join(metrics)}{why}")
    return list(found.values())


def construct(
    name: str, node: Mapping[str, Any], reserved: tuple[str, ...] = (), **given: Any
) -> Any:
    """Check and instantiate one component; what its constructor refuses is the user's mistake.

    Args:
        name: Where it is in the configuration.
        node: Its configuration.
        reserved: Arguments that a partial function is given when it is called.
        given: Arguments that it is given now. The configuration has no say in either.

    Raises:
        UserError: If a key or a value is wrong.
    """
    check_component(name, node, (*reserved, *given))
    try:
        return instantiate(node, **given, _convert_="all")
    except (InstantiationException, MisconfigurationException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError | ImportError):
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

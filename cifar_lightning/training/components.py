"""Building components from their configuration."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from cifar_lightning.benchmark.network import check_size, load_backbone, trained_network
from cifar_lightning.config.components import check_component
from cifar_lightning.data.progressive import ProgressiveResize
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.models.adapt import INPUT_SIZE
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.identity import canonical
from cifar_lightning.runs.weights import read_network
from cifar_lightning.training.distillation import Distillation
from cifar_lightning.training.module import parameter_groups

log = logging.getLogger(__name__)

SPLIT = ("val_fraction", "split_seed")  # of `data`: which images are for validation
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
        alike += SPLIT
    for key in alike:
        there, here = teacher.config["data"][key], config["data"][key]
        if there != here:
            raise bad_value("distill.teacher", teacher.name, f"data.{key}={here}, its is {there}")
    return construct("distill", node, backbone=load_backbone(folder))  # type: ignore[no-any-return]


def build_backbone(config: dict[str, Any]) -> nn.Module:
    """Build the network to train, with the weights that it begins with, where some are given.

    Raises:
        UserError: If its settings are wrong, or the weights are of another network, or were trained
            on images that are to choose this run's checkpoint.
    """
    init = config["init"]
    if init is None:
        check_size("model", build := partial(construct, "model", config["model"]))
        return build()  # type: ignore[no-any-return]
    path, data = Path(init["path"]), config["data"]
    found, content = read_network(path)
    if not sha256(content).hexdigest().startswith(init["weights"]):
        raise UserError(f"init={path}: changed just now; the same command again takes the new ones")
    there = {"model": found.model, "data": {"mean": found.mean, "std": found.std}}
    try:
        trained = load_run(path.parent)
    except UserError:
        log.warning("%s: which images it was trained on is not known; see data.split_seed", path)
    else:
        if trained.config["data"]["name"] == data["name"] and data["val_fraction"] > 0:
            there["data"] |= {key: trained.config["data"][key] for key in SPLIT}
    for group, settings in there.items():
        theirs, ours = canonical(settings, group), canonical(config[group], group)
        for key in [*theirs] if group == "data" else sorted({*theirs, *ours}):
            if theirs.get(key) != ours.get(key):
                other = f"{group}.{key}={ours.get(key)}, its is {theirs.get(key)}"
                raise bad_value("init", found.run, other)
    return trained_network(found, content, path)


def check_classes(config: dict[str, Any], classes: Sequence[str]) -> None:
    """See that initial weights are of a network of the data's classes.

    Raises:
        UserError: If not.
    """
    if config["init"] is None:
        return
    found, _ = read_network(Path(config["init"]["path"]))
    for there, here in zip(found.classes, classes, strict=True):
        if there != here:
            raise bad_value("init", found.run, f"of the same classes: {there} is {here} here")


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
        if isinstance(cause, ValueError | TypeError | OverflowError | MisconfigurationException):
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


def try_sizes(augment: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> None:
    """Run networks on an image of each size that they will see, before data are read.

    Args:
        augment: The transforms, by their names in the configuration.
        networks: On the CPU, by what the user calls them.

    Raises:
        UserError: If images begin smaller than a network can take.
    """
    for key, transform in augment.items():
        if not isinstance(transform, ProgressiveResize):
            continue
        for name, network in networks.items():
            refused = [size for size in transform.sizes(INPUT_SIZE) if not _takes(network, size)]
            if refused:
                larger = range(refused[-1] + 1, INPUT_SIZE)
                least = next((size for size in larger if _takes(network, size)), INPUT_SIZE)
                why = f"{name} can't take {refused[-1]}x{refused[-1]} pixels"
                raise bad_value(f"augment.{key}.start", transform.start, f"{least} or more: {why}")


def _takes(network: nn.Module, size: int) -> bool:
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except Exception:  # whatever layers make of a map that is too small
        return False
    finally:
        network.train(training)
    return True

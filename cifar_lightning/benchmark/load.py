"""A run's network and data, built again from its files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from cifar_lightning.config import components
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import read_weights


def load_backbone(folder: Path) -> nn.Module:
    """Build a run's backbone anew and load its best weights into it.

    Args:
        folder: The run's, with ``run.json`` and ``weights.safetensors``.

    Raises:
        UserError: If the weights are missing, damaged or of another network or run.
    """
    run, path = load_run(folder), RunFolder(folder).weights
    try:
        weights = from_bytes(read_weights(folder, run))
    except SafetensorError as error:
        raise UserError(f"{path}: not the weights of this run ({error})") from error
    return build_backbone(run.config["model"], weights, path)


def build_backbone(node: dict[str, Any], weights: dict[str, Tensor], path: Path) -> nn.Module:
    """Build a network as a record says, and load weights into it.

    Args:
        node: ``model`` of its configuration.
        weights: By the names of its parameters and buffers.
        path: The weights' file, to name it in errors.

    Raises:
        UserError: If the builder is none of ours, or the weights are not of this network.
    """
    # First without memory: a record can ask for a network of any size.
    with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        shape_only: nn.Module = components.construct("model", node)
        shapes = {name: tensor.shape for name, tensor in shape_only.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise UserError(f"{path}: not the weights of this run's network")
    try:
        backbone: nn.Module = components.construct("model", node)
        backbone.load_state_dict(weights)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: not the weights of this run's network") from error
    return backbone.eval()


def load_data(folder: Path, root: str | None = None) -> ImageDataModule:
    """Read a run's data anew.

    Where they lie is this machine's to say, not the record's, which may be anybody's.

    Args:
        folder: The run's.
        root: Where its data lie here, if not where ``conf/data`` says.

    Raises:
        UserError: If they can't be read or are not what the run was trained on.
    """
    run = load_run(folder)
    recorded = run.config["data"]
    node = components.of_this_machine("data", recorded, folder.resolve().parent.parent)
    hint = ""
    if "root" in recorded:
        if root is not None:
            node["root"] = root
        elif recorded["root"] != node.get("root"):
            hint = f"; the run was trained on data in {recorded['root']}: say data_root=..."
            if "mirrors" in node:
                node["mirrors"] = []  # they are probably there
            if "root" not in node:
                raise UserError(f"data_root: needs a value{hint}")
    try:
        data: ImageDataModule = components.construct("data", node)
        fingerprint = data.images.fingerprint
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    if fingerprint != run.data_fingerprint:
        raise UserError(
            f"{run.name} was trained on other data than these{hint or '; say data_root=...'}"
        )
    return data

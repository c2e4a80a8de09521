"""A run's network and data, built again from its files."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from cifar_lightning.config import components
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Network, read_weights


def load_backbone(folder: Path) -> nn.Module:
    """Build a run's backbone anew and load its best weights into it.

    Args:
        folder: The run's, with ``run.json`` and ``weights.safetensors``.

    Raises:
        UserError: If the weights are missing, damaged, or of another network or run than the
            record says.
    """
    run = load_run(folder)
    return build_network(Network.of(run), read_weights(folder, run), RunFolder(folder).weights)


def build_network(record: Network, content: bytes, path: Path) -> nn.Module:
    """Build a network as a record says, and load weights into it.

    Args:
        record: Says how.
        content: Of the weights' file.
        path: The file, to name it in errors.

    Raises:
        UserError: If the builder is none of ours, or the weights are not of this network.
    """
    other = UserError(f"{path}: not the weights of this run's network")
    try:
        weights = from_bytes(content)
        # First without memory: a record can ask for a network of any size.
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            without_memory: nn.Module = components.construct("model", record.model)
            if _layout(without_memory.state_dict()) != _layout(weights):
                raise other
        network: nn.Module = components.construct("model", record.model)
        if _layout(network.state_dict()) != _layout(weights):
            raise other
        # Strides change no shape: only what the file says of itself tells such networks apart.
        if Network.from_weights(content) != record:
            raise other
        network.load_state_dict(weights)
    except (RuntimeError, MemoryError, SafetensorError, ValueError) as error:
        raise other from error
    return network.eval()


def _layout(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Tell each tensor's shape and type: loading would cast another type without a word."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


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
        data.prepare_data()
        fingerprint = data.images.fingerprint
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    if fingerprint != run.data_fingerprint:
        raise UserError(
            f"{run.name} was trained on other data than these{hint or '; say data_root=...'}"
        )
    return data

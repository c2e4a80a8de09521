"""A run's network, built again from its files."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from cifar_lightning.config import components
from cifar_lightning.errors import CifarLightningError, UserError
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Network
from cifar_lightning.runs.weights import read_weights

MOST_PARAMETERS = 500_000_000  # 2 GB


def load_backbone(folder: Path) -> nn.Module:
    """Build a run's backbone anew, with its best weights, in the form that is executed.

    Args:
        folder: The run's, with ``run.json`` and ``weights.safetensors``.

    Raises:
        UserError: If the weights are missing, damaged, or of another network or run than the
            record says.
    """
    run = load_run(folder)
    return build_network(Network.of(run), read_weights(folder, run), RunFolder(folder).weights)


def build_network(record: Network, content: bytes, path: Path) -> nn.Module:
    """Build a network as `trained_network`, in the form that is executed."""
    return reparameterized(trained_network(record, content, path).eval())


def trained_network(record: Network, content: bytes, path: Path) -> nn.Module:
    """Build a network as a record says, with weights, in the form that is trained.

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
        empty = _without_memory(partial(components.construct, "model", record.model))
        if empty is not None and _layout(empty.state_dict()) != _layout(weights):
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
    return network


def check_size(name: str, build: Callable[[], nn.Module]) -> None:
    """See that a network can be built, and fits into memory, before it is asked for.

    Args:
        name: Whose network it is, or which.
        build: Makes it.

    Raises:
        UserError: If it is too large; errors of ``build``, too.
    """
    network = _without_memory(build)
    if network is None:
        network = build()
    count = sum(one.numel() for one in network.parameters())
    if count > MOST_PARAMETERS:
        told = f"{count:.1e} parameters, {MOST_PARAMETERS:.0e} are the most"
        raise UserError(f"{name}: its network has {told}")


def _without_memory(build: Callable[[], nn.Module]) -> nn.Module | None:
    """Build a network without memory, as it may be of any size; None if that can't be.

    Why a wrong one can't be built is best told where there is memory.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build()
    except (CifarLightningError, ImportError):
        raise
    except Exception:
        return None


def _layout(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Tell each tensor's shape and type: loading would cast another type without a word."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}

"""Train light networks on CIFAR-10 from scratch and measure how fast they answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifar_lightning.deploy.classifier import Classifier


def load(
    source: str | Path,
    outputs: str | Path = "outputs",
    device: str = "cpu",
    config_dir: str | Path | None = None,
) -> Classifier:
    """Load a trained network with its preprocessing and classes, ready to classify images.

    Args:
        source: A finished run's ID, the beginning of its name or its folder; or its
            ``weights.safetensors``, or an export of ``format=safetensors``.
        outputs: Where runs are looked for by ID or name.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        config_dir: Where the configuration of a network of one's own is: the folder that the
            training was given with ``--config-dir``. Nothing else may be built than what a file in
            its ``model`` or in ours names.

    Raises:
        UserError: If there is no such run or file, or its weights are damaged or of another
            network than its record says; one line says why.
    """
    from cifar_lightning.config.options import with_config_dir
    from cifar_lightning.deploy.classifier import load

    with with_config_dir(config_dir):
        return load(source, outputs, device)

"""Exporting a finished run's network, checked against it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from cifar_lightning.benchmark.evaluate import evenly
from cifar_lightning.benchmark.load import load_backbone, load_data
from cifar_lightning.deploy.formats import FORMATS
from cifar_lightning.deploy.model_card import Agreement, card
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system.environment import installation
from cifar_lightning.variants.context import Forward

TOLERANCE = 1e-3  # of a logit: other kernels round otherwise
CHECKED_IMAGES = 1000


def agreement(reference: Forward, exported: Forward, images: Tensor) -> Agreement:
    """Compare two networks on normalised images, (N, 3, 32, 32)."""
    with torch.inference_mode():
        pairs = [(reference(chunk), exported(chunk)) for chunk in images.split(250)]
    expected, found = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return Agreement(
        images=len(images),
        difference=float((expected - found).abs().max()),
        same_class=int((expected.argmax(1) == found.argmax(1)).sum()),
    )


def export(folder: Path, name: str, to: Path, data_root: str | None = None) -> Path:
    """Write a run's network and its model card.

    Args:
        folder: The run's.
        name: One of `FORMATS`.
        to: Folder to write to.
        data_root: As for `load_data`.

    Returns:
        The file's path.

    Raises:
        UserError: If a package is missing or the run's files are damaged.
        RunFailed: If the exported network does not agree; nothing is written then.
    """
    form, run = FORMATS[name], load_run(folder)
    network = load_backbone(folder)
    data = load_data(folder, data_root)
    test = data.images.test.images
    images = data.normalize(test[evenly(len(test), CHECKED_IMAGES)])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / form.file
        try:
            form.write(folder, path)
            found = agreement(network, form.load(path), images)
        except ModuleNotFoundError as error:
            needed = f"needs {error.name}: {installation('onnx')}"
            raise UserError(f"format={name}: {needed}") from error
        if not found.difference <= TOLERANCE:
            raise RunFailed(
                f"{run.name}: the exported logits differ by {found.difference:.2g}, "
                f"more than {TOLERANCE:g}"
            )
        content = path.read_bytes()
    files: dict[str, str | bytes] = {
        form.file: content,
        f"model-{name}.md": card(folder, form, found),
    }
    replace_views(to, files, f".model-{name}.sha256")
    return to / form.file

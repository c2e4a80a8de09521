"""Exporting a finished run's network, checked against it, with a model card."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from omegaconf import OmegaConf
from torch import Tensor

from cifar_lightning.benchmark.evaluate import evenly
from cifar_lightning.benchmark.load import load_backbone, load_data
from cifar_lightning.deploy.formats import FORMATS, Format
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs import identity
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.markdown import markdown
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system import escaping
from cifar_lightning.system.environment import installation
from cifar_lightning.variants.context import Forward

TOLERANCE = 1e-3  # of a logit: other kernels round otherwise
CHECKED_IMAGES = 1000


@dataclass(frozen=True)
class Agreement:
    """How an exported network's logits compare with the run's.

    Attributes:
        images: Number of test images.
        difference: Largest absolute difference of a logit.
        same_class: Images that get the same class.
    """

    images: int
    difference: float
    same_class: int


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


def card(folder: Path, form: Format, found: Agreement) -> str:
    """Write a run's model card in Markdown: what it is, how to load it, how good, how made."""
    run = load_run(folder)
    settings = OmegaConf.to_yaml(OmegaConf.create(identity.training_config(run.config)))
    values = {
        "run": run,
        "name": Markup(escaping.markdown_code(run.name)),
        "form": form,
        "data": run.config["data"],
        "found": found,
        "table": Markup(markdown(rows_of(folder))),
        "settings": Markup(escaping.markdown_block(settings, "yaml")),
    }
    return escaping.render("deploy/model_card.md.jinja", escaping.markdown, values)

"""Exporting a finished run's network: formats, the check against the run, the model card."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from omegaconf import OmegaConf
from torch import Tensor

from cifar_lightning.benchmark.evaluate import evenly
from cifar_lightning.benchmark.load import load_backbone, load_data
from cifar_lightning.deploy.classifier import load
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs import identity
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.table import markdown
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system import escaping
from cifar_lightning.system.environment import installation
from cifar_lightning.variants.context import Forward, example_images
from cifar_lightning.variants.onnx import export_onnx, on_cpu

TOLERANCE = 1e-3  # of a logit: other kernels round otherwise
CHECKED_IMAGES = 1000


@dataclass(frozen=True)
class Format:
    """A way to write a network to a file.

    Attributes:
        file: Its name.
        write: Writes the network of a run's folder to a path.
        load: Makes something callable of the file.
        example: Lines that load and call it, for the model card.
    """

    file: str
    write: Callable[[Path, Path], object]
    load: Callable[[Path], Forward]
    example: str


def _load_onnx(path: Path) -> Forward:
    import onnxruntime

    return on_cpu(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))


def _write_torch_export(folder: Path, path: Path) -> None:
    network, shapes = load_backbone(folder), ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (example_images(2),), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for operation in module.graph.nodes:
                operation.meta.pop("stack_trace", None)  # names files on this machine
    torch.export.save(program, path)


FORMATS = {
    "onnx": Format(
        "model.onnx",
        lambda folder, path: export_onnx(load_backbone(folder), path),
        _load_onnx,
        """\
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images.numpy()})""",
    ),
    "torch_export": Format(
        "model.pt2",
        _write_torch_export,
        lambda path: torch.export.load(path).module(),
        """\
import torch
network = torch.export.load("model.pt2").module()
logits = network(images)""",
    ),
    "safetensors": Format(
        "model.safetensors",
        # They say of which network they are.
        lambda folder, path: shutil.copy(RunFolder(folder).weights, path),
        lambda path: load(path).network,
        """\
import cifar_lightning
network = cifar_lightning.load("model.safetensors").network
logits = network(images)""",
    ),
}


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
    same_class = int((expected.argmax(1) == found.argmax(1)).sum())
    return Agreement(len(images), float((expected - found).abs().max()), same_class)


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
            raise UserError(f"format={name}: needs {error.name}: {installation('onnx')}") from error
        if not found.difference <= TOLERANCE:
            differ = f"differ by {found.difference:.2g}, more than {TOLERANCE:g}"
            raise RunFailed(f"{run.name}: the exported logits {differ}")
        files: dict[str, str | bytes] = {form.file: path.read_bytes()}
    files[f"model-{name}.md"] = card(folder, form, found)
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

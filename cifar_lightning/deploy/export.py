"""Exporting a finished run's network, checked against it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from markupsafe import Markup
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from cifar_lightning.benchmark.load import build_backbone, load_backbone, load_data
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs import identity
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.markdown import markdown
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.system import escaping, untrusted
from cifar_lightning.system.environment import installation
from cifar_lightning.system.files import write_atomically
from cifar_lightning.variants.context import EXAMPLE_SHAPE
from cifar_lightning.variants.onnx import export_onnx

Forward = Callable[[Tensor], Tensor]
TOLERANCE = 1e-3  # of a logit: other kernels round otherwise
CHECKED_IMAGES = 1000


@dataclass(frozen=True)
class Format:
    """A way to write a network to a file.

    Attributes:
        file: Its name.
        write: Writes a run's network to a path.
        load: Makes something callable of the file.
        example: Lines that load and call it, for the model card.
    """

    file: str
    write: Callable[[nn.Module, Run, Path], None]
    load: Callable[[Path], Forward]
    example: str


def _write_onnx(network: nn.Module, run: Run, path: Path) -> None:
    export_onnx(network, path)


def _load_onnx(path: Path) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return forward


def _write_torch_export(network: nn.Module, run: Run, path: Path) -> None:
    images = torch.randn(2, *EXAMPLE_SHAPE[1:])
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (images,), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for operation in module.graph.nodes:
                operation.meta.pop("stack_trace", None)  # names files on this machine
    torch.export.save(program, path)


def _load_torch_export(path: Path) -> Forward:
    forward: Forward = torch.export.load(path).module()
    return forward


def _write_safetensors(network: nn.Module, run: Run, path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, path, metadata=Network.of(run).metadata)


def load(path: str | Path) -> nn.Module:
    """Build the network that a file of ``format=safetensors`` holds.

    Raises:
        UserError: If it is not such a file.
    """
    path = Path(path)
    try:
        content = untrusted.read(path, untrusted.MAX_WEIGHTS)
        network = Network.from_weights(content)
        weights = from_bytes(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: not an export of format=safetensors ({error})") from error
    return build_backbone(network.model, weights, path)


FORMATS = {
    "onnx": Format(
        "model.onnx",
        _write_onnx,
        _load_onnx,
        """\
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images.numpy()})""",
    ),
    "torch_export": Format(
        "model.pt2",
        _write_torch_export,
        _load_torch_export,
        """\
import torch
network = torch.export.load("model.pt2").module()
logits = network(images)""",
    ),
    "safetensors": Format(
        "model.safetensors",
        _write_safetensors,
        load,
        """\
from cifar_lightning.export import load
network = load("model.safetensors")
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
        data_root: As for `measure.load_data`.

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
    # Evenly over the split: image folders are read class by class.
    chosen = torch.linspace(0, len(test) - 1, min(CHECKED_IMAGES, len(test))).long()
    images = data.normalize(test[chosen])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / form.file
        try:
            form.write(load_backbone(folder), run, path)
            found = agreement(network, form.load(path), images)
        except ModuleNotFoundError as error:
            needed = f"needs {error.name}: {installation('onnx')}"
            raise UserError(f"format={name}: {needed}") from error
        if not found.difference <= TOLERANCE:
            raise RunFailed(
                f"{run.name}: the exported logits differ by {found.difference:.2g}, "
                f"more than {TOLERANCE:g}"
            )
        write_atomically(to / form.file, path.read_bytes())
    write_atomically(to / f"{Path(form.file).stem}-{name}.md", card(folder, name, found))
    return to / form.file


def card(folder: Path, name: str, found: Agreement) -> str:
    """Write the model card: what it is, how to load it, how good it is, how it was made."""
    run = load_run(folder)
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_lightning.deploy", "."),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        # What the template does not mark as Markdown is text, names of other people's among it.
        finalize=lambda value: (
            escaping.markdown(value)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
    )
    settings = OmegaConf.to_yaml(OmegaConf.create(identity.training_config(run.config)))
    return templates.get_template("model_card.md.jinja").render(
        run=run,
        name=Markup(escaping.markdown_code(run.name)),
        form=FORMATS[name],
        data=run.config["data"],
        found=found,
        table=Markup(markdown(rows_of(folder))),
        settings=Markup(escaping.markdown_block(settings, "yaml")),
    )

"""The formats that a network is exported to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_lightning.benchmark.load import load_backbone
from cifar_lightning.deploy.classifier import load
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.variants.context import Forward, example_images
from cifar_lightning.variants.onnx import export_onnx, on_cpu


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
    write: Callable[[Path, Path], None]
    load: Callable[[Path], Forward]
    example: str


def _write_onnx(folder: Path, path: Path) -> None:
    export_onnx(load_backbone(folder), path)


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


def _write_safetensors(folder: Path, path: Path) -> None:
    shutil.copy(RunFolder(folder).weights, path)  # they say of which network they are


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
        lambda path: torch.export.load(path).module(),
        """\
import torch
network = torch.export.load("model.pt2").module()
logits = network(images)""",
    ),
    "safetensors": Format(
        "model.safetensors",
        _write_safetensors,
        lambda path: load(path).network,
        """\
import cifar_lightning
network = cifar_lightning.load("model.safetensors").network
logits = network(images)""",
    ),
}

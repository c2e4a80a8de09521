"""Programs of torch.export: what a variant calls, in a file that torch loads without its code."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cifar_lightning.variants.context import Call, Format, VariantContext, example_images

MAX_BATCH = 65_535


class Called(nn.Module):
    """What a variant calls, as a module that can be exported."""

    def __init__(self, variant: VariantContext) -> None:
        super().__init__()
        self.network = variant.network
        self._call = (variant.forward,)  # or a network would be registered twice

    def forward(self, images: Tensor) -> Tensor:
        return self._call[0](images)


def load_torch_export(path: str, threads: int) -> Call:
    """Load a program of torch.export."""
    import torch

    torch.set_num_threads(threads)
    network = torch.export.load(path).module()
    return torch.inference_mode()(lambda images: network(torch.from_numpy(images)).numpy())


TORCH_EXPORT = Format(("model.pt2",), load_torch_export, ("torch",))


def use_torch_export(variant: VariantContext) -> None:
    """Save what is called as a program, and call what is loaded of it."""

    def write(path: Path) -> None:
        metadata = {"metadata.json": json.dumps(dict(variant.metadata))}
        torch.export.save(exported_program(variant), path, extra_files=metadata)

    (path,) = variant.ship(TORCH_EXPORT, write)
    variant.forward = torch.export.load(path).module()
    variant.first_calls()


def exported_program(variant: VariantContext) -> ExportedProgram:
    """Export what a variant calls, for any number of images; it names no file of this machine."""
    # More images than that are another case of some of a GPU's kernels, which torch 2.11 notices.
    shapes = ({0: torch.export.Dim("batch", max=MAX_BATCH)},)
    images = example_images(2, variant.device)
    program = torch.export.export(Called(variant).eval(), (images,), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for operation in module.graph.nodes:
                operation.meta.pop("stack_trace", None)
    return program

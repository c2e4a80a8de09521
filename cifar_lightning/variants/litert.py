"""LiteRT, which was TensorFlow Lite."""

from pathlib import Path

import torch

from cifar_lightning.variants.context import (
    Array,
    Call,
    Format,
    VariantContext,
    example_images,
    needing,
    on_arrays,
)
from cifar_lightning.variants.folding import folded_where_traceable
from cifar_lightning.variants.onnx import silenced


def load_litert(path: str, threads: int) -> Call:
    """Load a model for one image with LiteRT."""
    import numpy
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(path, num_threads=threads)
    model.allocate_tensors()
    (given,), (made,) = model.get_input_details(), model.get_output_details()

    def call(images: Array) -> Array:
        if len(images) > 1:
            return numpy.concatenate([call(image[None]) for image in images])
        model.set_tensor(given["index"], images)
        model.invoke()
        return model.get_tensor(made["index"])

    return call


LITERT = Format(("model.tflite",), load_litert, ("ai-edge-litert",))


def use_litert(variant: VariantContext) -> None:
    """Convert with LiteRT's converter and run with its interpreter."""
    variant.need_cpu()
    with needing("litert"), silenced():
        import ai_edge_litert.interpreter  # noqa: F401
        import litert_torch

    def write(path: Path) -> None:
        with silenced():
            network = folded_where_traceable(variant.network)
            litert_torch.convert(network, (example_images(1),)).export(str(path))

    (path,) = variant.ship(LITERT, write)
    variant.forward = on_arrays(load_litert(str(path), torch.get_num_threads()))
    variant.first_calls()

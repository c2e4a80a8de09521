"""LiteRT, which was TensorFlow Lite."""

import torch

from cifar_lightning.system.environment import installation
from cifar_lightning.variants.context import (
    Call,
    Format,
    Unsupported,
    VariantContext,
    example_images,
    on_arrays,
)
from cifar_lightning.variants.folding import folded_where_traceable
from cifar_lightning.variants.onnx import silenced


def load_litert(path: str, threads: int) -> Call:
    """Load a model of batch 1 with LiteRT, which computes with XNNPACK."""
    import numpy
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    made = interpreter.get_output_details()[0]["index"]

    def one(image: numpy.ndarray) -> numpy.ndarray:
        interpreter.set_tensor(given, image)
        interpreter.invoke()
        return interpreter.get_tensor(made)

    def call(images: numpy.ndarray) -> numpy.ndarray:
        if len(images) == 1:
            return one(images)
        return numpy.concatenate([one(image[None]) for image in images])

    return call


LITERT = Format(("model.tflite",), load_litert, ("ai-edge-litert",))


def use_litert(variant: VariantContext) -> None:
    """Convert with LiteRT's converter and run with its interpreter."""
    if variant.device.type != "cpu":
        raise Unsupported("is run on the CPU")
    try:
        with silenced():
            import ai_edge_litert.interpreter  # noqa: F401
            import litert_torch
    except ImportError as error:
        raise Unsupported(f"needs {error.name}: {installation('litert')}") from error
    (path,) = variant.ship(LITERT)
    with silenced():
        converted = litert_torch.convert(folded_where_traceable(variant.network), (example_images(1),))
        converted.export(str(path))
    variant.forward = on_arrays(load_litert(str(path), torch.get_num_threads()))
    variant.first_calls()

"""OpenVINO on the CPU, in fp32, bf16 and int8."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.system.processor import cpu_features
from cifar_lightning.variants.context import (
    Array,
    Call,
    Format,
    Unsupported,
    VariantContext,
    needing,
    on_arrays,
)
from cifar_lightning.variants.onnx import export_onnx, silenced
from cifar_lightning.variants.quantization import quantized

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and of ARM, as Linux calls them
# What may follow a max-pool behind a convolution: it never falls, or stays where it is.
FREE_TO_FOLLOW = {"Relu", "Convolution", "GroupConvolution", "MaxPool", "FakeQuantize", "Concat"}


def load_openvino(path: str, threads: int) -> Call:
    """Load an OpenVINO model, which is compiled for each number of images."""
    import openvino

    core, requests = openvino.Core(), {}
    model = core.read_model(path)
    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    hints |= {"ENABLE_HYPER_THREADING": True, "ENABLE_CPU_PINNING": False}  # else it may use fewer
    hints["INFERENCE_PRECISION_HINT"] = model.get_rt_info(["model_info", "precision"]).value

    def call(images: Array) -> Array:
        if images.shape not in requests:
            model.reshape(images.shape)  # faster than for any number
            requests[images.shape] = core.compile_model(model, "CPU", hints).create_infer_request()
        request = requests[images.shape]
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        request.infer()
        return request.get_output_tensor().data.copy()

    return call


def _format(stem: str) -> Format:
    return Format((f"{stem}.xml", f"{stem}.bin"), load_openvino, ("openvino",))


OPENVINO = _format("model-openvino")
OPENVINO_BF16 = _format("model-openvino-bf16")
OPENVINO_INT8 = _format("model-openvino-int8")


def use_openvino(variant: VariantContext) -> None:
    """Run with OpenVINO in fp32."""
    ov = _import_openvino(variant)
    _run(variant, ov, OPENVINO, partial(_converted, variant, ov), "f32")


def use_openvino_bf16(variant: VariantContext) -> None:
    """Run the same model with products in bf16, where the processor has them."""
    ov = _import_openvino(variant)
    if not BF16 & cpu_features():
        raise Unsupported("needs a processor with bf16 (avx512_bf16, amx_bf16, or ARM's bf16)")
    variant.exact = False
    _run(variant, ov, OPENVINO_BF16, partial(_converted, variant, ov), "bf16")


def use_openvino_int8(variant: VariantContext) -> None:
    """Quantize weights and activations after training, by NNCF."""
    quantized(variant)
    ov = _import_openvino(variant)
    with needing("openvino"), silenced():
        import nncf

    def quantized_model() -> Any:
        images = variant.calibration()
        given = nncf.Dataset([image.numpy() for image in images.split(1)])
        before = logging.getLogger("nncf").level
        with silenced():
            model = nncf.quantize(_converted(variant, ov), given, subset_size=len(images))
        logging.getLogger("nncf").setLevel(before)
        return model

    _run(variant, ov, OPENVINO_INT8, quantized_model, "f32")


def _import_openvino(variant: VariantContext) -> Any:
    """Import what conversion and execution need.

    Raises:
        Unsupported: If a package is missing, or it is to run elsewhere.
    """
    variant.need_cpu()
    with needing("openvino"):
        import onnxscript  # noqa: F401
        import openvino
    return openvino


def _converted(variant: VariantContext, ov: Any) -> Any:
    """Convert the network by way of ONNX: its BatchNorms are folded there."""
    path = variant.folder() / "fp32.onnx"
    export_onnx(variant, path)
    model = ov.Core().read_model(path)
    _keep_behind_max_pools(model)
    return model


def _keep_behind_max_pools(model: Any) -> None:
    """Let activations behind a max-pool stay there.

    NOTE: OpenVINO's CPU plugin (2026.4.1) makes an activation part of the convolution before the
    max-pool, which changes what is computed unless it never falls: GELU, SiLU, hard-swish and Mish
    do. Nothing turns that off. A maximum with the lowest number, which changes nothing, prevents
    it, and becomes part of the activation.
    """
    import numpy
    from openvino import opset13

    for operation in model.get_ordered_ops():
        followers = operation.output(0).get_target_inputs() if operation.get_output_size() else ()
        following = {one.get_node().get_type_name() for one in followers}
        if operation.get_type_name() == "MaxPool" and not following <= FREE_TO_FOLLOW:
            lowest = numpy.finfo(numpy.float32).min
            kept = opset13.maximum(operation.output(0), lowest).output(0)
            for one in followers:
                one.replace_source_output(kept)


def _run(
    variant: VariantContext, ov: Any, form: Format, make: Callable[[], Any], precision: str
) -> None:
    """Write a model as it is shipped, and let OpenVINO run that with torch's number of threads.

    The file says in which precision to compute what is not quantized: nothing else in it does.
    """

    def write(path: Path, _: Path) -> None:
        model = make()
        for number, operation in enumerate(model.get_ordered_ops()):
            if operation.get_type_name() not in ("Parameter", "Result"):
                # Else by a counter of the process: equal networks would give unequal files.
                operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
        for key, value in {**variant.metadata, "precision": precision}.items():
            model.set_rt_info(value, ["model_info", key])
        ov.save_model(model, path, compress_to_fp16=False)

    path, _ = variant.ship(form, write)
    variant.forward = on_arrays(load_openvino(str(path), torch.get_num_threads()))
    variant.first_calls()

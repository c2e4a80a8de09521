"""int8 with ONNX Runtime, quantized after training."""

from __future__ import annotations

import time
from typing import Any

from torch import nn
from torch.fx.experimental.optimization import fuse

from cifar_lightning.variants.context import Unsupported, VariantContext
from cifar_lightning.variants.onnx import export_onnx, import_onnxruntime, run_onnx, silenced


def use_int8(variant: VariantContext) -> None:
    """Quantize weights and activations after training, for the CPU, with ONNX Runtime.

    Convolutions and linear layers are quantized, per channel, but for the first two convolutions:
    channels of what lies between them differ too much for one scale. What squeeze-excitation and
    hard-swish do between layers stays in fp32. Weights use 7 bits, so that sums of products fit on
    processors without VNNI. The reasons are in ``docs/decisions.md``.
    """
    if variant.device.type != "cpu":
        raise Unsupported("is quantized for the CPU")
    ort = import_onnxruntime(variant.device)
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    start = time.perf_counter()
    folder = variant.folder()
    network = variant.network
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        network = fuse(network)
    export_onnx(network, folder / "fp32.onnx")
    batches = iter(variant.calibration().split(64))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with silenced():
        quant_pre_process(folder / "fp32.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        nodes = onnx.load(folder / "ready.onnx").graph.node
        quantization.quantize_static(
            folder / "ready.onnx",
            folder / "int8.onnx",
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=[node.name for node in nodes if node.op_type == "Conv"][:2],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    run_onnx(variant, ort, folder / "int8.onnx", start)

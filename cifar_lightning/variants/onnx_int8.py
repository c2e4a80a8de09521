"""ONNX Runtime in int8."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from cifar_lightning.variants.context import Format, VariantContext
from cifar_lightning.variants.onnx import (
    export_onnx,
    import_onnxruntime,
    load_onnx,
    run_onnx,
    silenced,
)
from cifar_lightning.variants.quantization import quantized

INT8 = Format(("model-int8.onnx",), load_onnx, ("onnxruntime",))
QUANTIZED = ["Conv", "Relu", "MaxPool", "Add", "Gemm"]  # operations, with what lies between them
USUAL = 99.9  # percent of a tensor's values, by size
LOUD = 8.0  # times the largest usual value: beyond that usual ones would have 5 of 8 bits or fewer
KEPT = 4.0  # times that, where one is beyond: no network without such values reaches much further
SAMPLED = 2**16  # values of a tensor and a batch, of which the usual ones are taken


def use_int8(variant: VariantContext) -> None:
    """Quantize weights and activations after training, for the CPU, with ONNX Runtime.

    Layers are quantized, per channel, with what lies between them, so that nothing turns to fp32
    and back there. A tensor's scale is that of its largest value, but for a few that are so large
    that all others would have hardly any levels: they are cut off. In fp32 stay the first
    convolution and the last linear layer, which cost less than quantizing what goes in and comes
    out, and depthwise convolutions: channels before them differ too much for one scale. The reasons
    are in ``docs/decisions.md``.
    """
    quantized(variant)
    ort = import_onnxruntime(variant.device)
    (path,) = variant.ship(INT8, partial(_quantize, variant))
    run_onnx(variant, ort, path)


def _quantize(variant: VariantContext, path: Path) -> None:
    import onnx
    from onnx.helper import set_model_props
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = variant.folder()
    export_onnx(variant, folder / "fp32.onnx")
    images = variant.calibration()
    feeds = ({"images": batch.numpy()} for batch in images.split(64))
    with silenced():
        quant_pre_process(folder / "fp32.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        in_fp32 = _kept_in_fp32(onnx.load(folder / "ready.onnx").graph)
        quantization.quantize_static(
            folder / "ready.onnx",
            path,
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=in_fp32,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                "TensorQuantOverrides": _cut_off(folder / "ready.onnx", in_fp32, images.split(16))
            },
        )
        model = onnx.load(path)
        set_model_props(model, dict(variant.metadata))
        onnx.save(model, path)


def _kept_in_fp32(graph: Any) -> list[str]:
    """Name an ONNX graph's first convolution, the depthwise ones, and the last linear layer."""
    shapes = {weights.name: weights.dims for weights in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    linear = [node for node in graph.node if node.op_type == "Gemm"]
    depthwise = [node for node in convolutions if shapes[node.input[1]][1] == 1]
    return [node.name for node in (*convolutions[:1], *depthwise, *linear[-1:])]


def _cut_off(
    path: Path, in_fp32: Collection[str], batches: Iterable[Tensor]
) -> dict[str, list[dict[str, Any]]]:
    """Find tensors with few values that are much larger than all others, and bound them.

    MobileNetV4 has layers whose largest value is 40 times that of all but a thousandth of them.

    Returns:
        By the tensor's name, the range to quantize, as ONNX Runtime's quantizer wants it.
    """
    import numpy
    import onnx
    import onnxruntime

    model = onnx.load(path)
    graph = model.graph
    nodes = [one for one in graph.node if one.op_type in QUANTIZED and one.name not in in_fp32]
    given = {"", *(one.name for one in (*graph.initializer, *graph.input))}
    names = sorted({name for node in nodes for name in (*node.input, *node.output)} - given)
    del graph.output[:]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    lowest, highest = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    usual = defaultdict(list)
    for batch in batches:
        values = session.run(names, {"images": batch.numpy()})
        for name, tensor in zip(names, values, strict=True):
            lowest[name] = min(lowest[name], float(tensor.min()))
            highest[name] = max(highest[name], float(tensor.max()))
            sizes = numpy.abs(tensor.ravel()[:: tensor.size // SAMPLED | 1])
            usual[name].append(float(numpy.percentile(sizes, USUAL)))
    bounds = {}
    for name in names:
        largest = float(numpy.mean(usual[name]))
        limit = KEPT * largest
        if max(-lowest[name], highest[name]) > LOUD * largest > 0:
            low, high = max(lowest[name], -limit), min(highest[name], limit)
            bounds[name] = [{"rmin": numpy.float32(low), "rmax": numpy.float32(high)}]
    used = Counter(name for node in graph.node for name in node.input)
    for node in nodes:
        if node.op_type == "Relu" and used[node.input[0]] == 1:  # the two become one: one range
            bounds.pop(node.input[0], None)
            if node.output[0] in bounds:
                bounds[node.input[0]] = bounds[node.output[0]]
    return bounds

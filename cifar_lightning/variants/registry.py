"""All parts of variants, and how a variant is prepared from them."""

import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from cifar_lightning import errors
from cifar_lightning.errors import (
    CifarLightningError,
    bad_value,
    cause_of,
    reason_of,
    unknown_name,
)
from cifar_lightning.system import environment
from cifar_lightning.variants import (
    aot,
    compiled,
    cuda_graph,
    executorch,
    litert,
    ncnn,
    onnx,
    onnx_int8,
    openvino,
    pytorch,
    tensorrt,
    torch_export,
)
from cifar_lightning.variants.context import Format, Kind, Unsupported, VariantContext
from cifar_lightning.variants.precision import fastest_algorithms, matmul_precision

PARTS: dict[str, tuple[Kind, Callable[[VariantContext], None]]] = {
    "fused": (Kind.GRAPH, pytorch.fold_batchnorm),
    "fp32": (Kind.PRECISION, lambda variant: None),  # as all but tf32 are where nothing is cast
    "tf32": (Kind.PRECISION, pytorch.use_tf32),
    "fp16": (Kind.PRECISION, pytorch.cast_to(torch.float16)),
    "bf16": (Kind.PRECISION, pytorch.cast_to(torch.bfloat16)),
    "autocast_fp16": (Kind.PRECISION, pytorch.autocast_to(torch.float16)),
    "autocast_bf16": (Kind.PRECISION, pytorch.autocast_to(torch.bfloat16)),
    "channels_last": (Kind.MEMORY_FORMAT, pytorch.use_channels_last),
    "compile": (Kind.RUNTIME, compiled.use_compile),
    "compile_max_autotune": (Kind.RUNTIME, compiled.use_max_autotune),
    "cuda_graph": (Kind.RUNTIME, cuda_graph.use_cuda_graph),
    "tensorrt": (Kind.RUNTIME, tensorrt.use_tensorrt),
    "torch_export": (Kind.RUNTIME, torch_export.use_torch_export),
    "onnx": (Kind.RUNTIME, onnx.use_onnx),
    "int8": (Kind.RUNTIME, onnx_int8.use_int8),
    "openvino": (Kind.RUNTIME, openvino.use_openvino),
    "openvino_bf16": (Kind.RUNTIME, openvino.use_openvino_bf16),
    "openvino_int8": (Kind.RUNTIME, openvino.use_openvino_int8),
    "aot": (Kind.RUNTIME, aot.use_aot),
    "executorch": (Kind.RUNTIME, executorch.use_executorch),
    "executorch_int8": (Kind.RUNTIME, executorch.use_executorch_int8),
    "ncnn": (Kind.RUNTIME, ncnn.use_ncnn),
    "litert": (Kind.RUNTIME, litert.use_litert),
}

# What parts ship that ship more than weights.
FORMATS: dict[str, Format] = {
    "torch_export": torch_export.TORCH_EXPORT,
    "onnx": onnx.ONNX,
    "int8": onnx_int8.INT8,
    "openvino": openvino.OPENVINO,
    "openvino_bf16": openvino.OPENVINO_BF16,
    "openvino_int8": openvino.OPENVINO_INT8,
    "aot": aot.AOT,
    "executorch": executorch.EXECUTORCH,
    "executorch_int8": executorch.EXECUTORCH_INT8,
    "ncnn": ncnn.NCNN,
    "litert": litert.LITERT,
}

# What a machine lacks, or has lost: types of errors, or words where the type says nothing.
_OF_THE_MACHINE = (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_WANT = re.compile(
    "(out of|allocate|enough|no) memory|bad_alloc|alloc_failed|no space left|inline_container",
    re.IGNORECASE,
)
_FAULTS = (AttributeError, NameError, LookupError, TypeError, AssertionError)

# They lay out memory themselves, and are given the network in fp32.
_ALONE = {*FORMATS} - {"torch_export", "aot"}

_ONNX_PACKAGES = ["onnxruntime", "onnxruntime-gpu", "onnxscript"]
_OPENVINO_PACKAGES = ["openvino", "onnxscript"]
# What executes a part, beside torch.
_PACKAGES = {
    "onnx": _ONNX_PACKAGES,
    "int8": _ONNX_PACKAGES,
    "openvino": _OPENVINO_PACKAGES,
    "openvino_bf16": _OPENVINO_PACKAGES,
    "openvino_int8": [*_OPENVINO_PACKAGES, "nncf"],
    "tensorrt": ["torch-tensorrt", "tensorrt-cu13"],
    "executorch": ["executorch"],
    "executorch_int8": ["executorch", "torchao"],
    "ncnn": ["ncnn", "pnnx"],
    "litert": ["ai-edge-litert", "litert-torch"],
}


def check(name: str, key: str = "variants") -> str:
    """See that a variant exists and makes sense.

    Args:
        name: Parts joined by ``+``.
        key: Where the user wrote it.

    Returns:
        The name with its parts in their order, and without an ``fp32`` that says nothing.

    Raises:
        UserError: If a part does not exist or parts exclude each other.
    """
    parts = name.split("+")
    for part in parts:
        if part not in PARTS:
            raise unknown_name(f"{key}={name}", "variant", part, PARTS)
    parts.sort(key=lambda part: PARTS[part][0])
    for first, second in pairwise(parts):
        if PARTS[first][0] == PARTS[second][0]:
            raise bad_value(key, name, f"one of {first} and {second}")
    if alone := _ALONE.intersection(parts):
        allowed = {"fused", "fp32", *alone}
        for part in parts:
            if part not in allowed:
                raise bad_value(key, name, f"{alone.pop()} without {part}")
    return "+".join(part for part in parts if part != "fp32" or len(parts) == 1)


def engines(variant: str) -> dict[str, str]:
    """Tell the versions of what executes a variant, as far as they are installed."""
    packages = ["torch", *chain.from_iterable(_PACKAGES.get(p, []) for p in variant.split("+"))]
    return {name: found for name in packages if (found := environment.version(name)) is not None}


def format_of(name: str) -> Format | None:
    """Tell as what files a variant is shipped; None where it is the weights."""
    return next((FORMATS[part] for part in name.split("+") if part in FORMATS), None)


@contextmanager
def prepare(
    name: str,
    backbone: nn.Module,
    device: torch.device,
    calibration: Callable[[], Tensor],
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    kept: Path | None = None,
) -> Iterator[VariantContext]:
    """Make a variant ready; every flag is as before as soon as it is.

    Several can be ready side by side: each is called while it is `VariantContext.switched`.

    Args:
        name: As `check` accepts it.
        backbone: Fresh, in fp32 on the CPU; it may be changed.
        device: Where to run.
        calibration: Gives normalised training images (N, 3, 32, 32) on the CPU; called only by
            variants that need them.
        metadata: What files that are shipped say of themselves, where they can.
        opset: Of ONNX, if not the exporter's own.
        kept: A folder with what is shipped, if another process has kept it there; else it is kept
            there for others.

    Raises:
        Unsupported: If this device or installation can't run it, or an engine refuses the network.
        UserError: If there is no such variant.
    """
    parts = check(name).split("+")
    with ExitStack() as stack:
        network = backbone.eval()
        eager = all(PARTS[part][0] != Kind.RUNTIME for part in parts)
        subnormals, start = _count_subnormals(network), time.perf_counter()
        with ExitStack() as preparing:
            variant = VariantContext(
                network, network, device, calibration, stack, preparing, eager, subnormals,
                metadata=metadata or {}, opset=opset, kept=kept,
            )  # fmt: skip
            variant.switch(partial(matmul_precision, "ieee"))
            variant.switch(fastest_algorithms)
            if device.type == "cuda":
                variant.switch(partial(torch.cuda.device, device))
            for kind in Kind:
                if kind == Kind.PRECISION and not _ALONE.intersection(parts):
                    variant.network.to(device)
                for part in parts:
                    if PARTS[part][0] == kind:
                        with _told_as_unsupported():
                            PARTS[part][1](variant)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            variant.preparation_s = time.perf_counter() - start
            variant.size_bytes = sum(path.stat().st_size for path in variant.files)
            variant.size_bytes = variant.size_bytes or _weights_size(variant.network)
        yield variant


@contextmanager
def _told_as_unsupported() -> Iterator[None]:
    """Take what exporters, compilers and engines raise for a refusal of the network.

    What the machine raises, such as a full disk, stays as it is, and so do faults of ours.
    """
    try:
        yield
    except (CifarLightningError, Unsupported):
        raise
    except Exception as error:
        cause, texts = cause_of(error), "\n".join(str(one) for one in errors.chain(error))
        if isinstance(cause, _OF_THE_MACHINE) or _WANT.search(texts) or _is_a_fault(cause):
            raise
        raise Unsupported(f"can't be prepared: {reason_of(error)}") from error


def _is_a_fault(error: BaseException) -> bool:
    """Tell whether this package's own code made a mistake, and no library refused something."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).parent == Path(__file__).parent
    return ours and isinstance(error, _FAULTS)


def _weights_size(network: nn.Module) -> int:
    """Tell the size in bytes of a network's weights as a file."""
    return len(save({key: value.contiguous() for key, value in network.state_dict().items()}))


def _count_subnormals(network: nn.Module) -> int:
    """Count the weights that are smaller than a normal number, and not 0."""
    numbers = [one for one in network.state_dict().values() if one.is_floating_point()]
    return sum(
        int(((one != 0) & (one.abs() < torch.finfo(one.dtype).tiny)).sum()) for one in numbers
    )

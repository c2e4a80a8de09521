"""ONNX Runtime in fp32, and the ONNX export that it runs."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_lightning.variants.context import (
    Call,
    Format,
    Forward,
    Unsupported,
    VariantContext,
    example_images,
    needing,
    on_arrays,
)
from cifar_lightning.variants.folding import folded_where_traceable


def load_onnx(path: str, threads: int) -> Call:
    """Load an ONNX file with ONNX Runtime."""
    import pathlib

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads wait by spinning; between calls that would take the cores from what comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    cpu = pathlib.Path("/proc/cpuinfo")
    if not cpu.exists() or "vnni" not in cpu.read_text():
        # Sums of products of 8 bits would overflow on x86; with VNNI this costs half the speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


ONNX = Format(("model.onnx",), load_onnx, ("onnxruntime",))


def use_onnx(variant: VariantContext) -> None:
    """Export to ONNX and run with ONNX Runtime."""
    ort = import_onnxruntime(variant.device)
    (path,) = variant.ship(ONNX, partial(export_onnx, variant))
    run_onnx(variant, ort, path)


def import_onnxruntime(device: torch.device) -> Any:
    """Import what export and execution need.

    Raises:
        Unsupported: If a package is missing, or its build for this device.
    """
    with needing("onnx"):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    if device.type not in ("cpu", "cuda"):
        raise Unsupported("needs a CPU or a CUDA GPU")
    if _provider(device) not in onnxruntime.get_available_providers():
        # Both packages are the module `onnxruntime`: the files of one hide the other's.
        replaced = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        raise Unsupported(f"needs ONNX Runtime for GPUs: {replaced}")
    return onnxruntime


def _provider(device: torch.device) -> str:
    return "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"


def export_onnx(variant: VariantContext, path: Path) -> None:
    """Write ONNX with the weights inside, a free batch size, ``images`` in and ``logits`` out.

    What the exporter says beside it, such as the files on this machine that it traced, is left out.
    BatchNorms are folded here, since nobody else folds one across a max-pool.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    network = folded_where_traceable(variant.network)
    with silenced():
        program = torch.onnx.export(
            network.cpu(),
            (example_images(2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            opset_version=variant.opset,
            verbose=False,
        )
        assert program is not None
        ClearMetadataAndDocStringPass()(program.model)
        program.model.metadata_props.update(variant.metadata)
        program.save(path)


def run_onnx(variant: VariantContext, ort: Any, path: Path) -> None:
    """Let ONNX Runtime do the calls, with torch's number of threads."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    (opset,) = (one.version for one in model.opset_import if not one.domain)
    assert variant.opset in (None, opset)
    variant.notes |= {
        "onnxruntime": ort.__version__, "opset": opset, "ir_version": model.ir_version,
    }  # fmt: skip
    if variant.device.type == "cuda":
        _run_on_gpu(variant, ort, path)
    else:
        variant.forward = on_arrays(load_onnx(str(path), torch.get_num_threads()))
        variant.first_calls()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Give the stream of a GPU on which ONNX Runtime works and torch, too.

    So input is ready, and events around a call time the call. All candidates share it: work on one
    stream never runs beside that on another. It is not torch's default one: its handle is 0, which
    ONNX Runtime reads as "none given".
    """
    return torch.cuda.Stream(device)


def _run_on_gpu(variant: VariantContext, ort: Any, path: Path) -> None:
    """Let ONNX Runtime do the calls on a GPU, where they return before the work is done."""
    options, run_options = ort.SessionOptions(), ort.RunOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    stream, number = _stream(variant.device), variant.device.index or 0
    variant.switch(partial(torch.cuda.stream, stream))
    settings = {
        "device_id": number,
        "user_compute_stream": str(stream.cuda_stream),
        "use_tf32": "0",
    }
    session = ort.InferenceSession(path, options, providers=[(_provider(variant.device), settings)])
    if _provider(variant.device) not in session.get_providers():
        raise Unsupported(f"{_provider(variant.device)} could not be started")
    classes = variant.network.cpu()(example_images(1)).shape[1]

    def build(images: Tensor) -> Forward:
        """Bind logits for one shape once, and images as often as they lie elsewhere."""
        place, binding, bound = ("cuda", number, "float32"), session.io_binding(), 0
        logits = torch.empty(len(images), classes, device=images.device)
        binding.bind_output("logits", *place, logits.shape, logits.data_ptr())

        def forward(images: Tensor) -> Tensor:
            nonlocal bound
            images = images.contiguous()
            if images.data_ptr() != bound:
                bound = images.data_ptr()
                binding.bind_input("images", *place, images.shape, bound)
            session.run_with_iobinding(binding, run_options)
            return logits

        return forward

    variant.build_by_shape(build)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep exporters' progress off the console; what they raise comes through."""
    with ExitStack() as stack:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        yield

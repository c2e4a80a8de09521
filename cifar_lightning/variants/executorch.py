"""ExecuTorch with the XNNPACK delegate, in fp32 and int8."""

import operator
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor
from torch.export import ExportedProgram

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
from cifar_lightning.variants.quantization import quantized


def load_executorch(path: str, threads: int) -> Call:
    """Load a program for one image; ExecuTorch has one pool of threads for all programs."""
    import numpy
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")

    def call(images: Array) -> Array:
        if len(images) > 1:
            return numpy.concatenate([call(image[None]) for image in images])
        return method.execute([torch.from_numpy(images)])[0].numpy()

    return call


EXECUTORCH = Format(("model.pte",), load_executorch, ("executorch",))
EXECUTORCH_INT8 = Format(("model-int8.pte",), load_executorch, ("executorch",))


def use_executorch(variant: VariantContext) -> None:
    """Lower to XNNPACK and run with ExecuTorch."""
    variant.need_cpu()
    with needing("executorch"), silenced():
        import executorch.exir  # noqa: F401

    def program() -> ExportedProgram:
        network = folded_where_traceable(variant.network)
        return torch.export.export(network, (example_images(1),))

    variant.ship(EXECUTORCH, partial(_lower, variant, program))
    _run(variant)


def use_executorch_int8(variant: VariantContext) -> None:
    """Quantize weights, per channel, and activations after training, and lower to XNNPACK."""
    quantized(variant)
    with needing("executorch"), silenced():
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def program() -> ExportedProgram:
        network, images = folded_where_traceable(variant.network), (example_images(1),)
        quantizer = xnnpack_quantizer.XNNPACKQuantizer()
        to_8_bits = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
        quantizer.set_global(to_8_bits)
        with torch.no_grad():
            observed = prepare_pt2e(torch.export.export(network, images).module(), quantizer)
            for image in variant.calibration().split(1):
                observed(image)
            return torch.export.export(convert_pt2e(observed), images)

    variant.ship(EXECUTORCH_INT8, partial(_lower, variant, program))
    _run(variant)


def _lower(variant: VariantContext, make: Callable[[], ExportedProgram], path: Path) -> None:
    """Write a program, and tell which fraction of its operations the delegate takes."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    # torch's own decomposition has integer constants, whose casts the delegate leaves outside.
    decompositions = {torch.ops.aten.hardsigmoid.default: _hardsigmoid}
    with silenced():
        program = make().run_decompositions(decompositions)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    graph = lowered.exported_program().graph_module
    inside = sum(
        _count_operations(module.original_module.graph_module)
        for _, module, _ in get_lowered_submodules(graph)
    )
    variant.delegated = inside / (inside + _count_operations(graph))
    path.write_bytes(lowered.to_executorch().buffer)


def _hardsigmoid(images: Tensor) -> Tensor:
    return (images + 3.0).clamp(0.0, 6.0) / 6.0


def _count_operations(graph: torch.fx.GraphModule) -> int:
    """Count what computes: neither calls of a delegate nor the taking of what they give."""
    return sum(
        node.op == "call_function" and "delegate" not in node.name
        for node in graph.graph.nodes
        if node.target is not operator.getitem
    )


# Where its C++ says what is no error: which cores it sees, and how many threads it takes.
_TALKATIVE = (b"[cpuinfo_utils.cpp:", b"[threadpool.cpp:")


@contextmanager
def _without_talk() -> Iterator[None]:
    """Leave out what loading says of cores and threads; other lines on stderr come through.

    NOTE: Python's package has no level of logging to set, and writes past `sys.stderr`.
    """
    sys.stderr.flush()
    console = os.dup(2)
    with TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(console, 2)
            os.close(console)
            said.seek(0)
            for line in said:
                if not line.startswith(_TALKATIVE):
                    with suppress(OSError):
                        os.write(2, line)


_pool: tuple[int, object] = (0, object())


def _pool_of(threads: int) -> object:
    """Tell which pool of so many threads the process has; programs of an older one hold that."""
    global _pool
    if _pool[0] != threads:
        _pool = threads, object()
    return _pool[1]


def _run(variant: VariantContext) -> None:
    """Let ExecuTorch do the calls; a program is loaded anew where another pool was made since."""
    threads, path = torch.get_num_threads(), str(variant.files[0])
    pool: object = None
    call: Call

    @contextmanager
    def loaded() -> Iterator[None]:
        nonlocal pool, call
        if pool is not _pool_of(threads):
            with _without_talk():
                call, pool = load_executorch(path, threads), _pool_of(threads)
        yield

    variant.switch(loaded)
    variant.forward = on_arrays(lambda images: call(images))
    variant.first_calls()

"""PyTorch itself: fused BatchNorms, data types, memory format, compiled, captured."""

import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.errors import chain, first_line_of
from cifar_lightning.variants.context import Forward, Unsupported, VariantContext, example_images
from cifar_lightning.variants.folding import fold_batchnorms
from cifar_lightning.variants.precision import matmul_precision

# What Inductor raises where it has nothing, or nothing complete, to compile with.
_NO_COMPILER = {"CppCompileError", "InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"}


def fold_batchnorm(variant: VariantContext) -> None:
    """Fold each BatchNorm into the convolution before it; note how many are behind none."""
    images = example_images(8)
    norms = _count_batchnorms(variant.network)
    with torch.no_grad():
        before = variant.network(images)
        variant.network = variant.forward = fold_batchnorms(variant.network)
        variant.notes["fusing_error"] = float((variant.network(images) - before).abs().max())
    if left := _count_batchnorms(variant.network):
        if left == norms:
            raise Unsupported("no BatchNorm is behind a convolution")
        variant.notes["batchnorms_left"] = left


def _count_batchnorms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def use_tf32(variant: VariantContext) -> None:
    """Let the GPU round the factors of fp32 products to 10 bits of mantissa."""
    variant.need_gpu()
    if torch.cuda.get_device_capability(variant.device) < (8, 0):
        raise Unsupported("needs a GPU of the Ampere generation or later")
    variant.switch(partial(matmul_precision, "tf32"))


def cast_to(dtype: torch.dtype) -> Callable[[VariantContext], None]:
    """Make the part that casts the whole network."""

    def part(variant: VariantContext) -> None:
        network = variant.network.to(dtype)
        variant.forward = lambda images: network(images.to(dtype)).float()
        _try_forward(variant)

    return part


def autocast_to(dtype: torch.dtype) -> Callable[[VariantContext], None]:
    """Make the part that lets torch choose which operations run in the smaller type."""

    def part(variant: VariantContext) -> None:
        network, kind = variant.network, variant.device.type

        def forward(images: Tensor) -> Tensor:
            with torch.autocast(kind, dtype):
                logits: Tensor = network(images)
            return logits.float()

        variant.forward = forward
        _try_forward(variant)

    return part


def use_channels_last(variant: VariantContext) -> None:
    """Lay channels next to each other, as tensor cores and many CPU kernels like them."""
    variant.network.to(memory_format=torch.channels_last)
    inner = variant.forward
    variant.forward = lambda images: inner(images.contiguous(memory_format=torch.channels_last))


def use_compile(variant: VariantContext) -> None:
    """Compile with torch.compile: CUDA graphs within on a GPU, plain kernels on a CPU."""
    # Each time from scratch, or the second preparation would be told as a quick one.
    caches_off = torch.compiler.config.patch(force_disable_caches=True)  # type: ignore[attr-defined]
    variant.preparing.enter_context(caches_off)
    # Beyond eight networks of one class, what is compiled would be called eagerly in silence, and
    # `torch.compiler.reset` would throw away the others. Versions of torch that can't keep them
    # apart raise an error then.
    apart: dict[str, Any] = {"fullgraph": True}
    if "isolate_recompiles" in signature(torch.compile).parameters:
        apart["isolate_recompiles"] = True
    mode = "reduce-overhead" if variant.device.type == "cuda" else "default"
    variant.forward = torch.compile(variant.forward, mode=mode, dynamic=False, **apart)
    try:
        _first_call(variant)
    except Exception as error:
        for link in chain(error):
            if type(link).__name__ in _NO_COMPILER:
                raise Unsupported(f"needs a compiler: {first_line_of(link)}") from error
        raise


def use_cuda_graph(variant: VariantContext) -> None:
    """Capture the forward pass once for each shape of its input and replay it."""
    variant.need_gpu()
    inner = variant.forward
    captured: dict[torch.Size, Forward] = {}

    def forward(images: Tensor) -> Tensor:
        if images.shape not in captured:
            _, captured[images.shape] = capture(inner, images)
        return captured[images.shape](images)

    variant.forward = forward
    variant.stack.callback(captured.clear)
    _first_call(variant)


def capture(forward: Forward, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Forward]:
    """Capture a forward pass for one shape of input.

    Returns:
        The graph, and a function that copies images to where it reads them and replays it.

    Raises:
        RuntimeError: If it does what can't be captured, such as waiting for the device.
    """
    with torch.cuda.device(images.device):
        static = images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first calls
            for _ in range(3):
                forward(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = forward(static)

    def replay(images: Tensor) -> Tensor:
        static.copy_(images)
        graph.replay()
        return logits

    return graph, replay


def _try_forward(variant: VariantContext) -> None:
    """Call the network once: whether a device computes in a type is best asked by doing it."""
    try:
        with torch.inference_mode():
            variant.forward(example_images(1, variant.device))
    except RuntimeError as error:
        if "not implemented" in str(error) or "not supported" in str(error):
            raise Unsupported(str(error).splitlines()[0]) from error
        raise


def _first_call(variant: VariantContext) -> None:
    """Make and time the call that compiles or captures, in the mode of all later ones."""
    images = example_images(1, variant.device)
    start = time.perf_counter()
    with torch.inference_mode():
        variant.forward(images)
        if variant.device.type == "cuda":
            torch.cuda.synchronize(variant.device)
    variant.preparation_s = time.perf_counter() - start

"""torch.compile."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch

from cifar_lightning.errors import chain, first_line_of
from cifar_lightning.variants.context import Unsupported, VariantContext, first_call


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
        first_call(variant)
    except Exception as error:
        for link in chain(error):
            if type(link).__name__ in _NO_COMPILER:
                raise Unsupported(f"needs a compiler: {first_line_of(link)}") from error
        raise


# What Inductor raises where it has nothing, or nothing complete, to compile with.
_NO_COMPILER = {"CppCompileError", "InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"}

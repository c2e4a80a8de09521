"""Compilers that torch.compile calls."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from cifar_lightning.errors import chain, first_line_of
from cifar_lightning.variants.context import Forward, Unsupported, VariantContext

# What Inductor and Triton raise where there is nothing, or nothing complete, to compile with: types
# of errors, or words of their texts where the type says nothing or a process of theirs raised it.
_NO_COMPILER = re.compile(
    "CppCompileError|InvalidCxxCompiler|TritonMissing|GPUTooOldForTriton"
    r"|Failed to find C(\+\+)? compiler|CalledProcessError"
)
# What is known here: nothing is cached on purpose, and fp32 is fp32 on purpose.
_EXPECTED_WARNINGS = ("dynamo_pgo force disabled", "TensorFloat32 tensor cores")


def use_compile(variant: VariantContext) -> None:
    """Compile with torch.compile: CUDA graphs within on a GPU, plain kernels on a CPU."""
    _inductor(variant, "reduce-overhead" if variant.device.type == "cuda" else "default")


def use_max_autotune(variant: VariantContext) -> None:
    """Compile as `use_compile` does, and take the fastest of many kernels for each operation."""
    variant.need_gpu()
    _inductor(variant, "max-autotune")


def _inductor(variant: VariantContext, mode: str) -> None:
    with _noting_cuda_graphs(variant), redirect_stderr(StringIO()):  # tables of autotuning
        compile_forward(variant, mode=mode)


def compile_forward(variant: VariantContext, **how: Any) -> None:
    """Compile what is called, by the first calls.

    Args:
        variant: Its `forward` is compiled.
        how: Arguments of `torch.compile`.

    Raises:
        Unsupported: If there is no compiler.
    """
    variant.forward = torch.compile(_own(variant.forward), fullgraph=True, dynamic=False, **how)
    with needing_a_compiler(variant), warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        variant.first_calls()


@contextmanager
def needing_a_compiler(variant: VariantContext) -> Iterator[None]:
    """Compile meanwhile, for the variant, with nothing that was compiled before.

    Raises:
        Unsupported: If there is no compiler.
    """
    # Each time from scratch, or the second preparation would be told as a quick one.
    caches_off = torch.compiler.config.patch(force_disable_caches=True)  # type: ignore[attr-defined]
    variant.preparing.enter_context(caches_off)
    try:
        yield
    except Exception as error:
        for link in chain(error):
            if _NO_COMPILER.search(f"{type(link).__name__}: {link}"):
                raise Unsupported(f"needs a compiler: {first_line_of(link)}") from error
        raise


def _own(forward: Forward) -> Forward:
    """Make a function whose code object no other variant has.

    torch.compile counts what it has compiled by code object, which networks of one class share, and
    parts of one kind: beyond eight it would call them eagerly, and `fullgraph` makes that an error.
    `torch.compiler.reset` would throw away the others.
    """

    def call(images: Tensor) -> Tensor:
        return forward(images)

    call.__code__ = call.__code__.replace()
    return call


class _Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _noting_cuda_graphs(variant: VariantContext) -> Iterator[None]:
    """Note whether CUDA graphs are used; where it can't, Inductor goes on without them."""
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_utils import cudagraphs_log

    recorded = "cudagraph_recorded_non_static_inputs"  # the images, once for each graph
    before, skips = counters["inductor"][recorded], _Messages()
    cudagraphs_log.addHandler(skips)
    try:
        yield
    finally:
        cudagraphs_log.removeHandler(skips)
    if variant.device.type == "cuda":
        if counters["inductor"][recorded] == before:
            skips.texts.append("none was recorded")
        variant.notes["cudagraphs"] = f"no: {skips.texts[0]}" if skips.texts else "yes"

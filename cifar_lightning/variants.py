"""Ways to execute a trained backbone. Each variant is one context manager, named in `VARIANTS`.

Inside it the network is ready to be called; when it ends, every flag is as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]
Variant = Callable[[nn.Module, torch.device], AbstractContextManager[Forward]]

# NOTE: three switches, one by one. The global one has not reached convolutions in some releases,
# and once all three are set, touching the older `allow_tf32` raises.
_PRECISION_SWITCHES: tuple[Any, ...] = (
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]  # made at run time
    torch.backends.cudnn.rnn,
    torch.backends.cuda.matmul,
)


@contextmanager
def fp32(backbone: nn.Module, device: torch.device) -> Iterator[Forward]:
    """The network as it was trained, in true fp32: no TF32, which is cuDNN's default."""
    with _matmul_precision("ieee"), _cudnn_search():
        yield backbone.to(device).eval()


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Set how products of fp32 numbers are computed on a GPU, and restore it."""
    before = [switch.fp32_precision for switch in _PRECISION_SWITCHES]
    try:
        for switch in _PRECISION_SWITCHES:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, value in zip(_PRECISION_SWITCHES, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def _cudnn_search() -> Iterator[None]:
    """Let cuDNN look for the fastest algorithm of each convolution; the warm-up pays for it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def flags() -> dict[str, object]:
    """Tell every switch that decides how a network is computed, as it is now."""
    conv, rnn, matmul = _PRECISION_SWITCHES
    return {
        "cudnn.conv.fp32_precision": conv.fp32_precision,
        "cudnn.rnn.fp32_precision": rnn.fp32_precision,
        "cuda.matmul.fp32_precision": matmul.fp32_precision,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "inference_mode": torch.is_inference_mode_enabled(),
    }


VARIANTS: dict[str, Variant] = {"fp32": fp32}

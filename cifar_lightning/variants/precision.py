"""Switches of precision and algorithms, and the proof that fp32 is fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

IEEE_BELOW = 1e-5  # relative error of a convolution; TF32's is 1e-4 and more

# NOTE: three switches, one by one. The global one has not reached convolutions in some releases,
# and once all three are set, touching the older `allow_tf32` raises.
_PRECISION_SWITCHES: tuple[Any, ...] = (
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]  # made at run time
    torch.backends.cudnn.rnn,
    torch.backends.cuda.matmul,
)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
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
def fastest_algorithms() -> Iterator[None]:
    """Let cuDNN look for the fastest algorithm of each convolution; the warm-up pays for it.

    A training run's determinism ends here: it would slow what is measured after it, and only there.
    """
    cudnn = torch.backends.cudnn
    before, mode = (cudnn.benchmark, cudnn.deterministic), torch.get_deterministic_debug_mode()
    try:
        cudnn.benchmark, cudnn.deterministic = True, False
        torch.set_deterministic_debug_mode("default")
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
        torch.set_deterministic_debug_mode(mode)


def flags() -> dict[str, str | bool | int]:
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


def convolution_error(device: torch.device) -> float:
    """Compare a convolution and a matrix product with float64.

    About 1e-7 is fp32, 1e-4 and more TF32. The convolution is 1x1: for larger kernels cuDNN may
    choose an algorithm that proves nothing, such as Winograd's.

    Returns:
        The larger one's largest absolute error over its largest absolute value, under the flags as
        they are.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 512, 16, 16, generator=generator)
    weights = torch.randn(512, 512, generator=generator)

    def both(images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        convolved = nn.functional.conv2d(images, weights[:, :, None, None])
        return convolved, images[0].flatten(1).t() @ weights

    exact = both(images.double(), weights.double())
    found = both(images.to(device), weights.to(device))
    return max(
        float((ours.cpu().double() - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(found, exact, strict=True)
    )


def verify_precision(name: str, error: float) -> None:
    """See that fp32 was fp32 and TF32 was TF32.

    Args:
        name: The variant that ran.
        error: What `convolution_error` found under it.

    Raises:
        RuntimeError: If they contradict each other.
    """
    found = "ieee" if error < IEEE_BELOW else "tf32"
    wanted = "tf32" if "tf32" in name.split("+") else "ieee"
    if found != wanted:
        raise RuntimeError(f"a convolution ran in {found}, not {wanted} (error {error:.1e})")

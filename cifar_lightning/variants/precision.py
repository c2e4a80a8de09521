"""Switches of precision and algorithms, and the proof that fp32 is fp32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["ieee", "tf32"]

PROOF_IMAGES = 8  # in the convolution that proves the precision
IEEE_BELOW = 1e-5  # relative error of a convolution; TF32's is 1e-4 and more

# NOTE: one by one, since the global switch has not reached convolutions in some releases. Those of
# mkldnn are the CPU's.
_SWITCHES: dict[str, Any] = {
    name: attrgetter(name)(torch.backends)
    for name in (
        *("cudnn.conv", "cudnn.rnn", "cuda.matmul"),
        *("mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul"),
    )
}


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Set how products of fp32 numbers are computed, and restore it."""
    older = _older_switch()
    before = {name: switch.fp32_precision for name, switch in _SWITCHES.items()}
    try:
        _set("high" if precision == "tf32" else "highest", dict.fromkeys(before, precision))
        yield
    finally:
        _set(older, before)


def _older_switch() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it contradicts the newer one, which somebody has set alone
        return "high" if _SWITCHES["cuda.matmul"].fp32_precision == "tf32" else "highest"


def _set(older: str, newer: Mapping[str, str]) -> None:
    """Set all switches, the older ones first: they set newer ones, too.

    Compilers and exporters read the older ones, which raises where these contradict the newer.
    """
    torch.set_float32_matmul_precision(older)
    torch.backends.cudnn.allow_tf32 = newer["cudnn.conv"] == "tf32"
    for name, precision in newer.items():
        _SWITCHES[name].fp32_precision = precision


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
    return {
        **{f"{name}.fp32_precision": switch.fp32_precision for name, switch in _SWITCHES.items()},
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "inference_mode": torch.is_inference_mode_enabled(),
    }


def convolution_error(device: torch.device) -> float:
    """Compare a convolution and a matrix product with float64.

    About 1e-6 is fp32, 1e-4 and more TF32. The convolution is 1x1: for larger kernels cuDNN may
    choose an algorithm that proves nothing, such as Winograd's.

    Returns:
        The larger one's largest absolute error over its largest absolute value, under the flags as
        they are.
    """
    images, weights, exact = _known_products()
    computed = _products(images.to(device), weights.to(device))
    return max(
        float((ours.cpu().double() - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(computed, exact, strict=True)
    )


def _products(images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    convolved = nn.functional.conv2d(images, weights[:, :, None, None])
    return convolved, images[0].flatten(1).t() @ weights


@cache
def _known_products() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Give images, weights and, computed once for all candidates, their products in float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PROOF_IMAGES, 512, 16, 16, generator=generator)
    weights = torch.randn(512, 512, generator=generator)
    return images, weights, _products(images.double(), weights.double())


def found(error: float) -> Precision:
    """Tell what products of fp32 numbers were computed in, from `convolution_error`."""
    return "ieee" if error < IEEE_BELOW else "tf32"


def wanted(name: str) -> Precision:
    """Tell what a variant's products of fp32 numbers are to be computed in."""
    return "tf32" if "tf32" in name.split("+") else "ieee"

"""Eager PyTorch: fused BatchNorms, data types, autocast, memory format."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from cifar_lightning.variants.context import EXAMPLE_SHAPE, Build, Unsupported, try_forward
from cifar_lightning.variants.precision import matmul_precision


def fold_batchnorm(build: Build) -> None:
    """Fold each BatchNorm into the convolution before it."""
    images = torch.randn(8, *EXAMPLE_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = build.network(images)
        build.network = build.forward = fuse(build.network)
        build.notes["fusing_error"] = float((build.network(images) - before).abs().max())
    left = [m for m in build.network.modules() if isinstance(m, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"{len(left)} BatchNorms are not behind a convolution")


def keep_fp32(build: Build) -> None:
    """True fp32, which every variant but tf32 uses for what it does not cast."""


def use_tf32(build: Build) -> None:
    """Let the GPU round the factors of fp32 products to 10 bits of mantissa."""
    build.need_gpu()
    if torch.cuda.get_device_capability(build.device) < (8, 0):
        raise Unsupported("needs a GPU of the Ampere generation or later")
    build.stack.enter_context(matmul_precision("tf32"))


def cast_to(dtype: torch.dtype) -> Callable[[Build], None]:
    """Make the part that casts the whole network."""

    def part(build: Build) -> None:
        network = build.network.to(dtype)
        build.forward = lambda images: network(images.to(dtype)).float()
        try_forward(build)

    return part


def autocast_to(dtype: torch.dtype) -> Callable[[Build], None]:
    """Make the part that lets torch choose which operations run in the smaller type."""

    def part(build: Build) -> None:
        network, kind = build.network, build.device.type

        def forward(images: Tensor) -> Tensor:
            with torch.autocast(kind, dtype):
                logits: Tensor = network(images)
            return logits.float()

        build.forward = forward
        try_forward(build)

    return part


def use_channels_last(build: Build) -> None:
    """Lay channels next to each other, as tensor cores and many CPU kernels like them."""
    build.network.to(memory_format=torch.channels_last)
    inner = build.forward
    build.forward = lambda images: inner(images.contiguous(memory_format=torch.channels_last))

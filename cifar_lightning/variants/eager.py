"""Eager PyTorch: fused BatchNorms, data types, autocast, memory format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from cifar_lightning.variants.context import (
    Unsupported,
    VariantContext,
    example_images,
    try_forward,
)
from cifar_lightning.variants.precision import matmul_precision


def fold_batchnorm(variant: VariantContext) -> None:
    """Fold each BatchNorm into the convolution before it."""
    images = example_images(8)
    with torch.no_grad():
        before = variant.network(images)
        variant.network = variant.forward = fuse(variant.network)
        variant.notes["fusing_error"] = float((variant.network(images) - before).abs().max())
    left = [m for m in variant.network.modules() if isinstance(m, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"{len(left)} BatchNorms are not behind a convolution")


def keep_fp32(variant: VariantContext) -> None:
    """True fp32, which every variant but tf32 uses for what it does not cast."""


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
        try_forward(variant)

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
        try_forward(variant)

    return part


def use_channels_last(variant: VariantContext) -> None:
    """Lay channels next to each other, as tensor cores and many CPU kernels like them."""
    variant.network.to(memory_format=torch.channels_last)
    inner = variant.forward
    variant.forward = lambda images: inner(images.contiguous(memory_format=torch.channels_last))

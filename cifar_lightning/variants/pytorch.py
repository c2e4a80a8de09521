"""PyTorch itself, called operation by operation: fused BatchNorms, data types, memory format."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cifar_lightning.variants.context import Unsupported, VariantContext, example_images
from cifar_lightning.variants.folding import fold_batchnorms
from cifar_lightning.variants.precision import matmul_precision


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
    variant.exact = False
    variant.switch(partial(matmul_precision, "tf32"))


def cast_to(dtype: torch.dtype) -> Callable[[VariantContext], None]:
    """Make the part that casts the whole network."""

    def part(variant: VariantContext) -> None:
        network, variant.exact = variant.network.to(dtype), False
        variant.forward = lambda images: network(images.to(dtype)).float()
        _try_forward(variant)

    return part


def autocast_to(dtype: torch.dtype) -> Callable[[VariantContext], None]:
    """Make the part that lets torch choose which operations run in the smaller type."""

    def part(variant: VariantContext) -> None:
        network, kind = variant.network, variant.device.type
        variant.exact = False

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


def _try_forward(variant: VariantContext) -> None:
    """Call the network once: whether a device computes in a type is best asked by doing it."""
    try:
        with torch.inference_mode():
            variant.forward(example_images(1, variant.device))
    except RuntimeError as error:
        if "not implemented" in str(error) or "not supported" in str(error):
            raise Unsupported(str(error).splitlines()[0]) from error
        raise

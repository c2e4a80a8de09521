"""Adapting a network to 32x32 images: its output stride, its BatchNorms, its first state."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

INPUT_SIZE = 32  # pixels, both ways
# ImageNet's networks have more than one pixel left of it, which pooling and attention may need.
PROBE_SIZE = 64


def adapt(
    network: nn.Module,
    output_stride: int | None,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Bring a network to an output stride and set its BatchNorms, in place.

    The layers that lower the resolution (convolutions, pooling, blurring) are found by running the
    network once; those that see the same resolution (the branches of one block) form one step. The
    first steps lose their stride until the rest multiply to ``output_stride``. On the meta device,
    where a network has nothing but its sizes, strides stay: running it there takes longer than all
    the rest, and they change no size.

    NOTE: only the layers' own ``stride`` changes. Whether a block has a residual connection is
    decided by torchvision when it is built, so a block that lost its stride gains none.

    Args:
        network: Takes (B, 3, H, W) of any size.
        output_stride: Input resolution over the last feature map's; None leaves it.
        bn_momentum: New value of every BatchNorm.
        bn_eps: New value of every BatchNorm.
        zero_init: Let residual blocks begin as the identity.

    Returns:
        The same network.

    Raises:
        ValueError: If the output stride is none that the last steps multiply to.
    """
    if output_stride is not None and not next(network.parameters()).is_meta:
        _lower_strides(network, output_stride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = bn_momentum, bn_eps
    if zero_init:
        _silence_residuals(network)
    return network


def _lower_strides(network: nn.Module, output_stride: int) -> None:
    steps = _downsampling_steps(network)
    strides = [_stride(layers[0]) for layers in steps]
    reachable = [prod(strides[first:]) for first in range(len(steps), -1, -1)]
    if output_stride not in reachable:
        raise ValueError(f"output_stride={output_stride}: must be {', '.join(map(str, reachable))}")
    for layers in steps[: len(steps) - reachable.index(output_stride)]:
        for layer in layers:
            windows = getattr(layer, "kernel_size", None) in (layer.stride, _stride(layer))
            if windows and not isinstance(layer, nn.Conv2d):
                layer.kernel_size = 1  # of a pool whose windows lie side by side
            layer.stride = 1 if isinstance(layer.stride, int) else (1, 1)


def _stride(layer: Any) -> int:
    """Tell a layer's stride, 1 where it has none; blocks may have one that they do not use."""
    stride = getattr(layer, "stride", 1)
    if any(True for _ in layer.children()):
        return 1
    return int(max(stride)) if isinstance(stride, tuple | list) else int(stride or 1)


def _silence_residuals(network: nn.Module) -> None:
    """Let every residual block begin as the identity: its last BatchNorm's weights become 0.

    From Goyal et al., "Accurate, Large Minibatch SGD" (2017).
    """
    for block in network.modules():
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
        elif getattr(block, "use_res_connect", False):  # both MobileNets'
            norms = [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)


def _downsampling_steps(network: nn.Module) -> list[list[Any]]:
    """Group the layers with a stride by the resolution they see, the highest first."""
    steps: dict[int, list[Any]] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        steps.setdefault(inputs[0].shape[-1], []).append(layer)

    hooks = [
        layer.register_forward_pre_hook(record) for layer in network.modules() if _stride(layer) > 1
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return [steps[resolution] for resolution in sorted(steps, reverse=True)]

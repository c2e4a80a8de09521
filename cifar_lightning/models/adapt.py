"""Adapting a network to 32x32 images: its output stride, its BatchNorms, its first state."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

INPUT_SIZE = 32  # pixels, both ways


def adapt(
    network: nn.Module,
    output_stride: int,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Bring a network to an output stride and set its BatchNorms, in place.

    The layers that halve the resolution are found by running the network once; those that see the
    same resolution (the branches of one block) form one step. The first steps lose their stride
    until the rest multiply to ``output_stride``.

    NOTE: only the layers' own ``stride`` changes. Whether a block has a residual connection is
    decided by torchvision when it is built, so a block that lost its stride gains none.

    Args:
        network: Takes (B, 3, 32, 32).
        output_stride: Input resolution over the last feature map's.
        bn_momentum: New value of every BatchNorm.
        bn_eps: New value of every BatchNorm.
        zero_init: Let residual blocks begin as the identity.

    Returns:
        The same network.

    Raises:
        ValueError: If the output stride is not a power of two or more than the network's own.
    """
    steps = _downsampling_steps(network)
    reachable = [2**kept for kept in range(len(steps) + 1)]
    if output_stride not in reachable:
        raise ValueError(f"output_stride={output_stride}: must be {', '.join(map(str, reachable))}")
    for layers in steps[: len(steps) - reachable.index(output_stride)]:
        for layer in layers:
            layer.stride = (1, 1) if isinstance(layer, nn.Conv2d) else 1
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = bn_momentum, bn_eps
    if zero_init:
        _silence_residuals(network)
    return network


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


def _downsampling_steps(network: nn.Module) -> list[list[nn.Conv2d | nn.MaxPool2d]]:
    """Group the layers of stride 2 by the resolution they see, the highest first."""
    steps: dict[int, list[nn.Conv2d | nn.MaxPool2d]] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d | nn.MaxPool2d)
        steps.setdefault(inputs[0].shape[-1], []).append(layer)

    hooks = [
        layer.register_forward_pre_hook(record)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and layer.stride in (2, (2, 2))
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return [steps[resolution] for resolution in sorted(steps, reverse=True)]

"""Light networks from random weights, adapted to 32x32 inputs by their output stride.

torchvision's networks are made for 224x224: as they are, they shrink a 32x32 image to a 1x1
feature map (output stride 32). `adapt` takes away the earliest of their downsampling steps. A new
network is one function here and one file in ``conf/model``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

INPUT_SIZE = 32  # pixels, both ways

_SHUFFLENETS = {
    0.5: models.shufflenet_v2_x0_5,
    1.0: models.shufflenet_v2_x1_0,
    1.5: models.shufflenet_v2_x1_5,
    2.0: models.shufflenet_v2_x2_0,
}


def mobilenet_v3_small(
    num_classes: int,
    output_stride: int,
    width: float,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Build MobileNetV3-Small (Howard et al. 2019).

    Args:
        num_classes: Outputs of the classifier.
        output_stride: Input resolution over the last feature map's: a power of two up to 32.
        width: Multiplies the channels of every layer.
        dropout: Probability before the last linear layer.
        bn_momentum: Of every BatchNorm; torchvision's 0.01 is made for long ImageNet schedules.
        bn_eps: Of every BatchNorm.
        zero_init: Let residual blocks begin as the identity.

    Raises:
        ValueError: If the output stride is out of reach or the width is not positive.
    """
    network = _mobilenet(models.mobilenet_v3_small, num_classes, width, dropout)
    return adapt(network, output_stride, bn_momentum, bn_eps, zero_init)


def mobilenet_v3_large(
    num_classes: int,
    output_stride: int,
    width: float,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Build MobileNetV3-Large (Howard et al. 2019); arguments as for `mobilenet_v3_small`."""
    network = _mobilenet(models.mobilenet_v3_large, num_classes, width, dropout)
    return adapt(network, output_stride, bn_momentum, bn_eps, zero_init)


def mobilenet_v2(
    num_classes: int,
    output_stride: int,
    width: float,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Build MobileNetV2 (Sandler et al. 2018); arguments as for `mobilenet_v3_small`."""
    network = _mobilenet(models.mobilenet_v2, num_classes, width, dropout)
    return adapt(network, output_stride, bn_momentum, bn_eps, zero_init)


def shufflenet_v2(
    num_classes: int,
    output_stride: int,
    width: float,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
) -> nn.Module:
    """Build ShuffleNetV2 (Ma et al. 2018); arguments as for `mobilenet_v3_small`.

    Raises:
        ValueError: If the output stride is out of reach or the width not one of the paper's.
    """
    if width not in _SHUFFLENETS:
        raise ValueError(f"width={width}: allowed is {', '.join(map(str, _SHUFFLENETS))}")
    network = _SHUFFLENETS[width](weights=None, num_classes=num_classes)
    # NOTE: torchvision's has no dropout; it goes where the MobileNets have theirs.
    network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return adapt(network, output_stride, bn_momentum, bn_eps)


def resnet18(
    num_classes: int,
    output_stride: int,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Build ResNet-18 (He et al. 2015) for small images; arguments as for `mobilenet_v3_small`.

    Raises:
        ValueError: If the output stride is not 1, 2, 4 or 8.
    """
    network = models.resnet18(weights=None, num_classes=num_classes)
    # NOTE: the paper's CIFAR stem: 3x3 without stride and without max-pool, for 7x7 and max-pool.
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return adapt(network, output_stride, bn_momentum, bn_eps, zero_init)


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
        raise ValueError(
            f"output_stride={output_stride}: allowed is {', '.join(map(str, reachable))}"
        )
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


def _mobilenet(
    build: Callable[..., nn.Module], num_classes: int, width: float, dropout: float
) -> nn.Module:
    if not 0 < width <= 4:
        raise ValueError(f"width={width}: allowed is above 0, at most 4")
    return build(weights=None, num_classes=num_classes, width_mult=width, dropout=dropout)

"""MobileNetV2 and MobileNetV3, torchvision's, adapted to 32x32 images."""

from collections.abc import Callable

from torch import nn
from torchvision import models

from cifar_lightning.models.adapt import adapt


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


def _mobilenet(
    build: Callable[..., nn.Module], num_classes: int, width: float, dropout: float
) -> nn.Module:
    if not 0 < width <= 4:
        raise ValueError(f"width={width}: must be above 0, at most 4")
    return build(weights=None, num_classes=num_classes, width_mult=width, dropout=dropout)

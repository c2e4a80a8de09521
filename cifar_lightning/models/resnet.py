"""ResNet-18, torchvision's, with a stem for 32x32 images."""

from torch import nn
from torchvision import models

from cifar_lightning.models.adapt import adapt


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

"""Residual networks: torchvision's ResNet-18 with a stem for 32x32 images, and those for CIFAR."""

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

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


def resnet_cifar(
    num_classes: int,
    depth: int,
    width: float,
    output_stride: int,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
    zero_init: bool | None = None,
) -> nn.Module:
    """Build a residual network made for 32x32 images (He et al. 2015, section 4.2).

    A 3x3 stem, then three stages of 16, 32 and 64 channels, the last two of which halve the
    resolution. Depth 8 is the reference network of MLPerf Tiny's image classification (Banbury et
    al. 2021).

    NOTE: where shapes differ, the shortcut is MLPerf Tiny's, a 1x1 convolution with bias and no
    BatchNorm; the paper's pads with zeros. MLPerf Tiny's other convolutions have a bias too, which
    the BatchNorms behind them make useless.

    Args:
        num_classes: Outputs of the classifier.
        depth: Layers with weights on the longest way: 8, 14, 20, ... (6 n + 2).
        width: Multiplies the channels of every layer.
        output_stride: Input resolution over the last feature map's: 1, 2 or 4.
        dropout: Probability before the last linear layer.
        bn_momentum: Of every BatchNorm.
        bn_eps: Of every BatchNorm.
        zero_init: Let residual blocks begin as the identity.

    Raises:
        ValueError: If there is no such depth, width or output stride.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or not 1 <= blocks <= 200:
        raise ValueError(f"depth={depth}: must be 8, 14, 20 or another 6 n + 2, at most 1202")
    if not 0 < width <= 32 or round(width * 16) < 1:
        raise ValueError(f"width={width}: must leave at least one channel of 16, at most 32")
    channels = [round(width * stage) for stage in (16, 32, 64)]
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, channels[0], kernel_size=3, padding=1, bias=False))
    network.add_module("bn1", nn.BatchNorm2d(channels[0]))
    network.add_module("relu", nn.ReLU(inplace=True))
    before = channels[0]
    for stage, count in enumerate(channels):
        layers = nn.Sequential()
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            shortcut = None
            if stride != 1 or before != count:
                shortcut = nn.Conv2d(before, count, kernel_size=1, stride=stride)
            layers.append(BasicBlock(before, count, stride, shortcut))
            before = count
        network.add_module(f"layer{stage + 1}", layers)
    network.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("dropout", nn.Dropout(dropout))
    network.add_module("fc", nn.Linear(before, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return adapt(network, output_stride, bn_momentum, bn_eps, zero_init)

"""RepVGG: trained with parallel branches, executed as a chain of 3x3 convolutions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from cifar_lightning.models.adapt import adapt

MAX_CHANNELS, MAX_DEPTH, MAX_STAGES = 4096, 64, 5


class Branches(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution and, where shapes allow it, of the input itself.

    Each has a BatchNorm of its own.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
            )
            for kernel in (3, 1)
        )
        if inputs == outputs and stride == 1:
            self.branches.append(nn.Sequential(nn.BatchNorm2d(outputs)))

    def forward(self, features: Tensor) -> Tensor:
        total, *others = (branch(features) for branch in self.branches)
        for other in others:
            total = total + other
        result: Tensor = total
        return result

    def merged(self) -> nn.Conv2d:
        """Make the one 3x3 convolution that computes the same in evaluation."""
        dense = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        stride = dense.stride[0]
        merged = nn.Conv2d(dense.in_channels, dense.out_channels, 3, stride, padding=1)
        merged.to(dense.weight)
        assert merged.bias is not None
        with torch.no_grad():
            merged.weight.zero_()
            merged.bias.zero_()
            for branch in self.branches:
                layers: list[Any] = list(branch.children())
                if len(layers) == 1:
                    layers.insert(0, _identity(dense))
                folded = fuse_conv_bn_eval(*layers)
                missing = 1 - folded.weight.shape[-1] // 2  # around a 1x1 kernel
                merged.weight += functional.pad(folded.weight, [missing] * 4)
                merged.bias += folded.bias
        return merged


def merge_branches(network: nn.Module) -> nn.Module:
    """Replace every `Branches` of a network, in place, by its one convolution."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Branches):
            network.set_submodule(name, module.merged())
    return network


def _identity(like: nn.Conv2d) -> nn.Conv2d:
    conv = nn.Conv2d(like.out_channels, like.out_channels, 1, bias=False).eval()
    nn.init.dirac_(conv.weight)
    return conv.to(like.weight)


class RepVGG(nn.Sequential):
    """A chain of branched convolutions, and the classifier."""

    def reparameterized(self) -> nn.Module:
        """Merge each convolution's branches into one convolution."""
        return merge_branches(self)


def repvgg(
    num_classes: int,
    channels: list[int],
    depth: list[int],
    output_stride: int,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
) -> nn.Module:
    """Build RepVGG (Ding et al. 2021, arXiv:2101.03697) for 32x32 images.

    NOTE: the paper's stem, a stage of one convolution, is the first stage's first convolution here:
    with ImageNet's five halvings 32x32 pixels would be one.

    Args:
        num_classes: Outputs of the classifier.
        channels: Of each stage.
        depth: Convolutions of each stage; the first one halves the resolution.
        output_stride: Input resolution over the last feature map's: a power of two up to 2 to the
            number of stages.
        dropout: Probability before the last linear layer.
        bn_momentum: Of every BatchNorm.
        bn_eps: Of every BatchNorm.

    Raises:
        ValueError: If there is no such network.
    """
    for name, values, most in (("channels", channels, MAX_CHANNELS), ("depth", depth, MAX_DEPTH)):
        if not 1 <= len(values) <= MAX_STAGES or not all(1 <= one <= most for one in values):
            raise ValueError(f"{name}={values}: must be 1 to {most} for each of 1 to 5 stages")
    if len(depth) != len(channels):
        raise ValueError(f"depth={depth}: must be as long as channels={channels}")
    network = RepVGG()
    before = 3
    for stage, (count, convolutions) in enumerate(zip(channels, depth, strict=True)):
        layers = nn.Sequential()
        for position in range(convolutions):
            layers.append(Branches(before, count, stride=1 if position else 2))
            layers.append(nn.ReLU(inplace=True))
            before = count
        network.add_module(f"stage{stage + 1}", layers)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("dropout", nn.Dropout(dropout))
    network.add_module("fc", nn.Linear(before, num_classes))
    return adapt(network, output_stride, bn_momentum, bn_eps)

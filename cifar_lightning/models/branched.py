"""RepVGG: trained with parallel branches, executed as a chain of 3x3 convolutions."""

import copy

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
        first, *others = (branch(features) for branch in self.branches)
        for other in others:
            first = first + other
        return first

    def merged(self) -> nn.Conv2d:
        """Make the one 3x3 convolution that computes the same in evaluation."""
        dense = self.branches[0][0]
        merged = nn.Conv2d(dense.in_channels, dense.out_channels, 3, dense.stride, padding=1)
        assert merged.bias is not None
        weights, biases = [], []
        for *convs, norm in self.branches:
            conv = convs[0] if convs else nn.Conv2d(*merged.weight.shape[:2], 1, bias=False)
            if not convs:
                nn.init.dirac_(conv.weight)
            folded = fuse_conv_bn_eval(conv.eval(), norm.eval())
            missing = 1 - folded.weight.shape[-1] // 2  # around a 1x1 kernel
            weights.append(functional.pad(folded.weight, [missing] * 4))
            biases.append(folded.bias)
        with torch.no_grad():
            merged.weight.copy_(torch.stack(weights).sum(0))
            merged.bias.copy_(torch.stack(biases).sum(0))
        return merged


class RepVGG(nn.Sequential):
    """A chain of branched convolutions, and the classifier."""

    def reparameterized(self) -> nn.Module:
        """Merge each convolution's branches into one convolution."""
        executed = copy.deepcopy(self).eval()
        for name, module in list(executed.named_modules()):
            if isinstance(module, Branches):
                executed.set_submodule(name, module.merged())
        return executed


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

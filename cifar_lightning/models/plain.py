"""Plain networks for 32x32 images: 3x3 convolutions, no residual connections, few launches."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_lightning.models.branched import Branches, merge_branches
from cifar_lightning.models.layers import GlobalMaxPool, Residual, Resize, Scale

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}
WHITENING_EPS = 5e-4  # added to the variances; airbench's
MAX_CHANNELS, MAX_DEPTH = 4096, 64


class CifarNet(nn.Sequential):
    """A plain network whose classifier's logits are scaled.

    The scale keeps the first logits small; it is part of the linear layer once that is trained.
    """

    fc: nn.Linear
    scale: Scale

    def initialize_from(self, images: Tensor) -> None:
        """Whiten the frozen stem, if there is one: its filters are the main components of patches.

        From tysam-code/hlb-CIFAR10 by way of Jordan, "94% on CIFAR-10 in 3.29 Seconds" (2024).

        Args:
            images: Normalised training images (N, 3, 32, 32).
        """
        stem = getattr(self, "stem", None)
        if stem is None or stem.conv.weight.requires_grad:
            return
        filters: Tensor = stem.conv.weight
        half = len(filters) // 2
        size = filters[0].numel()
        shrink = getattr(self, "resize", nn.Identity())
        covariance = torch.zeros(size, size, dtype=torch.float64)
        patches = 0
        for chunk in images.cpu().split(500):
            columns = (
                functional.unfold(shrink(chunk), stem.conv.kernel_size).transpose(0, 1).flatten(1)
            )
            covariance += (columns @ columns.T).double()
            patches += columns.shape[1]
        variances, components = torch.linalg.eigh(covariance / patches)  # ascending
        whitening = components / (variances + WHITENING_EPS).sqrt()
        largest = whitening.T.flip(0)[:half].view(half, *filters.shape[1:])
        with torch.no_grad():
            filters.copy_(torch.cat([largest, -largest]))

    def reparameterized(self) -> nn.Module:
        """Multiply the last layer by the scale, and merge branches, where that is not done yet."""
        merge_branches(self)
        if hasattr(self, "scale"):
            with torch.no_grad():
                self.fc.weight.mul_(self.scale.factor)
            del self.scale
        return self


def cifarnet(
    num_classes: int,
    stem: int | None,
    stem_kernel: int,
    stem_stride: int,
    whiten: bool,
    channels: list[int],
    depth: int,
    downsample: Literal["pool", "stride"],
    activation: Literal["relu", "gelu", "silu", "hardswish"],
    pool: Literal["max", "avg"],
    scale: float,
    dirac: bool,
    bn_momentum: float,
    bn_eps: float,
    residual: bool | None = None,
    branches: bool | None = None,
    resolution: int | None = None,
) -> nn.Module:
    """Build a plain network of the kind of airbench's (Jordan 2024, arXiv:2404.00498).

    An optional stem, then stages of 3x3 convolutions, each with a BatchNorm and an activation; the
    first convolution of a stage changes the number of channels and halves the resolution.

    NOTE: the BatchNorms have a learned bias and no learned scale, as airbench's. A positive factor
    and a maximum may change places, so a BatchNorm behind a max-pool can be folded into the
    convolution before the max-pool.

    Args:
        num_classes: Outputs of the classifier.
        stem: Channels of a first convolution with bias and without BatchNorm; None: there is none.
        stem_kernel: Its size, both ways. An even one takes no padding: 2 makes 31x31 of 32x32.
        stem_stride: Its stride.
        whiten: Freeze its filters at the main components of training images' patches and their
            negatives; its bias is trained.
        channels: Of each stage.
        depth: Convolutions of each stage.
        downsample: ``pool``: a 2x2 max-pool between a stage's first convolution and its BatchNorm;
            ``stride``: stride 2 of that convolution, several times as fast.
        activation: After the stem and each BatchNorm.
        pool: Over the last feature map; of any size, so other resolutions work.
        scale: Of the logits.
        dirac: Let each convolution begin as the identity as far as it has channels for it; those
            with branches begin as ever.
        bn_momentum: Of every BatchNorm.
        bn_eps: Of every BatchNorm.
        residual: Add to what each convolution but a stage's first makes what it was given (He et
            al. 2015), before the activation.
        branches: Train each convolution with RepVGG's parallel branches (Ding et al. 2021); it is
            executed as one. Their BatchNorms have a scale, and lie before a max-pool.
        resolution: Images are shrunk to it first, by bilinear interpolation; None: they are not.

    Raises:
        ValueError: If there is no such network.
    """
    _check(stem, stem_kernel, stem_stride, whiten, channels, depth, downsample, scale, resolution)
    activate = _ACTIVATIONS[activation]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    if resolution is not None:
        parts["resize"] = Resize(resolution)
    if stem is not None:
        padding = (stem_kernel - 1) // 2
        conv = nn.Conv2d(before, stem, stem_kernel, stem_stride, padding)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        conv.weight.requires_grad_(not whiten)
        parts["stem"] = nn.Sequential(OrderedDict(conv=conv, activation=activate()))
        before = stem
    for number, count in enumerate(channels):
        layers: list[nn.Module] = []
        for position in range(depth):
            halve = position == 0
            stride = 2 if halve and downsample == "stride" else 1
            pools = [nn.MaxPool2d(2)] if halve and downsample == "pool" else []
            if branches:
                convolution: list[nn.Module] = [Branches(before, count, stride), *pools]
            else:
                conv = nn.Conv2d(before, count, 3, stride, padding=1, bias=False)
                if dirac:
                    nn.init.dirac_(conv.weight[:before])
                convolution = [conv, *pools, _biased_norm(count)]
            layers += convolution if halve or not residual else [Residual(*convolution)]
            layers.append(activate())
            before = count
        parts[f"stage{number + 1}"] = nn.Sequential(*layers)
    parts["pool"] = GlobalMaxPool() if pool == "max" else nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(before, num_classes, bias=False)
    parts["scale"] = Scale(scale)
    network = CifarNet(parts)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = bn_momentum, bn_eps
    return network


def _check(
    stem: int | None,
    stem_kernel: int,
    stem_stride: int,
    whiten: bool,
    channels: list[int],
    depth: int,
    downsample: str,
    scale: float,
    resolution: int | None,
) -> None:
    if resolution is not None and not 4 <= resolution < 32:
        raise ValueError(f"resolution={resolution}: must be 4 to 31, or null for the images' own")
    size = resolution or 32
    if stem is not None:
        for name, value, most in (
            ("stem", stem, MAX_CHANNELS),
            ("stem_kernel", stem_kernel, 7),
            ("stem_stride", stem_stride, 4),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name}={value}: must be 1 to {most}")
        most = 2 * 3 * stem_kernel**2
        if whiten and (stem % 2 or stem > most):
            raise ValueError(
                f"stem={stem}: must be even and at most {most}, a filter and its negative for each "
                f"value of a {stem_kernel}x{stem_kernel} patch; or whiten=false"
            )
        size = (size + 2 * ((stem_kernel - 1) // 2) - stem_kernel) // stem_stride + 1
    elif whiten:
        raise ValueError("whiten=True: must be false without a stem")
    if not channels or not all(1 <= count <= MAX_CHANNELS for count in channels):
        raise ValueError(f"channels={channels}: must be a list of 1 to {MAX_CHANNELS} a stage")
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth={depth}: must be 1 to {MAX_DEPTH}")
    # Max-pools round down, strided convolutions up.
    stages = size.bit_length() - 1 if downsample == "pool" else (size - 1).bit_length()
    if len(channels) > stages:
        raise ValueError(f"channels={channels}: must be at most {stages} stages, one a halving")
    if not scale > 0:
        raise ValueError(f"scale={scale}: must be above 0")


def _biased_norm(channels: int) -> nn.BatchNorm2d:
    """Make a BatchNorm whose scale is no parameter, but 1."""
    norm = nn.BatchNorm2d(channels)
    del norm.weight
    norm.register_buffer("weight", torch.ones(channels))
    return norm

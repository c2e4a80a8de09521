"""The least that a classifier can be."""

from torch import nn


def floor(num_classes: int) -> nn.Module:
    """Build global average pooling and a linear layer: what takes so long is the call itself."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

"""Layers of our own plain networks."""

from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Sequential):
    """The sum of what its layers make and what they are given."""

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return features + made


class Resize(nn.Module):
    """Shrink images (B, C, H, W) to a square by bilinear interpolation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(images, (self.size, self.size), mode="bilinear")


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features.amax((2, 3), keepdim=True)
        # NOTE: the gradient of `amax` goes to all that equal the maximum. A compiled step compares
        # rounded numbers with others that are not, finds none, and divides by their number.
        return functional.max_pool2d(features, features.shape[2:])


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits

"""Batched changes of colour and sharpness; as in `augmentation`, each image its own draw."""

import math

import torch
from torch import Tensor
from torchvision.transforms import v2

LUMA = (0.299, 0.587, 0.114)  # a grey's part of red, green and blue (ITU-R BT.601)


def _factors(strength: float, images: Tensor) -> Tensor:
    """Draw a factor for each image from 1 - ``strength`` to 1 + ``strength``; shape (B, 1, 1)."""
    return 1 + strength * (2 * torch.rand(len(images), 1, 1, device=images.device) - 1)


class RandomSharpness:
    """Blur or sharpen each image by a random strength.

    Args:
        strength: From ``1 - strength`` (at 1 the blurred image) to ``1 + strength``, where 1 is the
            image; torchvision's ``adjust_sharpness`` with a factor for each image.

    Raises:
        ValueError: If ``strength`` is negative.
    """

    def __init__(self, strength: float) -> None:
        if strength < 0:
            raise ValueError(f"strength={strength}: must be 0 or more")
        self.strength = strength

    def __call__(self, images: Tensor) -> Tensor:
        blurred = v2.functional.adjust_sharpness(images, 0.0).float()
        factors = _factors(self.strength, images).unsqueeze(3)
        return torch.lerp(blurred, images.float(), factors).round_().clamp_(0, 255).byte()


class ColorJitter:
    """Change brightness, contrast, saturation and hue of each image, in this order.

    All four are linear in a pixel's colour, so each image is multiplied by one 3x3 matrix.

    NOTE: unlike torchvision's, the order is fixed, values are cut off at the end only, and hue is
    an angle about the grey axis instead of one in HSV, which is not linear.

    Args:
        brightness: A factor from ``1 - brightness`` to ``1 + brightness``.
        contrast: The same, of the distance to the image's mean grey.
        saturation: The same, of the distance to the pixel's grey.
        hue: The largest part of a full turn, either way.

    Raises:
        ValueError: If a strength is negative or ``hue`` is above 0.5.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, strength in strengths.items():
            if strength < 0:
                raise ValueError(f"{name}={strength}: must be 0 or more")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue={hue}: must be 0 to 0.5")
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue = hue

    def __call__(self, images: Tensor) -> Tensor:
        device = images.device
        pixels = images.flatten(2).float()  # (B, 3, H * W)
        one = torch.eye(3, device=device)
        grey = torch.tensor(LUMA, device=device).expand(3, 3)  # each row: a pixel's grey
        brightness = _factors(self.brightness, images)
        contrast = _factors(self.contrast, images)
        saturation = _factors(self.saturation, images)
        # Rodrigues' rotation about the grey axis.
        angle = (_factors(self.hue, images) - 1) * 2 * math.pi
        third = torch.full((3, 3), 1 / 3, device=device)
        across = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / math.sqrt(3)
        turn = angle.cos() * one + (1 - angle.cos()) * third + angle.sin() * across
        colour = turn @ (saturation * one + (1 - saturation) * grey)  # leaves greys as they are
        mean = brightness * (grey[:1] @ pixels).mean(2, keepdim=True)  # (B, 1, 1)
        changed = torch.baddbmm((1 - contrast) * mean, brightness * contrast * colour, pixels)
        return changed.round_().clamp_(0, 255).byte().view_as(images)

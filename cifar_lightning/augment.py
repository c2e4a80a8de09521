"""Batched image augmentation on uint8 tensors, on whatever device the batch lies.

A transform takes and returns a batch of shape (B, C, H, W), dtype uint8. Each image gets its
own random draw, made by torch's generator of the batch's device, so the run's seed decides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class RandomCrop:
    """Pad each image with black, then cut a window of the original size at a random place.

    Args:
        padding: Pixels added on every side; 0 leaves the images as they are.

    Raises:
        ValueError: If ``padding`` is negative.
    """

    def __init__(self, padding: int) -> None:
        if padding < 0:
            raise ValueError(f"padding={padding}: allowed is 0 or more")
        self.padding = padding

    def __call__(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        offsets = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        padded = functional.pad(images, [self.padding] * 4)
        # (B, C, offsets_y, offsets_x, H, W): a view; indexing it copies one window an image.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


class RandomHorizontalFlip:
    """Mirror each image left to right with probability ``p``.

    Raises:
        ValueError: If ``p`` is not a probability.
    """

    def __init__(self, p: float) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p={p}: allowed is 0 to 1")
        self.p = p

    def __call__(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), device=images.device) < self.p
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

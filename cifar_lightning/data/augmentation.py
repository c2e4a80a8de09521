"""Batched image augmentation on uint8 tensors, on whatever device the batch lies.

A transform takes and returns a batch of shape (B, C, H, W), dtype uint8. Each image gets its
own random draw, made by torch's generator of the batch's device, so the run's seed decides.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2


class Kind(Enum):
    """Where on a batch's way a transform works."""

    PER_IMAGE = "each image, in the loader"
    BATCHED = "the batch, on its device"
    PROGRESSIVE = "the batch, by how much of the training is done"
    MIXING = "normalised images together with their labels"


def kind(transform: Callable[..., Any]) -> Kind:
    """Tell where a transform works; torchvision's draw once a call, so they get single images."""
    if isinstance(transform, v2.MixUp | v2.CutMix):
        return Kind.MIXING
    if isinstance(transform, ProgressiveResize):
        return Kind.PROGRESSIVE
    return Kind.PER_IMAGE if isinstance(transform, v2.Transform) else Kind.BATCHED


class RandomCrop:
    """Pad each image with black, then cut a window of the original size at a random place.

    Args:
        padding: Pixels added on every side; 0 leaves the images as they are.

    Raises:
        ValueError: If ``padding`` is negative.
    """

    def __init__(self, padding: int) -> None:
        if padding < 0:
            raise ValueError(f"padding={padding}: must be 0 or more")
        self.padding = padding

    def __call__(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        offsets = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        padded = functional.pad(images, [self.padding] * 4)
        # Every run of `width` pixels, as a view; choosing the windows' rows among them copies a row
        # at a time, several times as fast as indexing, which copies pixels.
        rows = padded.flatten().unfold(0, width, 1)
        image, channel, line, _ = padded.stride()
        first = (
            (torch.arange(count, device=images.device) * image + offsets[0] * line + offsets[1])
            .view(-1, 1, 1)
            .add(torch.arange(channels, device=images.device).view(-1, 1) * channel)
            .add(torch.arange(height, device=images.device) * line)
        )
        return rows.index_select(0, first.flatten()).view_as(images)


class RandomHorizontalFlip:
    """Mirror each image left to right with probability ``p``.

    Raises:
        ValueError: If ``p`` is not a probability.
    """

    def __init__(self, p: float) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p={p}: must be 0 to 1")
        self.p = p

    def __call__(self, images: Tensor) -> Tensor:
        count = len(images)
        mirrored = torch.rand(count, device=images.device) < self.p
        # Choosing whole images is several times as fast as choosing pixels with `torch.where`.
        both = torch.cat([images, images.flip(3)])
        return both.index_select(0, torch.arange(count, device=images.device) + count * mirrored)


class Cutout:
    """Paint a square at a random place of each image; its centre lies anywhere in the image.

    From DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout"
    (2017), where squares may reach over the border, too.

    Args:
        size: Of the square, in pixels.
        fill: Its colour, per channel in [0, 1].

    Raises:
        ValueError: If ``size`` is below 1 or ``fill`` does not give three shares.
    """

    def __init__(self, size: int, fill: list[float]) -> None:
        if size < 1:
            raise ValueError(f"size={size}: must be 1 or more")
        if len(fill) != 3 or not all(0.0 <= share <= 1.0 for share in fill):
            raise ValueError(f"fill={fill}: must be 3 numbers from 0 to 1")
        self.size = size
        self.fill = torch.tensor([round(255 * share) for share in fill], dtype=torch.uint8)

    def __call__(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        rows = self._painted(count, height, images.device)
        columns = self._painted(count, width, images.device)
        square = rows[:, None, :, None] & columns[:, None, None, :]
        if self.fill.device != images.device:  # once: copying makes a GPU wait
            self.fill = self.fill.to(images.device)
        return torch.where(square, self.fill[:, None, None], images)

    def _painted(self, count: int, length: int, device: torch.device) -> Tensor:
        """Choose ``size`` positions in a row for each image; shape (count, length)."""
        first = torch.randint(length, (count, 1), device=device) - self.size // 2
        position = torch.arange(length, device=device)
        return (position >= first) & (position < first + self.size)


class ProgressiveResize:
    """Shrink images at the beginning of a training and let them grow to their own size.

    A convolutional network trains on smaller images in less time, and what it learns there holds
    for the larger ones. From Howard, "Training Imagenet in 3 hours for 25 minutes" (2018), and
    Tan and Le, "EfficientNetV2: Smaller Models and Faster Training" (2021).

    Args:
        start: The first size in pixels.
        until: The share of the training after which images have their own size; all smaller sizes
            get equal shares of it.

    Raises:
        ValueError: If ``start`` is below 1 or ``until`` is no share.
    """

    STEP = 4  # pixels from one size to the next

    def __init__(self, start: int, until: float) -> None:
        if start < 1:
            raise ValueError(f"start={start}: must be 1 or more")
        if not 0.0 < until <= 1.0:
            raise ValueError(f"until={until}: must be above 0, at most 1")
        self.start, self.until = start, until

    def size(self, full: int, progress: float) -> int:
        """Tell the size of images that end with size ``full``, by the share of training done."""
        smaller = range(self.start, full, self.STEP)
        # 12 of 20 epochs until 0.8 are three quarters, which floating point puts just below.
        index = int(progress / self.until * len(smaller) + 1e-9)
        return smaller[index] if index < len(smaller) else full

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        size = self.size(images.shape[-1], progress)
        return images if size == images.shape[-1] else v2.functional.resize(images, [size, size])

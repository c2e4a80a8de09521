"""Batched image augmentation on uint8 tensors, on whatever device the batch lies.

A transform takes and returns a batch of shape (B, C, H, W), dtype uint8. Each image gets its
own random draw, made by torch's generator of the batch's device, so the run's seed decides.
"""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from cifar_lightning.data.images import epoch_seed


class Kind(Enum):
    """Where on a batch's way a transform works."""

    INDEXED = "the batch with its images' indices, the epoch and the seed, in the loader"
    PER_IMAGE = "each image, in the loader"
    BATCHED = "the batch, on its device"
    PROGRESSIVE = "the batch, by how much of the training is done"
    MIXING = "normalised images together with their labels"
    MIXING_PROGRESSIVE = "the same, by how much of the training is done"


def kind(transform: Callable[..., Any]) -> Kind:
    """Tell where a transform works; torchvision's draw once a call, so they get single images."""
    if isinstance(transform, v2.MixUp | v2.CutMix):
        return Kind.MIXING
    other = Kind.PER_IMAGE if isinstance(transform, v2.Transform) else Kind.BATCHED
    found: Kind = getattr(transform, "kind", other)
    return found


class RandomCrop:
    """Pad each image, then cut a window of the original size at a random place.

    Args:
        padding: Pixels added on every side; 0 leaves the images as they are.
        mode: What they show: None is black, ``reflect`` the image mirrored at its border,
            ``replicate`` the border's pixels.

    Raises:
        ValueError: If ``padding`` is negative or ``mode`` is another one.
    """

    def __init__(self, padding: int, mode: Literal["reflect", "replicate"] | None = None) -> None:
        if padding < 0:
            raise ValueError(f"padding={padding}: must be 0 or more")
        if mode not in (None, "reflect", "replicate"):
            raise ValueError(f"mode={mode}: must be null, reflect or replicate")
        self.padding, self.mode = padding, mode

    def __call__(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        offsets = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        padded = self._padded(images).contiguous()
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

    def _padded(self, images: Tensor) -> Tensor:
        if self.mode is None:
            return functional.pad(images, [self.padding] * 4)
        # torch pads so in floating point only; choosing rows and columns copies integers.
        for dimension in (2, 3):
            length = images.shape[dimension]
            place = torch.arange(-self.padding, length + self.padding, device=images.device)
            if self.mode == "reflect":
                period = max(1, 2 * (length - 1))
                place = (length - 1) - ((place % period) - (length - 1)).abs()
            images = images.index_select(dimension, place.clamp(0, length - 1))
        return images


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
        return _mirror(images, torch.rand(len(images), device=images.device) < self.p)


def _mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the images that a boolean tensor of shape (B,) chooses."""
    # Choosing whole images is several times as fast as choosing pixels with `torch.where`.
    both = torch.cat([images, images.flip(3)])
    return both.index_select(
        0, torch.arange(len(images), device=images.device) + len(images) * chosen
    )


class AlternatingFlip:
    """Mirror a random half of all images left to right, and the others in the next epoch.

    So two epochs show each image both ways, where independent draws show half of the images the
    same way twice. From Jordan, "94% on CIFAR-10 in 3.29 Seconds" (2024), section 3.6.
    Which images are mirrored is a function of the run's seed, their indices and the epoch alone.
    """

    kind: ClassVar[Kind] = Kind.INDEXED

    def __call__(self, images: Tensor, indices: Tensor, epoch: int, seed: int) -> Tensor:
        # The bits of Steele, Lea and Flood's SplitMix64 (2014), which integers of 64 bits give as
        # they overflow: a generator's draws would depend on the batches.
        mixed = (indices + 1) * -0x61C8864680B583EB + epoch_seed(seed, 0)
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            mixed = (mixed ^ _shifted(mixed, shift)) * factor
        odd = (mixed ^ _shifted(mixed, 31)) + epoch
        return _mirror(images, (odd & 1).bool())


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift 64-bit integers to the right and fill with zeros; torch repeats the sign's bit."""
    shifted: Tensor = (numbers >> bits) & (2 ** (64 - bits) - 1)
    return shifted


class RandomRotation:
    """Turn each image about its centre by a random angle; border pixels fill the corners.

    Args:
        degrees: The largest angle, either way.

    Raises:
        ValueError: If ``degrees`` is not from 0 to 180.
    """

    def __init__(self, degrees: float) -> None:
        if not 0.0 <= degrees <= 180.0:
            raise ValueError(f"degrees={degrees}: must be 0 to 180")
        self.degrees = degrees

    def __call__(self, images: Tensor) -> Tensor:
        angles = torch.rand(len(images), device=images.device).mul_(2).sub_(1)
        angles *= math.radians(self.degrees)
        zero = torch.zeros_like(angles)
        first = torch.stack([angles.cos(), -angles.sin(), zero], 1)
        second = torch.stack([angles.sin(), angles.cos(), zero], 1)
        grid = functional.affine_grid(
            torch.stack([first, second], 1), list(images.shape), align_corners=False
        )
        turned: Tensor = functional.grid_sample(
            images.float(), grid, padding_mode="border", align_corners=False
        )
        return turned.round_().byte()


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

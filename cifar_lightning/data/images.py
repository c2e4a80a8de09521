"""Images in memory: what every source gives, and how it is split."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

IMAGE_SIZE = 32  # pixels, both ways


@dataclass(frozen=True)
class Split:
    """Images of shape (N, 3, 32, 32), uint8, and their classes of shape (N,), int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set with its official train/test split."""

    train: Split
    test: Split
    classes: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any pixel, label or class name does."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that each class gives the same share, at random but always the same way.

    Args:
        labels: Shape (N,).
        fraction: The second part's share of each class, rounded to whole images.
        seed: Of this split alone; torch's global generator is not touched.

    Returns:
        Sorted indices of the first and of the second part; disjoint, together all N.
    """
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        second[members[order[: round(fraction * len(members))]]] = True
    return torch.nonzero(~second).flatten(), torch.nonzero(second).flatten()

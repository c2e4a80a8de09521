"""Images in memory: what every source gives, how it is split, and the batches cut out of it.

Batches are a function of (seed, epoch, rank) alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

IMAGE_SIZE = 32  # pixels, both ways
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Split:
    """Images of shape (N, 3, 32, 32), uint8, and their classes of shape (N,), int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set with its official train/test split.

    Attributes:
        train: With the images of the source's own validation split, where it has one.
        test: The test split.
        classes: Their names, in the order of the labels.
        val: Indices in ``train`` of the source's own validation split.
        files: Sixteen hex digits that change when any file does, where files were decoded: other
            versions of a JPEG decoder give other pixels, but these are the same data.
        decoder: What decoded them.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    val: Tensor | None = None
    files: str | None = None
    decoder: str | None = None

    @cached_property
    def pixels(self) -> str:
        """Sixteen hex digits that change when any pixel, label, split or class name does."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        tensors = self.train.images, self.train.labels, self.test.images, self.test.labels
        for tensor in tensors if self.val is None else (*tensors, self.val):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """What these data are known by: their files, else their pixels."""
        return self.files or self.pixels


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


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Derive the seed of one epoch in one process, so that nothing depends on what ran before."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


@dataclass(frozen=True)
class BatchIndices:
    """Which images make a batch, the seed of what is drawn for it, and the epoch."""

    indices: Tensor
    seed: int
    epoch: int = 0


@dataclass(eq=False)
class ImageBatches(Dataset[Batch]):
    """Cuts batches out of images in memory.

    Args:
        images: Shape (N, 3, 32, 32), uint8.
        labels: Shape (N,), on the same device, where the indices are expected, too.
        transforms: Of single images, applied in order.
        indexed: Of the batch before them, called with the images' indices and the epoch.
    """

    images: Tensor
    labels: Tensor
    transforms: Sequence[Callable[[Tensor], Tensor]]
    indexed: Sequence[Callable[[Tensor, Tensor, int], Tensor]] = ()

    def __getitem__(self, batch: BatchIndices) -> Batch:
        # `index_select` copies whole images, ten times as fast as indexing, which copies pixels.
        images = self.images.index_select(0, batch.indices)
        labels = self.labels.index_select(0, batch.indices)
        for by_index in self.indexed:
            images = by_index(images, batch.indices, batch.epoch)
        if self.transforms:
            transform = v2.Compose(self.transforms)
            # The batch's own seed: the same draws with any number of worker processes.
            with torch.random.fork_rng(devices=[]):
                # Not `torch.manual_seed`, which sets a GPU's generator, too.
                torch.default_generator.manual_seed(batch.seed)
                images = torch.stack([transform(image) for image in images])
        return images, labels


@dataclass(eq=False)
class IndexBatches(Sampler[BatchIndices]):
    """Yields the indices of one batch at a time, as a function of (seed, epoch, rank) alone.

    Args:
        indices: Shape (N,): the images this split consists of.
        batch_size: Per process.
        shuffle: True: an order of its own every epoch, the last incomplete batch dropped (it
            would give BatchNorm too few images), every process the same number of batches.
            False: each image exactly once over all processes, the last batch included.
        seed: Of the order.
        epoch: The first epoch; Lightning sets the following ones with `set_epoch`.
        rank: This process.
        world_size: Number of processes.
    """

    indices: Tensor
    batch_size: int
    shuffle: bool
    seed: int = 0
    epoch: int = 0
    rank: int = 0
    world_size: int = 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return len(self.indices) // (self.batch_size * self.world_size)
        return -(-len(self.indices[self.rank :: self.world_size]) // self.batch_size)

    def __iter__(self) -> Iterator[BatchIndices]:
        order = self.indices
        if self.shuffle:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            order = order[torch.randperm(len(order), generator=generator)]
            order = order[: len(self) * self.batch_size * self.world_size]
        seed = epoch_seed(self.seed, self.epoch, self.rank)
        batches = order[self.rank :: self.world_size].split(self.batch_size)
        for number, indices in enumerate(batches):
            yield BatchIndices(indices, seed + number, self.epoch)


class Normalize:
    """uint8 pixels to float32 with the data set's mean 0 and standard deviation 1.

    Args:
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.

    Raises:
        ValueError: If there are not three of each or a deviation is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"mean={list(mean)}, std={list(std)}: must be 3 numbers each, std above 0"
            )
        self._shift = torch.tensor(mean).view(3, 1, 1) * 255
        self._scale = 1 / (torch.tensor(std).view(3, 1, 1) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        if self._shift.device != images.device:
            self._shift, self._scale = self._shift.to(images.device), self._scale.to(images.device)
        return images.float().sub_(self._shift).mul_(self._scale)

    def inverse(self, images: Tensor) -> Tensor:
        """Bring normalised images back to uint8."""
        scale, shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images.float() / scale + shift).round().clamp(0, 255).byte()

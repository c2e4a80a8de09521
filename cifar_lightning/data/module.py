"""The DataModule that all sources share: validation split, loaders, augmentation on the device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_lightning.data.augmentation import Kind, kind
from cifar_lightning.data.images import (
    Batch,
    ImageBatches,
    ImageData,
    IndexBatches,
    Normalize,
    Split,
    stratified_split,
)
from cifar_lightning.errors import bad_value

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Length:
    """How long a training run is, in optimizer steps."""

    steps_per_epoch: int
    steps: int


# NOTE: arguments are checked against these types, subclasses' too: no annotations as strings here.
@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(LightningDataModule, ABC):
    """Batches for training, validation and testing from any source of images.

    Args:
        name: What the results table calls the data set.
        num_classes: Has to agree with what is read.
        val_fraction: Fraction of the training images held out to choose the checkpoint; 0 trains on
            all of them, and the last checkpoint is the chosen one. A source's own validation split
            is used instead.
        split_seed: Of the held-out split; not the training's, so all seeds share the split.
        batch_size: Of training, per process.
        eval_batch_size: Of validation and testing, per process.
        num_workers: Processes that cut batches; 0 is usually fastest.
        device: Where the images lie: ``cpu``, or ``gpu`` for the device of the training.
        seed: Of the training order.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        augment: Transforms while training, in the order of their `Kind`; each kind in the order
            given.
    """

    name: str = field()  # Lightning's class has one: it would be taken for a default
    num_classes: int
    val_fraction: float
    split_seed: int
    batch_size: int
    eval_batch_size: int
    num_workers: int
    seed: int
    mean: list[float]
    std: list[float]
    device: str = "cpu"
    augment: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(self.mean, self.std)
        self._places: dict[tuple[str, torch.device], Batch] = {}

    def setup(self, stage: str) -> None:
        """Read the data set, in each process."""
        _ = self.images

    def known_by_images(self) -> None:
        """Read what is there, whatever the checksum of its files: the caller compares images."""

    @abstractmethod
    def read(self) -> ImageData:
        """Read the whole data set into memory."""

    @cached_property
    def images(self) -> ImageData:
        """The data set, read when it is first asked for, after `prepare_data`.

        Raises:
            UserError: If it can't be read or does not fit the configuration.
        """
        images = self.read()
        if len(images.classes) != self.num_classes:
            raise bad_value(
                "data.num_classes", self.num_classes, f"{len(images.classes)}, the classes found"
            )
        return images

    @cached_property
    def indices(self) -> dict[SplitName, Tensor]:
        """Where each split's images are: train and val in ``images.train``, test in its own.

        Raises:
            UserError: If a split is too small to work with.
        """
        train, val = self._held_out()
        if (self.val_fraction > 0 and len(val) == 0) or len(train) == 0:
            raise bad_value("data.val_fraction", self.val_fraction, "what leaves images in both")
        return {"train": train, "val": val, "test": torch.arange(len(self.images.test.labels))}

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """Part the images to train on from those that choose the checkpoint."""
        labels, own = self.images.train.labels, self.images.val
        if own is None:
            return stratified_split(labels, self.val_fraction, self.split_seed)
        if self.val_fraction == 0:
            raise bad_value("data.val_fraction", 0, "above 0 for data with a validation split")
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[own] = False
        return torch.nonzero(kept).flatten(), own

    def check_batches(self, trainer: Trainer) -> None:
        """See that an epoch has at least one step, and its validation at least one batch.

        Raises:
            UserError: If a split is too small for that.
        """
        images, processes = len(self.indices["train"]), trainer.world_size
        if self.batch_size * processes > images:
            split = f" (the training split has {images} images)"
            most = f"{images // processes} for {processes} processes" if processes > 1 else images
            raise bad_value("batch_size", self.batch_size, f"2 to {most}{split}")
        train = images // (self.batch_size * processes)
        # Of the process with the fewest images.
        val = math.ceil(len(self.indices["val"]) // processes / self.eval_batch_size)
        for batches, key, limit in (
            (train, "trainer.limit_train_batches", trainer.limit_train_batches),
            (val, "trainer.limit_val_batches", trainer.limit_val_batches),
        ):
            if 0 < limit < 1 and int(limit * batches) == 0 < batches:  # Lightning rounds down
                least = math.ceil(1000 / batches) / 1000
                allowed = f"an integer, or a fraction of at least {least:g} (batches: {batches})"
                raise bad_value(key, limit, allowed)

    @cached_property
    def length(self) -> Length:
        """The training run's length: all its epochs, or ``max_steps`` if that is less.

        NOTE: Lightning's ``estimated_stepping_batches`` would make the training iterator, before a
        checkpoint is restored; with workers, a continued run would then begin with the first
        epoch's images.
        """
        trainer = self.trainer
        assert trainer is not None
        batches, limit = len(self.loader("train")), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        steps = per_epoch * int(trainer.max_epochs or 0)
        return Length(per_epoch, min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps)

    def transforms(self, where: Kind) -> list[Callable[..., Any]]:
        """List the transforms that work at one point of a batch's way, in order."""
        return [transform for transform in self.augment.values() if kind(transform) is where]

    def loader(self, split: SplitName) -> DataLoader[Batch]:
        """Make the loader of one split; its batches are uint8."""
        training = split == "train"
        trainer: Any = self.trainer
        cpu = torch.device("cpu")
        target = trainer.strategy.root_device if trainer is not None else cpu
        place = target if self.device == "gpu" else cpu
        images, labels = self._placed("test" if split == "test" else "train", place)
        sampler = IndexBatches(
            self.indices[split].to(place),
            self.batch_size if training else self.eval_batch_size,
            shuffle=training,
            seed=self.seed,
            # With workers the first batches are drawn before Lightning calls `set_epoch`; this
            # count is right also while a continued run is being set up.
            epoch=trainer.fit_loop.epoch_progress.current.processed if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        indexed = self.transforms(Kind.INDEXED) if training else []
        return DataLoader(
            ImageBatches(
                images,
                labels,
                self.transforms(Kind.PER_IMAGE) if training else [],
                [partial(one, seed=self.seed) for one in indexed],
            ),
            batch_size=None,  # an element is a batch already
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Where a GPU trains: pinning opens a context on it, which a CPU has no use for.
            pin_memory=target.type == "cuda" and place.type == "cpu",
            # Its own, so that making an iterator draws nothing from the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _placed(self, name: Literal["train", "test"], place: torch.device) -> Batch:
        """Give all images and labels of an official split, copied to their place only once."""
        if (name, place) not in self._places:
            split: Split = getattr(self.images, name)
            self._places[name, place] = split.images.to(place), split.labels.to(place)
        return self._places[name, place]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalise a batch that already lies on its device."""
        if self.trainer is not None and self.trainer.training:
            done = self.trainer.current_epoch * self.length.steps_per_epoch
            return self.augmented(batch, done / self.length.steps)
        images, labels = batch
        return self.normalize(images), labels

    def augmented(self, batch: Batch, progress: float = 1.0) -> Batch:
        """Augment and normalise a batch as the training sees it when so much of it is done."""
        images, labels = batch
        for transform in self.transforms(Kind.BATCHED):
            images = transform(images)
        for resize in self.transforms(Kind.PROGRESSIVE):
            images = resize(images, progress)
        images = self.normalize(images)
        for mix in self.transforms(Kind.MIXING):
            images, labels = mix(images, labels)
        for grow in self.transforms(Kind.MIXING_PROGRESSIVE):
            images, labels = grow(images, labels, progress)
        return images, labels

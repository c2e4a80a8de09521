"""Accuracy of a forward function on the whole test split."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import NotFinite
from cifar_lightning.system import signals

CALIBRATION_IMAGES = 512


def calibration(data: ImageDataModule) -> Tensor:
    """Take normalised training images, (N, 3, 32, 32); the test split stays unseen."""
    train = data.indices["train"]
    chosen = train[evenly(len(train), CALIBRATION_IMAGES)]
    return data.normalize(data.images.train.images[chosen])


def evenly(count: int, at_most: int) -> Tensor:
    """Choose indices evenly over a split: image folders are read class by class."""
    return torch.linspace(0, count - 1, min(at_most, count)).long()


def evaluate(
    forward: Callable[[Tensor], Tensor], data: ImageDataModule, device: torch.device
) -> Tensor:
    """Classify the whole test split in this process.

    Returns:
        Counts of images: a row for each true class, a column for each predicted one.

    Raises:
        NotFinite: If an image's logits are NaN or infinite.
    """
    test = data.images.test
    predicted = []
    for images in test.images.split(data.eval_batch_size):
        signals.check()
        logits = check_finite(forward(data.normalize(images.to(device))))
        predicted.append(logits.argmax(1).cpu())
    return multiclass_confusion_matrix(torch.cat(predicted), test.labels, logits.shape[1])


def check_finite(logits: Tensor) -> Tensor:
    """Return logits that mean something.

    Raises:
        NotFinite: If one is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise NotFinite("the logits are NaN or infinite")
    return logits


def accuracy(confusion: Tensor) -> float:
    """Take the accuracy in percent from what `evaluate` gives."""
    return 100 * int(confusion.trace()) / int(confusion.sum())

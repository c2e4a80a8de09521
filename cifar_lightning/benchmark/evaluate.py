"""Accuracy of a forward function on the whole test split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import NotFinite
from cifar_lightning.runs.predictions import Predictions
from cifar_lightning.system import signals

CALIBRATION_IMAGES = 512


def calibration(data: ImageDataModule, at_most: int = CALIBRATION_IMAGES) -> Tensor:
    """Take normalised training images, (N, 3, 32, 32); the other splits stay unseen."""
    train = data.indices["train"]
    chosen = train[evenly(len(train), at_most)]
    return data.normalize(data.images.train.images[chosen])


def evenly(count: int, at_most: int) -> Tensor:
    """Choose indices evenly over a split: image folders are read class by class."""
    return torch.linspace(0, count - 1, min(at_most, count)).long()


def evaluate(
    forward: Callable[[Tensor], Tensor], data: ImageDataModule, device: torch.device
) -> Predictions:
    """Classify the whole test split in this process.

    Raises:
        NotFinite: If an image's logits are NaN or infinite.
    """
    test = data.images.test
    predicted = []
    for images in test.images.split(data.eval_batch_size):
        signals.check()
        logits = check_finite(forward(data.normalize(images.to(device))))
        predicted.append(logits.argmax(1).cpu())
    smallest = np.min_scalar_type(data.num_classes)
    answers, right = (one.numpy().astype(smallest) for one in (torch.cat(predicted), test.labels))
    return Predictions(answers, right)


def check_finite(logits: Tensor) -> Tensor:
    """Return logits that mean something.

    Raises:
        NotFinite: If one is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise NotFinite("the logits are NaN or infinite")
    return logits

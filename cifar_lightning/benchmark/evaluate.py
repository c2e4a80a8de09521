"""Accuracy of a forward function on the whole test split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.system import signals

CALIBRATION_IMAGES = 512


def example_image(device: torch.device) -> Tensor:
    """Make the one input that every latency is measured on."""
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)


def calibration(data: ImageDataModule) -> Tensor:
    """Take normalised training images, (N, 3, 32, 32); the test split stays unseen."""
    train = data.indices["train"]
    # Evenly over the split: image folders are read class by class.
    chosen = train[torch.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train))).long()]
    return data.normalize(data.images.train.images[chosen])


def evaluate(
    forward: Callable[[Tensor], Tensor], data: ImageDataModule, device: torch.device
) -> Tensor:
    """Classify the whole test split in this process.

    Returns:
        Counts of images: a row for each true class, a column for each predicted one.
    """
    test = data.images.test
    predicted = []
    for images in test.images.split(data.eval_batch_size):
        signals.check()
        logits = forward(data.normalize(images.to(device)))
        predicted.append(logits.argmax(1).cpu())
    return multiclass_confusion_matrix(torch.cat(predicted), test.labels, logits.shape[1])


def accuracy(confusion: Tensor) -> float:
    """Take the share of right answers, in percent, from what `evaluate` gives."""
    return 100 * int(confusion.trace()) / int(confusion.sum())

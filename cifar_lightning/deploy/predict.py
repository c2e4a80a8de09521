"""Classifying image files, of which some may be unreadable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_lightning.data.image_files import read_image
from cifar_lightning.deploy.load import Classifier

BATCH_SIZE = 256


@dataclass(frozen=True)
class Prediction:
    """An image with its likeliest classes and their probabilities, the first one first."""

    image: str
    classes: list[str]
    probabilities: list[float]


def predict(
    classifier: Classifier, paths: Sequence[Path], top: int
) -> Iterator[Prediction | ValueError]:
    """Classify image files batch by batch; what can't be read gives an error instead."""
    for start in range(0, len(paths), BATCH_SIZE):
        images = {}
        for path in paths[start : start + BATCH_SIZE]:
            try:
                images[path] = read_image(path)
            except ValueError as error:
                yield error
        if images:
            best = classifier(torch.stack(list(images.values()))).topk(top)
            for path, probabilities, indices in zip(
                images, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                classes = [classifier.classes[index] for index in indices]
                yield Prediction(str(path), classes, probabilities)

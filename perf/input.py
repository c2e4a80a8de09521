"""Images a second of the training loader against torchvision's usual pipeline, image by image.

    python -m perf.input

Both crop, flip and normalise 32x32 images that lie in memory; nothing is trained.
"""

from __future__ import annotations

import time
from typing import Any

from cifar_lightning.data.augmentation import RandomCrop, RandomHorizontalFlip
from cifar_lightning.data.images import ImageData, Split
from cifar_lightning.data.module import ImageDataModule
from perf.baseline import MEAN, STD, baseline_loader, random_images
from perf.interleaved import conditions, interleave, table

IMAGES, BATCH, ROUNDS = 50_000, 256, 7
BASELINE_IMAGES = 10_000  # the baseline pipeline is slow; its speed does not depend on their number


class Images(ImageDataModule):
    """Random pixels: what they show does not matter to their speed."""

    def __init__(self, count: int = IMAGES, **shared: Any) -> None:
        super().__init__(**shared)
        self.count = count

    def read(self) -> ImageData:
        pixels, labels = random_images(self.count)
        return ImageData(
            Split(pixels, labels), Split(pixels[:10], labels[:10]), tuple("abcdefghij")
        )


def rate(batches: Any) -> float:
    """Go through all batches; return images per second."""
    begin, count = time.perf_counter(), 0
    for images, _ in batches:
        count += len(images)
    return count / (time.perf_counter() - begin)


def main() -> None:
    """Print the table."""
    data = Images(
        name="random",
        num_classes=10,
        val_fraction=0.0,
        split_seed=0,
        batch_size=BATCH,
        eval_batch_size=500,
        num_workers=0,
        seed=0,
        mean=MEAN,
        std=STD,
        augment={"crop": RandomCrop(4), "flip": RandomHorizontalFlip(0.5)},
    )
    images, labels = random_images(BASELINE_IMAGES)

    def ours() -> float:
        return rate(data.augmented(batch) for batch in data.loader("train"))

    def gathered() -> float:
        return rate((data.normalize(images), labels) for images, labels in data.loader("train"))

    def per_image(workers: int) -> float:
        return rate(baseline_loader(images, labels, BATCH, workers))

    sides = {
        "per image, 0 workers": lambda: per_image(0),
        "per image, 2 workers": lambda: per_image(2),
        "ours, 0 workers": ours,
        "ours without augmentation": gathered,
    }
    figures = interleave(sides, ROUNDS)
    print("## Input\n")
    print(table(figures, "images/s", 0, "per image, 0 workers"))
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main()

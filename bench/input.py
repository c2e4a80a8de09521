"""Images a second of the training loader against torchvision's usual pipeline, image by image.

    python -m bench.input

Both crop, flip and normalise 32x32 images that lie in memory; nothing is trained.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.turns import conditions, table, take_turns
from cifar_lightning.augment import RandomCrop, RandomHorizontalFlip
from cifar_lightning.data import ImageDataModule
from cifar_lightning.sources import ImageData, Split

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
IMAGES, BATCH, ROUNDS = 50_000, 256, 7
USUAL_IMAGES = 10_000  # the usual pipeline is slow; its speed does not depend on their number


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Draw pixels of shape (count, 3, 32, 32), uint8, with labels."""
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % 10


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


class UsualImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's data sets give them: PIL images made of arrays.

    Args:
        images: Shape (N, 3, 32, 32), uint8.
        labels: Shape (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


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
    usual = UsualImages(*random_images(USUAL_IMAGES))

    def ours() -> float:
        return rate(data.augmented(batch) for batch in data.loader("train"))

    def gathered() -> float:
        return rate((data.normalize(images), labels) for images, labels in data.loader("train"))

    def per_image(workers: int) -> float:
        loader = DataLoader(
            usual, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers
        )
        return rate(loader)

    sides = {
        "per image, 0 workers": lambda: per_image(0),
        "per image, 2 workers": lambda: per_image(2),
        "ours, 0 workers": ours,
        "ours without augmentation": gathered,
    }
    figures = take_turns(sides, ROUNDS)
    print("## Input\n")
    print(table(figures, "images/s", 0, "per image, 0 workers"))
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main()

"""Images a second of the training loader against torchvision's usual pipeline, image by image.

    python -m perf.input

Both crop, flip and normalise 32x32 images that lie in memory; nothing is trained. A second table
has the loader with each batched augmentation alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.data.augmentation import Kind, RandomCrop, RandomHorizontalFlip, kind
from cifar_lightning.data.images import ImageData, Split
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.runs import resolve
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


def augmented_rate(data: Images) -> float:
    """Go through an epoch as a training at its end would see it; return images per second."""
    return rate(data.augmented(batch) for batch in data.loader("train"))


def batched_augmentations() -> dict[str, dict[str, Any]]:
    """Build what each option of ``augment`` names, but for those that work image by image."""
    options = sorted(path.stem for path in (CONF_DIR / "augment").glob("*.yaml"))
    found = {}
    resolve.register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for option in options:
            config = resolve.resolve(compose("train", [f"augment={option}"], True))
            built = instantiate(config["augment"], _convert_="all")
            if built and all(kind(one) is not Kind.PER_IMAGE for one in built.values()):
                found[option] = built
    return found


def loader_of(augment: dict[str, Any]) -> Images:
    """Make our loader of random images."""
    return Images(
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
        augment=augment,
    )


def main() -> None:
    """Print the tables."""
    data = loader_of({"crop": RandomCrop(4), "flip": RandomHorizontalFlip(0.5)})
    images, labels = random_images(BASELINE_IMAGES)

    def gathered() -> float:
        return rate((data.normalize(images), labels) for images, labels in data.loader("train"))

    def per_image(workers: int) -> float:
        return rate(baseline_loader(images, labels, BATCH, workers))

    sides: dict[str, Callable[[], float]] = {
        "per image, 0 workers": lambda: per_image(0),
        "per image, 2 workers": lambda: per_image(2),
        "ours, 0 workers": partial(augmented_rate, data),
        "ours without augmentation": gathered,
    }
    figures = interleave(sides, ROUNDS)
    print("## Input\n")
    print(table(figures, "images/s", 0, "per image, 0 workers"))
    nothing = "no augmentation"
    augmented: dict[str, Callable[[], float]] = {nothing: gathered}
    for option, augment in batched_augmentations().items():
        augmented[option] = partial(augmented_rate, loader_of(augment))
    print("## Each augmentation alone\n")
    print(table(interleave(augmented, ROUNDS), "images/s", 0, nothing))
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main()

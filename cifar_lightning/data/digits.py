"""scikit-learn's handwritten digits: real images without a download."""

import torch
from torch.nn import functional

from cifar_lightning.data.images import IMAGE_SIZE, ImageData, Split, stratified_split
from cifar_lightning.data.module import ImageDataModule


def read_digits() -> ImageData:
    """Read scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 32x32x3.

    They come without an official split: a fifth of each class is the test split, always the same.
    """
    from sklearn.datasets import load_digits  # imports scipy: a second that others need not wait

    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    small = torch.from_numpy(digits.images).float()[:, None]  # (N, 1, 8, 8), 0 to 16
    large = functional.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    images = (large * (255 / 16)).round().to(torch.uint8).repeat(1, 3, 1, 1)
    train, test = stratified_split(labels, fraction=0.2, seed=0)
    return ImageData(
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        tuple(str(name) for name in digits.target_names),
    )


class DigitsDataModule(ImageDataModule):
    """scikit-learn's handwritten digits."""

    def read(self) -> ImageData:
        return read_digits()

"""Augmentation that depends on how much of the training is done."""

from typing import ClassVar

from torch import Tensor
from torchvision.transforms import v2

from cifar_lightning.config.values import LEAST_ALPHA
from cifar_lightning.data.augmentation import Kind
from cifar_lightning.data.images import Batch


class ProgressiveResize:
    """Shrink images at the beginning of a training and let them grow to their own size.

    A convolutional network trains on smaller images in less time, and what it learns there holds
    for the larger ones. From Howard, "Training Imagenet in 3 hours for 25 minutes" (2018), and
    Tan and Le, "EfficientNetV2: Smaller Models and Faster Training" (2021).

    Args:
        start: The first size in pixels.
        until: The fraction of the training after which images have their own size; all smaller
            sizes get equal fractions of it.

    Raises:
        ValueError: If ``start`` is below 1 or ``until`` is no fraction.
    """

    kind: ClassVar[Kind] = Kind.PROGRESSIVE
    STEP = 4  # pixels from one size to the next

    def __init__(self, start: int, until: float) -> None:
        if start < 1:
            raise ValueError(f"start={start}: must be 1 or more")
        if not 0.0 < until <= 1.0:
            raise ValueError(f"until={until}: must be above 0, at most 1")
        self.start, self.until = start, until

    def sizes(self, full: int) -> range:
        """List the sizes of images before they have their own, ``full``."""
        return range(self.start, full, self.STEP)

    def size(self, full: int, progress: float) -> int:
        """Tell the size of images that end with size ``full``, by how much of training is done."""
        smaller = self.sizes(full)
        # 12 of 20 epochs until 0.8 are three quarters, which floating point puts just below.
        index = int(progress / self.until * len(smaller) + 1e-9)
        return smaller[index] if index < len(smaller) else full

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        size = self.size(images.shape[-1], progress)
        return images if size == images.shape[-1] else v2.functional.resize(images, [size, size])


class GrowingMixUp:
    """Mixup (Zhang et al. 2017) that grows: none in the first epoch, all from ``until`` on.

    A network that has learnt little gains nothing from mixed images.

    Args:
        alpha: Of the Beta distribution, when it is grown; it grows linearly.
        until: The fraction of the training after which it stays.
        num_classes: Of the labels.

    Raises:
        ValueError: If ``alpha`` is too small or ``until`` is no fraction.
    """

    kind: ClassVar[Kind] = Kind.MIXING_PROGRESSIVE

    def __init__(self, alpha: float, until: float, num_classes: int) -> None:
        if not alpha >= LEAST_ALPHA:
            raise ValueError(f"alpha={alpha}: must be {LEAST_ALPHA} or more")
        if not 0.0 < until <= 1.0:
            raise ValueError(f"until={until}: must be above 0, at most 1")
        self.alpha, self.until, self.num_classes = alpha, until, num_classes

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> Batch:
        """Mix normalised images and their labels (B,); mixed ones have shape (B, classes)."""
        alpha = self.alpha * min(1.0, progress / self.until)
        if alpha < LEAST_ALPHA:  # on average less than 1 % of another image
            return images, labels
        mixed: Batch = v2.MixUp(alpha=alpha, num_classes=self.num_classes)(images, labels)
        return mixed

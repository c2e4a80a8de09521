"""What is recorded of a run's data: enough to say what is different about others."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from cifar_lightning.runs.latency import Count


@dataclass(frozen=True)
class DataSummary:
    """A data set in short.

    Attributes:
        train: Number of training images, held-out ones included.
        val: Number of images in the source's own validation split.
        test: Number of test images.
        pixels: Of all images, as they were decoded.
        decoder: What decoded them, where they are files.
    """

    train: Count
    val: Count
    test: Count
    pixels: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    decoder: Annotated[str, Meta(max_length=100)] | None = None

"""Classifying image files with a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cifar_lightning.benchmark.load import load_backbone
from cifar_lightning.data.batches import Normalize
from cifar_lightning.data.image_files import formats, open_image
from cifar_lightning.errors import UserError
from cifar_lightning.models.adapt import INPUT_SIZE
from cifar_lightning.runs.find import load_run

BATCH_SIZE = 256


@dataclass(frozen=True)
class Prediction:
    """An image with its likeliest classes and their probabilities, the first one first."""

    image: str
    classes: list[str]
    probabilities: list[float]


def find_images(given: Sequence[str]) -> list[Path]:
    """List files as given, and of folders every image below them.

    Raises:
        UserError: If one does not exist, or a folder holds no image.
    """
    known = formats()
    endings = {ending for ending, name in Image.registered_extensions().items() if name in known}
    images = []
    for path in map(Path, given):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings)
            if not found:
                raise UserError(f"{path}: no image in this folder")
            images += found
        elif path.exists():
            images.append(path)
        else:
            raise UserError(f"{path}: there is no such file or folder")
    return images


def read_image(path: Path) -> Tensor:
    """Read an image and cut the largest square out of its middle, made 32x32.

    Returns:
        Shape (3, 32, 32), uint8.

    Raises:
        ValueError: If it can't be read.
    """
    with open_image(path) as image:
        upright = _as_rgb(ImageOps.exif_transpose(image))
    pixels = transforms.pil_to_tensor(upright)
    square = transforms.center_crop(pixels, [min(pixels.shape[1:])] * 2)
    resized: Tensor = transforms.resize(square, [INPUT_SIZE, INPUT_SIZE], antialias=True)
    return resized


def _as_rgb(image: Image.Image) -> Image.Image:
    """Bring 16-bit greys to 8 bits, which Pillow would clip, and put what is clear on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class Predictor:
    """A finished run's network, ready to classify.

    Args:
        folder: The run's.
        device: Where to compute.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.run = load_run(folder)
        data = self.run.config["data"]
        self.device = device
        self.backbone = load_backbone(folder).to(device)
        self.normalize = Normalize(data["mean"], data["std"])
        self.classes = self.run.class_names(data["num_classes"])

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: Shape (B, 3, 32, 32), uint8.

        Returns:
            Shape (B, classes), on the CPU.
        """
        probabilities: Tensor = self.backbone(self.normalize(images.to(self.device))).softmax(1)
        return probabilities.cpu()

    def predict(self, paths: Sequence[Path], top: int) -> Iterator[Prediction | ValueError]:
        """Classify image files batch by batch; what can't be read gives an error instead."""
        for start in range(0, len(paths), BATCH_SIZE):
            images = {}
            for path in paths[start : start + BATCH_SIZE]:
                try:
                    images[path] = read_image(path)
                except ValueError as error:
                    yield error
            if images:
                best = self.probabilities(torch.stack(list(images.values()))).topk(top)
                for path, shares, places in zip(
                    images, best.values.tolist(), best.indices.tolist(), strict=True
                ):
                    yield Prediction(str(path), [self.classes[place] for place in places], shares)

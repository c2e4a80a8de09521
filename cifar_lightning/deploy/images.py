"""Images of any kind and size, brought to what a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cifar_lightning.data.image_files import formats, open_image
from cifar_lightning.errors import UserError
from cifar_lightning.models.adapt import INPUT_SIZE


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
    """Read an image file; see `to_pixels`.

    Raises:
        ValueError: If it can't be read.
    """
    with open_image(path) as image:
        return to_pixels(image)


def to_pixels(image: Image.Image) -> Tensor:
    """Cut the largest square out of an image's middle, upright, and make it 32x32.

    Returns:
        Shape (3, 32, 32), uint8.
    """
    pixels = transforms.pil_to_tensor(_as_rgb(ImageOps.exif_transpose(image)))
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

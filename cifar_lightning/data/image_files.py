"""Finds and opens image files, whoever made them, and brings them to a network's input.

No other program runs, and nothing waits or ends Pillow.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cifar_lightning.data.images import IMAGE_SIZE
from cifar_lightning.errors import CifarLightningError, UserError
from cifar_lightning.system.files import open_regular

# NOTE: Pillow gives PostScript to Ghostscript, another program, and opens whatever lies in IPTC.
_RUN_OTHERS = {"EPS", "IPTC"}


def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened; an ending says nothing about the content."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _RUN_OTHERS))


@contextmanager
def open_image(path: Path, stream: BinaryIO | None = None) -> Iterator[Image.Image]:
    """Open an image, and turn into one line whatever goes wrong while it is open.

    Args:
        path: Its file; a pipe or a device is none.
        stream: Its content, where that was read already.

    Raises:
        ValueError: If it can't be read, or has more pixels than Pillow takes for honest.
    """
    try:
        with (
            stream or open_regular(path) as content,
            Image.open(content, formats=formats()) as image,
        ):
            yield image
    except CifarLightningError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise ValueError(f"{path}: this image can't be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no format that is known"
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return said or type(error).__name__


def find_images(given: Sequence[str]) -> list[Path]:
    """List files as given, and of folders every image below them.

    Raises:
        UserError: If one does not exist, or a folder holds no image.
    """
    known = formats()
    endings = {ending for ending, name in Image.registered_extensions().items() if name in known}
    images = []
    for path in map(Path, given):
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        inside = (one for one in path.rglob("*") if one.suffix.lower() in endings)
        found = sorted(inside) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: no image in this folder")
        images += found
    return images


def read_image(source: Path | Image.Image) -> Tensor:
    """Cut the largest square out of an image's middle, upright, and make it 32x32.

    Returns:
        Shape (3, 32, 32), uint8.

    Raises:
        ValueError: If a file can't be read.
    """
    if isinstance(source, Path):
        with open_image(source) as image:
            return read_image(image)
    pixels = transforms.pil_to_tensor(_as_rgb(ImageOps.exif_transpose(source)))
    square = transforms.center_crop(pixels, [min(pixels.shape[1:])] * 2)
    resized: Tensor = transforms.resize(square, [IMAGE_SIZE, IMAGE_SIZE], antialias=True)
    return resized


def _as_rgb(image: Image.Image) -> Image.Image:
    """Bring 16-bit greys to 8 bits, which Pillow would clip, and put what is clear on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")

"""The one decoder of training and prediction: from an image file to a network's input.

The files may be anybody's: no other program runs, and nothing waits or ends Pillow.
"""

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from cifar_lightning.data.images import IMAGE_SIZE
from cifar_lightning.system import untrusted
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.progress import tracked

DECODING = 2  # another number where a change of ours gives other pixels for the same file
MAX_FILE = 1 << 28  # bytes
LARGE = 1 << 24  # pixels; such images are decoded one at a time, or 64 cores would fill the memory
# NOTE: Pillow gives PostScript to Ghostscript, another program, and opens whatever lies in IPTC.
_RUN_OTHERS = {"EPS", "IPTC"}
_16_BITS = {"PNG", "PPM"}  # where greys that Pillow holds as 32-bit integers are of 16 bits
# By the number that EXIF has for how a camera was held; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WRONG_SIZE = f"must be {IMAGE_SIZE}x{IMAGE_SIZE}"  # how the error ends
Pixels = NDArray[np.uint8]
_one_large = threading.Lock()


class Unusable(ValueError):
    """Why an image is no use; its file's name belongs before it."""


@dataclass(frozen=True)
class Decoded:
    """What image files gave.

    Attributes:
        images: Shape (N, 3, 32, 32), uint8; zeros where there is an error.
        digests: SHA-256 of each file's content; no bytes where it could not be read.
        errors: By the file's index, why it is no use.
    """

    images: Pixels
    digests: list[bytes]
    errors: dict[int, str]


def decode_files(paths: Sequence[Path], resize: bool, description: str | None = None) -> Decoded:
    """Decode images in parallel; what is no use gives a reason instead.

    Args:
        paths: Their files.
        resize: As for `to_input`.
        description: Of the progress that is shown; None shows none.
    """
    images = np.zeros((len(paths), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    digests, errors = [b""] * len(paths), {}

    def decode(index: int) -> None:
        path = paths[index]
        try:
            content = _content(path)
            digests[index] = sha256(content).digest()
            with _opened(content) as image:
                images[index] = to_input(image, resize)
        except Unusable as error:
            errors[index] = str(error)

    pool = ThreadPoolExecutor(usable_cores())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF: the image is whole
            done: Iterable[None] = pool.map(decode, range(len(paths)))
            if description is not None:
                done = tracked(done, description, "images", total=len(paths))
            for _ in done:
                pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the others
    return Decoded(images, digests, dict(sorted(errors.items())))


def read_image(source: Path | Image.Image) -> Tensor:
    """Bring one image to a network's input, as `decode_files` does.

    Returns:
        Shape (3, 32, 32), uint8.

    Raises:
        ValueError: If it can't be used; of a file, the text names it.
    """
    if isinstance(source, Path):
        decoded = decode_files([source], resize=True)
        for error in decoded.errors.values():
            raise ValueError(f"{source}: {error}")
        (pixels,) = decoded.images
        return torch.from_numpy(pixels)
    return torch.tensor(to_input(source))


def digests_of(paths: Sequence[Path]) -> list[bytes]:
    """Give the SHA-256 of each file's content; no bytes where it can't be read."""

    def digest(path: Path) -> bytes:
        try:
            return sha256(_content(path)).digest()
        except Unusable:
            return b""

    return [digest(path) for path in paths]


def to_input(image: Image.Image, resize: bool = True) -> Pixels:
    """Bring an image to a network's input: RGB on white, upright; of an animation the first frame.

    Args:
        image: Open.
        resize: Whether the largest square is cut out of the middle of an image of another size,
            and made 32x32.

    Returns:
        Shape (3, 32, 32).

    Raises:
        Unusable: If it has another size, or greys of no known range.
    """
    width, height = image.size
    if not resize and (width, height) != (IMAGE_SIZE, IMAGE_SIZE):  # before a bomb is decoded
        raise Unusable(f"this image is {width}x{height}, {WRONG_SIZE}")
    with _one_large if width * height > LARGE else nullcontext():
        colours = _as_rgb(image)
        if (turn := _turn(image)) is not None:
            colours = colours.transpose(turn)
        if colours.size != (IMAGE_SIZE, IMAGE_SIZE):
            colours = _middle(colours).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(colours).transpose(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Bring greys of more than 8 bits to 8, which Pillow would clip, and what is clear on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _with_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Scale greys: integers have 16 bits unless a TIFF says otherwise, other numbers are 0 to 1."""
    if image.mode == "I" and image.format not in _16_BITS:
        raise Unusable("this image has 32-bit greys of no known range, must have 8 or 16 bits")
    (bits, *_) = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))
    white = 1.0 if image.mode == "F" else 2.0**bits - 1
    greys = np.asarray(image).astype(np.float32)
    darkest, brightest = float(greys.min()), float(greys.max())
    if not (darkest >= 0 and brightest <= white):
        raise Unusable(
            f"this image has greys from {darkest:g} to {brightest:g}, must be 0 to {white:g}"
        )
    return Image.fromarray(np.rint(greys * (255 / white)).astype(np.uint8))


def _middle(image: Image.Image) -> Image.Image:
    """Cut out the largest square.

    NOTE: not `ImageOps.fit`, whose filter looks over the square's edges.
    """
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Tell how an image is turned upright, by its EXIF; a broken one says nothing."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises whatever damaged bytes lead it to
        return None


def _content(path: Path) -> bytes:
    try:
        return untrusted.read(path, MAX_FILE)
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image, and turn into a reason whatever goes wrong while it is open."""
    try:
        with Image.open(BytesIO(content), formats=_formats()) as image:
            yield image
    except Unusable:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> Unusable:
    if isinstance(error, UnidentifiedImageError):
        reason = "no format that is known"
    else:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = said or type(error).__name__
    return Unusable(f"this image can't be read ({reason})")


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened; an ending says nothing about the content."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _RUN_OTHERS))

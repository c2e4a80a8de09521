"""Opens image files, whoever made them: no other program runs, and nothing waits or ends Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from cifar_lightning.errors import CifarLightningError
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
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__

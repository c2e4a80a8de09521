"""Finds image files below folders as people have them."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_lightning.errors import UserError

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
# What file managers, notebooks and network drives leave behind, beside names with a leading dot.
_LEFT_BEHIND = {
    "@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "desktop.ini",
    "ehthumbs.db", "lost+found", "system volume information", "thumbs.db",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        images: What is called like an image, sorted; whatever it is, opening it will tell.
        others: How many other files, by their kind.
    """

    images: list[Path]
    others: Counter[str]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by its names, without what nobody put there on purpose."""
    with os.scandir(folder) as found:
        kept = [one for one in found if not _is_left_behind(one.name)]
    return sorted(kept, key=lambda one: one.name)


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LEFT_BEHIND


def kind_of(path: Path) -> str:
    """Name a kind of files by their suffix."""
    return path.suffix.lower() or "without a suffix"


def find_below(folder: Path) -> Found:
    """Look through a folder and those in it; each once, though links may go round in circles."""
    images: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    pending = [folder]
    while pending:
        place = pending.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        for one in entries(place):
            path = Path(one.path)
            if path.suffix.lower() in SUFFIXES:
                images.append(path)
            elif one.is_dir(follow_symlinks=False) or (one.is_symlink() and path.is_dir()):
                pending.append(path)
            else:
                others[kind_of(path)] += 1
    return Found(sorted(images), others)


def find_images(given: Sequence[str]) -> list[Path]:
    """List files as given, and of folders every image below them.

    Raises:
        UserError: If one does not exist, or a folder holds no image or can't be read.
    """
    images = []
    for path in map(Path, given):
        try:
            if not path.exists():
                raise UserError(f"{path}: there is no such file or folder")
            found = find_below(path).images if path.is_dir() else [path]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from error
        if not found:
            raise UserError(f"{path}: no image in this folder")
        images += found
    return images

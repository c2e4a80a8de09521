"""A folder of images: ``train/<class>/*`` and ``test/<class>/*``."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from tqdm import tqdm

from cifar_lightning.data.image_files import open_image
from cifar_lightning.data.images import IMAGE_SIZE, ImageData, Split
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.files import open_regular, write_atomically

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
MAX_FILE = 1 << 24  # bytes of an image of that size, with whatever a camera writes beside it
DECODING = 1  # another number where a change of ours gives other pixels for the same file


def read_image_folder(root: str, cache_dir: str) -> ImageData:
    """Read ``root/train/<class>/*`` and ``root/test/<class>/*``, PNG or JPEG, 32x32.

    The decoded tensors of one ``root`` are kept in one file in ``cache_dir``, with a digest of the
    files that they were decoded from. All files are read each time to compare it (a second for
    60,000 images): folders that were unpacked, copied or mounted have equal names, sizes and times.

    Raises:
        UserError: If a folder or class is missing or an image can't be read or is not 32x32.
    """
    base = Path(root)
    for split in ("train", "test"):
        if not (base / split).is_dir():
            raise UserError(f"data.root={root}: there is no folder {base / split}")
    classes = _class_folders(base / "train")
    in_test = _class_folders(base / "test")
    if missing := sorted(set(classes) ^ set(in_test)):
        where = base / ("test" if missing[0] in classes else "train")
        raise UserError(f"data.root={root}: class {missing[0]!r} is missing from {where}")
    files = {
        split: [path for name in classes for path in _images_in(base / split / name)]
        for split in ("train", "test")
    }
    cache = _Cache(base, Path(cache_dir), files, tuple(classes))
    data = cache.read()
    if data is None:
        images, digests = {}, []
        for split, paths in files.items():
            images[split], of_split = _decode(paths, split)
            digests += of_split
        data = cache.write(images, digests)
    return data


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _images_in(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no PNG or JPEG image in it")
    return paths


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            content = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: this image can't be read ({error.strerror})") from error
    if len(content) > MAX_FILE:
        raise UserError(f"{path}: this image can't be read (more than {MAX_FILE} bytes)")
    return content


def _decode(paths: list[Path], name: str) -> tuple[Tensor, list[bytes]]:
    """Decode images in parallel.

    Returns:
        One tensor of shape (N, 3, 32, 32), uint8, and the digest of each file that it is made of.
    """
    images = np.empty((len(paths), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)

    def decode(index: int) -> bytes:
        path = paths[index]
        content = _content(path)
        try:
            with open_image(path, io.BytesIO(content)) as image:
                width, height = image.size
                if (width, height) != (IMAGE_SIZE, IMAGE_SIZE):  # before a bomb is decoded
                    raise UserError(
                        f"{path}: this image is {width}x{height}, must be {IMAGE_SIZE}x{IMAGE_SIZE}"
                    )
                images[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except ValueError as error:
            raise UserError(str(error)) from error
        return hashlib.sha256(content).digest()

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        done = pool.map(decode, range(len(paths)))
        try:
            digests = list(tqdm(done, total=len(paths), desc=f"decode {name}", leave=False))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images), digests


@dataclass(frozen=True)
class _Cache:
    """The decoded images of one root, in one file that says what it was made of.

    Attributes:
        root: The images' folder.
        folder: Of the cache.
        files: Of each split, class by class.
        classes: Their names.
    """

    root: Path
    folder: Path
    files: dict[str, list[Path]]
    classes: tuple[str, ...]

    @cached_property
    def origin(self) -> str:
        return os.fsencode(self.root.resolve()).decode(errors="backslashreplace")

    @property
    def path(self) -> Path:
        return self.folder / f"{hashlib.sha256(self.origin.encode()).hexdigest()[:16]}.safetensors"

    def read(self) -> ImageData | None:
        """Give what is kept; None if it was made of other files, or is not whole."""
        if not self.path.is_file():
            return None
        digests = [
            hashlib.sha256(_content(path)).digest()
            for paths in self.files.values()
            for path in paths
        ]
        try:
            with safe_open(self.path, framework="pt") as stored:
                about = stored.metadata() or {}
                if (about["root"], about["content"]) != (self.origin, self._digest(digests)):
                    return None
                tensors = {split: stored.get_tensor(split) for split in self.files}
        except (SafetensorError, OSError, KeyError):
            tensors = {}
        if all(
            split in tensors
            and tensors[split].dtype == torch.uint8
            and tensors[split].shape == (len(paths), 3, IMAGE_SIZE, IMAGE_SIZE)
            for split, paths in self.files.items()
        ):
            data = self._labelled(tensors)
            if data.fingerprint == about.get("fingerprint"):
                return data
        log.warning("%s is damaged; decoding the images again", self.path)
        return None

    def write(self, images: dict[str, Tensor], digests: list[bytes]) -> ImageData:
        """Keep decoded images.

        Args:
            images: Of each split.
            digests: Of the files, as they were when they were decoded.
        """
        data = self._labelled(images)
        about = {
            "root": self.origin,
            "content": self._digest(digests),
            "fingerprint": data.fingerprint,
        }
        write_atomically(self.path, to_bytes(images, about))
        return data

    def _digest(self, digests: list[bytes]) -> str:
        """Join the files' names and digests, and what else decides which pixels they give."""
        names = [
            os.fsencode(path.relative_to(self.root))
            for paths in self.files.values()
            for path in paths
        ]
        digest = hashlib.sha256(f"{DECODING} {PIL.__version__}".encode())
        for name, of_file in zip(names, digests, strict=True):
            digest.update(name + b"\0" + of_file)
        return digest.hexdigest()

    def _labelled(self, images: dict[str, Tensor]) -> ImageData:
        number = {name: number for number, name in enumerate(self.classes)}
        train, test = (
            Split(images[split], torch.tensor([number[path.parent.name] for path in paths]))
            for split, paths in self.files.items()
        )
        return ImageData(train, test, self.classes)


class ImageFolderDataModule(ImageDataModule):
    """A folder of images; arguments as for `read_image_folder`."""

    def __init__(self, root: str, cache_dir: str, **shared: Any) -> None:
        super().__init__(**shared)
        self.root, self.cache_dir = root, cache_dir

    def read(self) -> ImageData:
        return read_image_folder(self.root, self.cache_dir)

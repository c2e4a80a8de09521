"""A folder of images: ``train/<class>/*`` and ``test/<class>/*``."""

import io
import logging
import os
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from cifar_lightning.data.image_files import open_image
from cifar_lightning.data.images import IMAGE_SIZE, ImageData, Split
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError
from cifar_lightning.system import untrusted
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.files import write_atomically

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
    # Of this place alone: folders with equal files share nothing.
    place = sha256(os.fsencode(base.resolve())).hexdigest()[:16]
    cache = _Cache(base, files, tuple(classes), Path(cache_dir) / f"{place}.safetensors")
    if (data := cache.read()) is not None:
        return data
    decoded = {split: _decode(paths, split) for split, paths in files.items()}
    return cache.write(
        {split: images for split, (images, _) in decoded.items()},
        [digest for _, digests in decoded.values() for digest in digests],
    )


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _images_in(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no PNG or JPEG image in it")
    return paths


def _content(path: Path) -> bytes:
    try:
        return untrusted.read(path, MAX_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: this image can't be read ({reason})") from error


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
        return sha256(content).digest()

    digests = thread_map(
        decode, range(len(paths)), max_workers=usable_cores(), desc=f"decode {name}", leave=False
    )
    return torch.from_numpy(images), digests


@dataclass(frozen=True)
class _Cache:
    """The decoded images of one folder, in one file that says what it was made of."""

    root: Path
    files: dict[str, list[Path]]  # of each split, class by class
    classes: tuple[str, ...]
    path: Path

    def read(self) -> ImageData | None:
        """Give what is kept; None if it was made of other files, or is not whole."""
        if not self.path.is_file():
            return None
        digests = [
            sha256(_content(path)).digest() for paths in self.files.values() for path in paths
        ]
        try:
            with safe_open(self.path, framework="pt") as stored:
                data = self._labelled({split: stored.get_tensor(split) for split in self.files})
                return data if stored.metadata() == self._about(data, digests) else None
        except (SafetensorError, OSError, RuntimeError):
            log.warning("%s is damaged; decoding the images again", self.path)
            return None

    def write(self, images: dict[str, Tensor], digests: list[bytes]) -> ImageData:
        """Keep decoded images, with the digests of their files as they were when decoded."""
        data = self._labelled(images)
        write_atomically(self.path, to_bytes(images, self._about(data, digests)))
        return data

    def _about(self, data: ImageData, digests: list[bytes]) -> dict[str, str]:
        """Say what images were made of: names and digests of files, and how they are decoded."""
        content = sha256(f"{DECODING} {PIL.__version__}".encode())
        paths = chain.from_iterable(self.files.values())
        for path, digest in zip(paths, digests, strict=True):
            content.update(os.fsencode(path.relative_to(self.root)) + b"\0" + digest)
        return {"content": content.hexdigest(), "fingerprint": data.fingerprint}

    def _labelled(self, images: dict[str, Tensor]) -> ImageData:
        number = {name: number for number, name in enumerate(self.classes)}
        train, test = (
            Split(  # bytes of this shape, whatever the cache says they are
                images[split].view(torch.uint8).view(len(paths), 3, IMAGE_SIZE, IMAGE_SIZE),
                torch.tensor([number[path.parent.name] for path in paths]),
            )
            for split, paths in self.files.items()
        )
        return ImageData(train, test, self.classes)


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderDataModule(ImageDataModule):
    """A folder of images; arguments as for `read_image_folder`."""

    root: str
    cache_dir: str

    def read(self) -> ImageData:
        return read_image_folder(self.root, self.cache_dir)

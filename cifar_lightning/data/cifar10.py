"""CIFAR-10 from its original archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.data import cifar_archive
from cifar_lightning.data.cifar_archive import ARCHIVE
from cifar_lightning.data.download import download_archive, md5_of
from cifar_lightning.data.images import ImageData, Split
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError


def read_cifar10(root: str, mirrors: Sequence[str], md5: str, connect_timeout: float) -> ImageData:
    """Read the original archive, downloading it into ``root`` where it is not there yet.

    Args:
        root: Folder that holds or will hold ``cifar-10-python.tar.gz``.
        mirrors: URLs of byte-identical archives, tried in turn.
        md5: Checksum of the archive.
        connect_timeout: Seconds to wait for a connection, and for each piece of the download.

    Raises:
        UserError: If the archive has another checksum, is not as `cifar_archive` says, or no mirror
            could give it.
    """
    archive = Path(root) / ARCHIVE
    if not archive.exists():
        download_archive(archive, mirrors, md5, connect_timeout)
    else:
        try:
            found = md5_of(archive)
        except OSError as error:
            raise UserError(f"{archive}: {error.strerror}") from error
        if found != md5:
            raise UserError(
                f"{archive}: md5 is {found}, expected {md5}; delete the file to download it again"
            )
    contents = cifar_archive.read(archive)
    return ImageData(_split(contents.train), _split(contents.test), contents.classes)


def _split(images: cifar_archive.Images) -> Split:
    return Split(torch.from_numpy(images.pixels), torch.from_numpy(images.labels))


class CIFAR10DataModule(ImageDataModule):
    """The original CIFAR-10 archive; arguments as for `sources.read_cifar10`."""

    def __init__(
        self, root: str, mirrors: list[str], md5: str, connect_timeout: float, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.root, self.mirrors, self.md5 = root, mirrors, md5
        self.connect_timeout = connect_timeout

    def read(self) -> ImageData:
        return read_cifar10(self.root, self.mirrors, self.md5, self.connect_timeout)

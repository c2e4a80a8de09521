"""CIFAR-10 from its original archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifar_lightning.data import cifar_archive
from cifar_lightning.data.cifar_archive import ARCHIVE
from cifar_lightning.data.download import download_archive, md5_of
from cifar_lightning.data.images import ImageData
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError


class CIFAR10DataModule(ImageDataModule):
    """The original CIFAR-10 archive.

    Args:
        root: Folder that holds or will hold ``cifar-10-python.tar.gz``.
        mirrors: URLs of byte-identical archives, tried in turn.
        md5: Checksum of the archive.
        connect_timeout: Seconds to wait for a connection, and for each piece of the download.
        shared: As for `ImageDataModule`.
    """

    def __init__(
        self, root: str, mirrors: list[str], md5: str, connect_timeout: float, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.archive, self.mirrors, self.md5 = Path(root) / ARCHIVE, mirrors, md5
        self.connect_timeout = connect_timeout

    def prepare_data(self) -> None:
        """Download the archive where it is not there yet.

        Raises:
            UserError: If no mirror could give it.
        """
        if not self.archive.exists():
            download_archive(self.archive, self.mirrors, self.md5, self.connect_timeout)

    def read(self) -> ImageData:
        """Read the archive.

        Raises:
            UserError: If it has another checksum, or is not as `cifar_archive` says.
        """
        try:
            found = md5_of(self.archive)
        except OSError as error:
            raise UserError(f"{self.archive}: {error.strerror}") from error
        if found != self.md5:
            raise UserError(
                f"{self.archive}: md5 is {found}, expected {self.md5}; "
                "delete the file to download it again"
            )
        return cifar_archive.read(self.archive)

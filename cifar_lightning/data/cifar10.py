"""CIFAR-10 and CIFAR-100: their original archives, downloaded from a mirror, and checked.

Where the archive is not there, the folder that it was unpacked to does as well.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cifar_lightning.data import cifar_archive
from cifar_lightning.data.cifar_archive import CIFAR10, CIFAR100, Layout
from cifar_lightning.data.images import ImageData
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError
from cifar_lightning.system.escaping import without_secrets
from cifar_lightning.system.files import open_regular
from cifar_lightning.system.locks import locked
from cifar_lightning.system.progress import Progress

MB = 10**6
CHUNK = 2**16  # bytes of a download


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10DataModule(ImageDataModule):
    """The original CIFAR-10 archive.

    Args:
        root: Folder that holds or will hold the archive, under its own name; or what was unpacked.
        mirrors: URLs of byte-identical archives, tried in turn.
        md5: Checksum of the archive.
        connect_timeout: Seconds to wait for a connection, and for each piece of the download.
    """

    layout: ClassVar[Layout] = CIFAR10

    root: str
    mirrors: list[str]
    md5: str
    connect_timeout: float
    any_archive: bool = field(init=False, default=False)  # whatever its checksum

    @property
    def archive(self) -> Path:
        return Path(self.root) / self.layout.file

    @property
    def unpacked(self) -> Path | None:
        """What the original archive was unpacked to, where it is not there itself."""
        folder = Path(self.root) / self.layout.folder
        there = not self.archive.exists() and folder.is_dir()
        return folder if there and self.md5 == self.layout.md5 else None

    def prepare_data(self) -> None:
        """Download the archive where it is not there yet.

        Raises:
            UserError: If no mirror could give it.
        """
        archive = self.archive
        if not archive.exists() and self.unpacked is None:
            download_archive(archive, self.mirrors, self.md5, self.connect_timeout)

    def known_by_images(self) -> None:
        self.any_archive = True

    def read(self) -> ImageData:
        """Read the archive, or what was unpacked.

        Raises:
            UserError: If it has another checksum, or is not as `cifar_archive` says.
        """
        if (unpacked := self.unpacked) is not None:
            return cifar_archive.read(unpacked, self.layout)
        archive = self.archive
        try:
            found = md5_of(archive)
        except OSError as error:
            raise UserError(f"{archive}: {error.strerror}") from error
        if found != self.md5 and not self.any_archive:
            raise UserError(
                f"{archive}: md5 is {found}, expected {self.md5}; "
                "delete the file to download it again"
            )
        return cifar_archive.read(archive, self.layout)


class CIFAR100DataModule(CIFAR10DataModule):
    """The original CIFAR-100 archive, with its 100 fine classes; arguments as CIFAR-10's."""

    layout = CIFAR100


def md5_of(path: Path) -> str:
    """Compute a file's MD5 as hexadecimal digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def download_archive(archive: Path, mirrors: Sequence[str], md5: str, timeout: float) -> None:
    """Bring the archive from the first mirror that gives it whole."""
    root = archive.parent
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.root={root}: {error.strerror}") from error
    part = archive.with_name(archive.name + ".part")
    lock = archive.with_name(archive.name + ".lock")
    failures = []
    with locked(lock, "waiting for another process that downloads the data"):
        if archive.exists():  # another process brought it meanwhile
            return
        for url in mirrors:
            shown = without_secrets("%20".join(url.split()))
            try:
                continued = _fetch(url, part, timeout)
                if md5_of(part) != md5 and continued:
                    part.unlink()  # what an earlier try had left did not fit
                    _fetch(url, part, timeout)
                if md5_of(part) == md5:
                    part.replace(archive)
                    return
                part.unlink()
                failures.append(f"{shown} (wrong checksum)")
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures.append(f"{shown} ({_reason(error)})")
    if made and not part.exists():
        lock.unlink(missing_ok=True)
        root.rmdir()
    raise UserError(
        f"data.root={root}: no {archive.name} there and no mirror gave it: "
        f"{'; '.join(failures) or 'none given'}. Put the file there by hand, "
        "or use data=digits, which needs no download"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.InvalidURL | ValueError):
        return "no address that can be read"  # the error itself tells parts of it
    return " ".join(str(getattr(error, "reason", None) or error).split())


def _fetch(url: str, part: Path, timeout: float) -> bool:
    """Download into ``part``, continuing what is there; tell whether it was continued."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing after `start`
            return True
        raise
    with response:
        continued: bool = response.status == 206
        done = start if continued else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        of = None if total is None else total // MB
        with (
            part.open("ab" if continued else "wb") as stream,
            Progress(f"downloading {part.stem}", of, "MB", slow_steps=True) as progress,
        ):
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                progress.at(stream.tell() // MB)
    if total is not None and (done := part.stat().st_size) < total:
        raise OSError(f"cut off after {done} of {total} bytes")
    return continued

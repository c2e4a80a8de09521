"""Where images come from: the CIFAR-10 archive, a folder of images, scikit-learn's digits.

Every source gives the same thing, `ImageData`: whole splits as uint8 tensors in memory.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from cifar_lightning import cifar_archive
from cifar_lightning.cores import usable_cores
from cifar_lightning.errors import UserError
from cifar_lightning.escaping import without_secrets
from cifar_lightning.files import locked, open_regular, write_atomically
from cifar_lightning.image_files import open_image

log = logging.getLogger(__name__)

IMAGE_SIZE = 32  # pixels, both ways
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
MAX_FILE = 1 << 24  # bytes of an image of that size, with whatever a camera writes beside it
DECODING = 1  # another number where a change of ours gives other pixels for the same file
ARCHIVE = "cifar-10-python.tar.gz"


@dataclass(frozen=True)
class Split:
    """Images of shape (N, 3, 32, 32), uint8, and their classes of shape (N,), int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set with its official train/test split."""

    train: Split
    test: Split
    classes: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any pixel, label or class name does."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that each class gives the same share, at random but always the same way.

    Args:
        labels: Shape (N,).
        fraction: The second part's share of each class, rounded to whole images.
        seed: Of this split alone; torch's global generator is not touched.

    Returns:
        Sorted indices of the first and of the second part; disjoint, together all N.
    """
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        second[members[order[: round(fraction * len(members))]]] = True
    return torch.nonzero(~second).flatten(), torch.nonzero(second).flatten()


# --- CIFAR-10 -------------------------------------------------------------------------------


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
        _download(archive, mirrors, md5, connect_timeout)
    else:
        try:
            found = _md5(archive)
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


def _md5(path: Path) -> str:
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _download(archive: Path, mirrors: Sequence[str], md5: str, timeout: float) -> None:
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
                if _md5(part) != md5 and continued:
                    part.unlink()  # what an earlier try had left did not fit
                    _fetch(url, part, timeout)
                if _md5(part) == md5:
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
        f"data.root={root}: no {ARCHIVE} there and no mirror gave it: "
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
        with (
            part.open("ab" if continued else "wb") as stream,
            tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=ARCHIVE) as bar,
        ):
            while chunk := response.read(1 << 16):
                stream.write(chunk)
                bar.update(len(chunk))
                done += len(chunk)
    if total is not None and done < total:
        raise OSError(f"cut off after {done} of {total} bytes")
    return continued


# --- Image folders --------------------------------------------------------------------------


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
                        f"{path}: this image is {width}x{height}, "
                        f"allowed is {IMAGE_SIZE}x{IMAGE_SIZE}"
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


# --- Digits ---------------------------------------------------------------------------------


def read_digits() -> ImageData:
    """Read scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 32x32x3.

    They come without an official split: a fifth of each class is the test split, always the same.
    """
    from sklearn.datasets import load_digits  # imports scipy: a second that others need not wait

    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    small = torch.from_numpy(digits.images).float()[:, None]  # (N, 1, 8, 8), 0 to 16
    large = functional.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    images = (large * (255 / 16)).round().to(torch.uint8).repeat(1, 3, 1, 1)
    train, test = stratified_split(labels, fraction=0.2, seed=0)
    return ImageData(
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        tuple(str(name) for name in digits.target_names),
    )

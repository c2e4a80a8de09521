"""Where images come from: the CIFAR-10 archive, a folder of images, scikit-learn's digits.

Every source gives the same thing, `ImageData`: whole splits as uint8 tensors in memory.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from cifar_lightning import cifar_archive
from cifar_lightning.cores import usable_cores
from cifar_lightning.errors import UserError
from cifar_lightning.files import locked, open_regular, write_atomically

log = logging.getLogger(__name__)

IMAGE_SIZE = 32  # pixels, both ways
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
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
            try:
                continued = _fetch(url, part, timeout)
                if _md5(part) != md5 and continued:
                    part.unlink()  # what an earlier try had left did not fit
                    _fetch(url, part, timeout)
                if _md5(part) == md5:
                    part.replace(archive)
                    return
                part.unlink()
                failures.append(f"{url} (wrong checksum)")
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures.append(f"{url} ({getattr(error, 'reason', None) or error})")
    if made and not part.exists():
        lock.unlink(missing_ok=True)
        root.rmdir()
    raise UserError(
        f"data.root={root}: no {ARCHIVE} there and no mirror gave it: "
        f"{'; '.join(failures) or 'none given'}. Put the file there by hand, "
        "or use data=digits, which needs no download"
    )


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

    The decoded tensors are kept in ``cache_dir`` under a name made of every file's path, size and
    time of change, so changed images are decoded anew.

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
    cache = Path(cache_dir) / f"{_listing_key(base, files)}.safetensors"
    tensors = _read_cache(cache)
    if tensors is None:
        tensors = {}
        for split, paths in files.items():
            tensors[f"{split}.images"] = _decode(paths, split)
            labels = [classes.index(path.parent.name) for path in paths]
            tensors[f"{split}.labels"] = torch.tensor(labels)
        write_atomically(cache, to_bytes(tensors))
    return ImageData(
        Split(tensors["train.images"], tensors["train.labels"]),
        Split(tensors["test.images"], tensors["test.labels"]),
        tuple(classes),
    )


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _images_in(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no PNG or JPEG image in it")
    return paths


def _listing_key(base: Path, files: dict[str, list[Path]]) -> str:
    digest = hashlib.sha256()
    for paths in files.values():
        for path in paths:
            stat = path.stat()
            line = f"{path.relative_to(base)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _decode(paths: list[Path], name: str) -> Tensor:
    """Decode images in parallel into one tensor of shape (N, 3, 32, 32), uint8."""
    images = np.empty((len(paths), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)

    def decode(index: int) -> None:
        path = paths[index]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: this image can't be read ({error})") from error
        if pixels.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
            height, width = pixels.shape[:2]
            raise UserError(
                f"{path}: this image is {width}x{height}, allowed is {IMAGE_SIZE}x{IMAGE_SIZE}"
            )
        images[index] = pixels.transpose(2, 0, 1)

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        done = pool.map(decode, range(len(paths)))
        try:
            for _ in tqdm(done, total=len(paths), desc=f"decode {name}", leave=False):
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images)


def _read_cache(path: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except SafetensorError:
        log.warning("%s is damaged; decoding the images again", path)
        return None


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

"""Reads CIFAR-10 and CIFAR-100, packed or unpacked, and believes nothing that is in them.

The format is a gzipped tar of Python 2 pickles. What does not fit what it promises is named, since
images with another one's labels train as silently as good ones.
"""

import hashlib
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from cifar_lightning.data.array_unpickler import Array, Bad, Member, show_value, unpickle_arrays
from cifar_lightning.data.images import IMAGE_SIZE, ImageData, Split
from cifar_lightning.errors import UserError
from cifar_lightning.system import untrusted
from cifar_lightning.system.files import open_regular

log = logging.getLogger(__name__)

PIXELS = 3 * IMAGE_SIZE * IMAGE_SIZE


@dataclass(frozen=True)
class Layout:
    """Where an archive of the family has what.

    Attributes:
        file: The archive's name.
        md5: Of the original archive.
        folder: Of all its members.
        meta: The member with the classes' names.
        train: The members with training images.
        test: The member with test images.
        names: The key of the classes' names.
        labels: The key of the images' classes.
        ignored: Members that may be there.
        train_images: Of each such member of the original.
        digests: Of the original's members that are read: their MD5.
        test_images: Of the original's.
    """

    file: str
    md5: str
    folder: str
    meta: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: str
    ignored: str
    train_images: int
    digests: Mapping[str, str]
    test_images: int = 10_000


CIFAR10 = Layout(
    file="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    meta="batches.meta",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    names="label_names",
    labels="labels",
    ignored="readme.html",
    train_images=10_000,
    digests={
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
CIFAR100 = Layout(
    file="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    meta="meta",
    train=("train",),
    test="test",
    names="fine_label_names",
    labels="fine_labels",
    ignored="file.txt~",
    train_images=50_000,
    digests={
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "train": "16019d7e3df5f24257cddd939b257f8d",
    },
)
# Bytes of a member: the pixels, and names and labels beside them; with room to spare.
MAX_MEMBER = 50_000 * (PIXELS + 512)


@contextmanager
def _named(place: object) -> Iterator[None]:
    try:
        yield
    except Bad as error:
        raise Bad(f"{place}: {error}") from error


def read(source: Path, layout: Layout = CIFAR10) -> ImageData:
    """Read a whole archive, or the folder that one was unpacked to.

    Every member has to be there once and at its place, and to hold what the format promises: bytes
    of shape (n, 3072), as many labels, each of a class, and distinct names of classes. How many
    images a member has to hold is what the archive itself says (``num_cases_per_batch``), else, for
    all that are alike in the original, what the first one holds; a line says so where it is not the
    original's number.

    Raises:
        UserError: If anything is not as promised; the line names the source and the member.
    """
    try:
        with _named(source):
            members = (_unpacked if source.is_dir() else _packed)(source, layout)
            with _named(layout.meta):
                classes = _names(members[layout.meta], layout.names)
                images = _images_said(members[layout.meta])
            parts = []
            for name in (*layout.train, layout.test):
                if name == layout.test and layout.test_images != layout.train_images:
                    images = None
                with _named(name):
                    batch = members.pop(name)
                    parts.append(_images(batch, layout.labels, len(classes), images))
                images = len(parts[0].labels)
            if images != layout.train_images:
                said = "%s: %d images in %s, %d in the original"
                log.info(said, source, images, layout.train[0], layout.train_images)
    except Bad as error:
        raise UserError(str(error)) from error
    *train, test = parts
    pixels, labels = torch.cat([p.images for p in train]), torch.cat([p.labels for p in train])
    return ImageData(Split(pixels, labels), test, classes)


def _unpacked(folder: Path, layout: Layout) -> dict[str, Member]:
    """Unpickle each member of a folder; they are the original's, of which no archive vouches."""
    bad, found = [], {}
    for name, md5 in layout.digests.items():
        try:
            content = untrusted.read(folder / name, MAX_MEMBER)
            if (digest := hashlib.md5(content).hexdigest()) != md5:
                raise untrusted.Unreadable(f"md5 is {digest}, expected {md5}")
        except (OSError, untrusted.Unreadable) as error:
            bad.append(f"{name}: {getattr(error, 'strerror', None) or error}")
        else:
            with _named(name):
                found[name] = unpickle_arrays(content)
    if bad:
        raise Bad(f"{'; '.join(bad)}; remove the folder to have {layout.file} downloaded")
    return found


def _packed(archive: Path, layout: Layout) -> dict[str, Member]:
    """Unpickle each member, by its name; nothing else may be in the archive."""
    wanted = {f"{layout.folder}/{name}": name for name in layout.digests}
    harmless = {layout.folder, f"{layout.folder}/{layout.ignored}"}
    found: dict[str, Member] = {}
    seen: set[str] = set()
    try:
        with open_regular(archive) as stream, tarfile.open(fileobj=stream, mode="r:gz") as tar:
            for member in tar:
                path = str(PurePosixPath(member.name))
                if path in seen:
                    raise Bad(f"{show_value(path)} is there twice")
                seen.add(path)
                if path not in wanted:
                    if path not in harmless:
                        raise Bad(f"{show_value(path)} has no place in it")
                    continue
                with _named(wanted[path]):
                    if not member.isfile():
                        raise Bad("no regular file")
                    if member.size > MAX_MEMBER:
                        raise Bad(f"{member.size} bytes, must be at most {MAX_MEMBER}")
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    found[wanted[path]] = unpickle_arrays(content.read())
    except Bad:
        raise
    except Exception as error:  # whatever tarfile, gzip and zlib make of a damaged file
        said = show_value(str(error) or type(error).__name__)
        raise Bad(f"can't be read as a .tar.gz ({said})") from error
    for path, name in wanted.items():
        if name not in found:
            raise Bad(f"{path} is missing")
    return found


def _names(meta: Member, key: str) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise Bad(f"{key} must be a list of names")
    if len(names) < 2:
        raise Bad(f"{key} must have at least 2 names, not {len(names)}")
    for name, count in Counter(names).items():
        if count > 1:
            raise Bad(f"{key} has {show_value(name)} twice")
    return tuple(names)


def _images_said(meta: Member) -> int | None:
    said = meta.get("num_cases_per_batch")
    if said is not None and (type(said) is not int or said < 1):
        raise Bad("num_cases_per_batch must be an integer of at least 1")
    return said


def _images(batch: Member, key: str, classes: int, expected: int | None) -> Split:
    data = batch.get("data")
    if not isinstance(data, Array):
        raise Bad("data must be an array of bytes")
    if data.code != "u1":
        raise Bad(f"data has elements of type {show_value(data.code)}, must be u1, bytes")
    if len(data.shape) != 2 or data.shape[0] < 1 or data.shape[1] != PIXELS:
        raise Bad(f"data has the shape {show_value(data.shape)}, must be (n, {PIXELS})")
    count = data.shape[0]
    if expected is not None and count != expected:
        raise Bad(f"{show_value(count)} images, must be {expected}")
    labels = batch.get(key)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise Bad(f"{key} must be a list of integers")
    for name, value in batch.items():  # file names, too
        if isinstance(value, list) and len(value) != count:
            raise Bad(f"{len(value)} {show_value(name)} for {show_value(count)} images")
    for label in labels:
        if not 0 <= label < classes:
            raise Bad(f"{key} has {show_value(label)}, must be 0 to {classes - 1}")
    pixels = torch.from_numpy(data.bytes().copy())  # the file's bytes can't be written to
    return Split(pixels.view(-1, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor(labels))

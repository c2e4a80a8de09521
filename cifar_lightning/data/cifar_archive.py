"""Reads the archives of the CIFAR family, and believes nothing that is in them.

The format is a gzipped tar of Python 2 pickles. `Layout` describes what an archive promises; what
does not fit is named, since images with another one's labels train as silently as good ones.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from cifar_lightning.data.array_unpickler import (
    Array,
    Bad,
    Member,
    show_value,
    unpickle_arrays,
    unpickling_error,
)
from cifar_lightning.data.images import IMAGE_SIZE, ImageData, Split
from cifar_lightning.errors import UserError
from cifar_lightning.system.files import open_regular

log = logging.getLogger(__name__)

ARCHIVE = "cifar-10-python.tar.gz"
PIXELS = 3 * IMAGE_SIZE * IMAGE_SIZE
# Bytes of the longest member, CIFAR-100's: the pixels, and names and labels beside them.
MAX_MEMBER = 50_000 * (PIXELS + 512)


@dataclass(frozen=True)
class Layout:
    """What an archive of the family promises.

    Attributes:
        folder: The one that everything is in.
        train: Members with training images, in their order, and how many each has in the original.
        test: Those with test images.
        meta: The member with the names of the classes.
        names: The key of the list of names there.
        labels: The key of the list of labels beside the images.
        others: Files that may lie there, too, and are not read.
    """

    folder: str
    train: Mapping[str, int]
    test: Mapping[str, int]
    meta: str
    names: str
    labels: str
    others: tuple[str, ...] = ("readme.html",)


CIFAR10 = Layout(
    folder="cifar-10-batches-py",
    train={f"data_batch_{number}": 10_000 for number in range(1, 6)},
    test={"test_batch": 10_000},
    meta="batches.meta",
    names="label_names",
    labels="labels",
)


@contextmanager
def _named(place: object) -> Iterator[None]:
    try:
        yield
    except Bad as error:
        raise Bad(f"{place}: {error}") from error


def read(archive: Path, layout: Layout = CIFAR10) -> ImageData:
    """Read a whole archive.

    Every member has to be there once and at its place, and to hold what the format promises: bytes
    of shape (n, 3072), as many labels, each of a class, and distinct names of classes. How many
    images a member has to hold is what the archive itself says (``num_cases_per_batch``), else, for
    all alike, what the first one holds; a line says so where it is not the original's number.

    Raises:
        UserError: If anything is not as promised; the line names the archive and the member.
    """
    try:
        with _named(archive):
            members = _members(archive, layout)
            with _named(layout.meta):
                classes = _names(members[layout.meta], layout)
                said = _images_said(members[layout.meta])
            parts: dict[str, Split] = {}
            for name, original in {**layout.train, **layout.test}.items():
                expected = said or (original if parts else None)
                with _named(name):
                    part = _images(members.pop(name), layout, len(classes), expected)
                if not parts and len(part.labels) != original:
                    said = len(part.labels)
                    log.info(
                        "%s: %d images in %s, %d in the original", archive, said, name, original
                    )
                parts[name] = part
    except Bad as error:
        raise UserError(str(error)) from error
    train, test = (
        Split(
            torch.cat([parts[name].images for name in names]),
            torch.cat([parts[name].labels for name in names]),
        )
        for names in (layout.train, layout.test)
    )
    return ImageData(train, test, classes)


def _members(archive: Path, layout: Layout) -> dict[str, Member]:
    """Unpickle each member, by its name; nothing else may be in the archive."""
    wanted = {
        f"{layout.folder}/{name}": name for name in (*layout.train, *layout.test, layout.meta)
    }
    harmless = {layout.folder, *(f"{layout.folder}/{name}" for name in layout.others)}
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
        raise Bad(f"can't be read as a .tar.gz ({unpickling_error(error)})") from error
    for path, name in wanted.items():
        if name not in found:
            raise Bad(f"{path} is missing")
    return found


def _names(meta: Member, layout: Layout) -> tuple[str, ...]:
    names = meta.get(layout.names)
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise Bad(f"{layout.names} must be a list of names")
    if len(names) < 2:
        raise Bad(f"{layout.names} must have at least 2 names, not {len(names)}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Bad(f"{layout.names} has {show_value(name)} twice")
        seen.add(name)
    return tuple(names)


def _images_said(meta: Member) -> int | None:
    said = meta.get("num_cases_per_batch")
    if said is not None and (type(said) is not int or said < 1):
        raise Bad("num_cases_per_batch must be an integer of at least 1")
    return said


def _images(batch: Member, layout: Layout, classes: int, expected: int | None) -> Split:
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
    labels = batch.get(layout.labels)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise Bad(f"{layout.labels} must be a list of integers")
    for key, value in batch.items():  # file names, too, and CIFAR-100's other labels
        if isinstance(value, list) and len(value) != count:
            raise Bad(f"{len(value)} {show_value(key)} for {show_value(count)} images")
    for label in labels:
        if not 0 <= label < classes:
            raise Bad(f"{layout.labels} has {show_value(label)}, must be 0 to {classes - 1}")
    pixels = torch.from_numpy(data.bytes().copy())  # the file's bytes can't be written to
    return Split(pixels.view(-1, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor(labels))

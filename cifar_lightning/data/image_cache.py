"""The decoded images of a folder, kept in one file that says what they were made of."""

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from cifar_lightning.data.folder_files import FolderFiles
from cifar_lightning.data.image_files import DECODING, decode_files, digests_of
from cifar_lightning.data.images import IMAGE_SIZE, ImageData, Split
from cifar_lightning.system import untrusted
from cifar_lightning.system.files import write_atomically

log = logging.getLogger(__name__)

DECODER = f"decoder {DECODING}, Pillow {PIL.__version__}"


@dataclass(frozen=True)
class DecodedFolder:
    """What a folder's files gave.

    Attributes:
        files: They.
        resize: Whether images of another size are used.
        images: Of each split, uint8, without those that are no use.
        digests: Of each file's content.
        errors: Of each split, by the file's index: why it is no use.
    """

    files: FolderFiles
    resize: bool
    images: dict[str, Tensor]
    digests: dict[str, list[bytes]]
    errors: dict[str, dict[int, str]]

    @property
    def bad(self) -> list[tuple[Path, str]]:
        """Each file that is no use, with the reason."""
        return [
            (self.files.paths[split][index], reason)
            for split, errors in self.errors.items()
            for index, reason in errors.items()
        ]

    @property
    def without_images(self) -> list[str]:
        """Each class of a split that has no image left."""
        return [
            f"{split}/{self.files.classes[label]}"
            for split, errors in self.errors.items()
            for label, count in Counter(self.files.labels[split]).items()
            if count == sum(self.files.labels[split][index] == label for index in errors)
        ]

    def data(self) -> ImageData:
        """Make a data set of all others.

        Raises:
            RuntimeError: If they are not as many images as the files.
        """
        content = sha256(json.dumps([DECODING, self.resize, self.files.classes]).encode())
        splits = {}
        for split, errors in self.errors.items():
            labels = self.files.labels[split]
            kept = [index for index in range(len(labels)) if index not in errors]
            content.update(split.encode())
            for index in kept:
                content.update(labels[index].to_bytes(4, "big") + self.digests[split][index])
            splits[split] = Split(
                # Bytes of this shape, whatever a cache says they are.
                self.images[split].view(torch.uint8).view(len(kept), 3, IMAGE_SIZE, IMAGE_SIZE),
                torch.tensor([labels[index] for index in kept], dtype=torch.long),
            )
        train, val = splits["train"], splits.get("val")
        own = None
        if val is not None:
            own = torch.arange(len(train.labels), len(train.labels) + len(val.labels))
            train = Split(
                torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels])
            )
        return ImageData(
            train, splits["test"], self.files.classes, own, content.hexdigest()[:16], DECODER
        )


@dataclass(frozen=True)
class ImageCache:
    """One folder's decoded images, in one file."""

    files: FolderFiles
    resize: bool
    path: Path

    def read(self) -> DecodedFolder | None:
        """Give what is kept; None if it was made of other files, or is not whole."""
        if not self.path.is_file():
            return None
        digests = {split: digests_of(paths) for split, paths in self.files.paths.items()}
        try:
            with safe_open(self.path, framework="pt") as stored:
                about = stored.metadata()
                errors = untrusted.decode(about["errors"], dict[str, dict[int, str]])
                images = {split: stored.get_tensor(split) for split in self.files.paths}
            decoded = DecodedFolder(self.files, self.resize, images, digests, errors)
            return decoded if about == self._about(decoded) else None
        except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError):
            log.warning("%s is damaged; decoding the images again", self.path)
            return None

    def decode(self) -> DecodedFolder:
        """Decode the files; nothing is kept yet."""
        images, digests, errors = {}, {}, {}
        for split, paths in self.files.paths.items():
            decoded = decode_files(paths, self.resize, f"decode {split}")
            digests[split], errors[split] = decoded.digests, decoded.errors
            every = torch.from_numpy(decoded.images)
            used = torch.ones(len(paths), dtype=torch.bool)
            used[[*decoded.errors]] = False
            images[split] = every[used] if decoded.errors else every
        return DecodedFolder(self.files, self.resize, images, digests, errors)

    def write(self, decoded: DecodedFolder) -> None:
        """Keep what was decoded, with the digests of the files as they were then."""
        write_atomically(self.path, to_bytes(decoded.images, self._about(decoded)))

    def _about(self, decoded: DecodedFolder) -> dict[str, str]:
        """Say what images were made of: names and digests of files, and how they are decoded."""
        content = sha256(f"{DECODER} {self.resize}".encode())
        digests = chain.from_iterable(decoded.digests.values())
        for path, digest in zip(
            chain.from_iterable(self.files.paths.values()), digests, strict=True
        ):
            content.update(os.fsencode(path.relative_to(self.files.root)) + b"\0" + digest)
        return {
            "content": content.hexdigest(),
            "errors": json.dumps(decoded.errors),
            "fingerprint": decoded.data().pixels,
        }

"""A folder of images: ``train/<class>/*``, ``test/<class>/*``, and perhaps ``val/<class>/*``."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cifar_lightning.data.folder_files import find_files
from cifar_lightning.data.image_cache import DecodedFolder, ImageCache
from cifar_lightning.data.image_files import WRONG_SIZE
from cifar_lightning.data.images import ImageData
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError

log = logging.getLogger(__name__)

MAX_ALIKE = 20  # files named that are no use for one reason


def read_image_folder(
    root: str, cache_dir: str, resize: bool = False, skip_bad: bool = False
) -> ImageData:
    """Read ``root/train/<class>/*`` and ``root/test/<class>/*``; ``root/val`` validates, if there.

    The decoded tensors of one ``root`` are kept in one file in ``cache_dir``, with a digest of the
    files that they were decoded from. All files are read each time to compare it (a second for
    60,000 images): folders that were unpacked, copied or mounted have equal names, sizes and times.

    Args:
        root: The folder.
        cache_dir: Where decoded images are kept.
        resize: Take images of any size: the largest square in their middle, made 32x32.
        skip_bad: Leave out what is no use.

    Raises:
        UserError: If a folder or class is missing, or images are no use; all of them are named.
    """
    base = Path(root)
    try:
        files = find_files(base)
    except OSError as error:
        raise UserError(f"data.root={root}: {error.filename}: {error.strerror}") from error
    # Of this place alone: folders with equal files share nothing.
    place = sha256(os.fsencode(base.resolve())).hexdigest()[:16]
    cache = ImageCache(files, resize, Path(cache_dir) / f"{place}.safetensors")
    kept = cache.read()
    decoded = kept or cache.decode()
    _check_usable(decoded, skip_bad)
    if kept is None:
        cache.write(decoded)
    return decoded.data()


def _check_usable(decoded: DecodedFolder, skip_bad: bool) -> None:
    """Name the images that are no use, all at once, and see what is left of each class."""
    bad = decoded.bad
    if not bad:
        return
    alike = Counter(reason for _, reason in bad)
    lines, named = [], Counter[str]()
    for path, reason in bad:
        named[reason] += 1
        if named[reason] <= MAX_ALIKE:
            lines.append(f"{path}: {reason}")
    lines += [
        f"{decoded.files.root}: {count - MAX_ALIKE} more: {reason}"
        for reason, count in alike.items()
        if count > MAX_ALIKE
    ]
    root = f"data.root={decoded.files.root}"
    if skip_bad:
        for line in lines:
            log.warning("left out: %s", line)
        if empty := decoded.without_images:
            raise UserError(f"{root}: no image of use in {', '.join(empty)}")
        return
    hint = "data.skip_bad=true leaves out what is no use"
    if any(reason.endswith(WRONG_SIZE) for reason in alike):
        hint = f"data.resize=true takes images of any size; {hint}"
    if len(bad) == 1:
        raise UserError(f"{lines[0]}; {hint}")
    total = sum(map(len, decoded.files.paths.values()))
    raise UserError("\n".join([*lines, f"{root}: {len(bad)} of {total} images are no use; {hint}"]))


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderDataModule(ImageDataModule):
    """A folder of images; arguments as for `read_image_folder`."""

    root: str
    cache_dir: str
    resize: bool = False
    skip_bad: bool = False

    def read(self) -> ImageData:
        images = read_image_folder(self.root, self.cache_dir, self.resize, self.skip_bad)
        if images.val is not None:
            said = "%s has a validation split of %d images: data.val_fraction is not used"
            log.info(said, self.root, len(images.val))
        return images

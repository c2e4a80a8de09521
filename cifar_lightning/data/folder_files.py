"""Which files of a folder make a data set: its splits, its classes, and what is left out."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from cifar_lightning.data.found_files import entries, find_below, kind_of
from cifar_lightning.errors import UserError

log = logging.getLogger(__name__)

VALIDATION = ("val", "valid", "validation")
MAX_NAMED = 20


@dataclass(frozen=True)
class FolderFiles:
    """Which files make a data set.

    Attributes:
        root: Their folder.
        classes: The classes' names.
        paths: Of each split's images, class by class: train and test, perhaps val.
        labels: Of the same.
    """

    root: Path
    classes: tuple[str, ...]
    paths: dict[str, list[Path]]
    labels: dict[str, list[int]]


def find_files(root: Path) -> FolderFiles:
    """Find the images of each split and class, and say how many other files are left out.

    Raises:
        UserError: If a split or one of its classes is missing or empty.
    """
    left_out: Counter[str] = Counter()
    folders = _splits(root, left_out)
    splits = {split: _classes(folder, left_out) for split, folder in folders.items()}
    every = {name for classes in splits.values() for name in classes}
    if missing := [
        f"class {name!r} is missing from {folders[split]}"
        for split, classes in splits.items()
        for name in _in_order(every - classes.keys())
    ]:
        raise UserError(f"data.root={root}: {_shortened(missing, '; ')}")
    files = FolderFiles(root, tuple(_in_order(every)), {}, {})
    empty = []
    for split, classes in splits.items():
        files.paths[split], files.labels[split] = [], []
        for label, name in enumerate(files.classes):
            found = find_below(classes[name])
            left_out += found.others
            files.paths[split] += found.images
            files.labels[split] += [label] * len(found.images)
            if not found.images:
                empty.append(f"{classes[name]}: no image in it")
    if left_out:
        told = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
        log.info("%s: left out: %s", root, told)
    if empty or not every:
        raise UserError(_shortened(empty, "\n") or f"{folders['train']}: no class's folder in it")
    return files


def _splits(root: Path, left_out: Counter[str]) -> dict[str, Path]:
    """Find the folders of the splits; the source's own validation split is one where it is."""
    there = {one.name: Path(one.path) for one in entries(root)} if root.is_dir() else {}
    inside = [name for name, path in there.items() if path.is_dir()]
    for split in ("train", "test"):
        if split not in inside:
            told = f"; there are: {_shortened(inside, ', ')}" if inside else ""
            raise UserError(f"data.root={root}: there is no folder {root / split}{told}")
    own = [name for name in VALIDATION if name in inside]
    if len(own) > 1:
        raise UserError(f"data.root={root}: only one of {', '.join(own)} can be for validation")
    splits = {"train": there["train"], "test": there["test"]}
    if own:
        splits["val"] = there[own[0]]
    left_out.update(
        f"folder called {name}" if name in inside else kind_of(path)
        for name, path in there.items()
        if path not in splits.values()
    )
    return splits


def _classes(split: Path, left_out: Counter[str]) -> dict[str, Path]:
    """Find the folder of each class; names are compared as one reads them, however encoded."""
    classes: dict[str, Path] = {}
    for one in entries(split):
        path, name = Path(one.path), normalize("NFC", one.name)
        if not path.is_dir():
            left_out[f"{kind_of(path)} in no class's folder"] += 1
        elif name in classes:
            raise UserError(f"{path}: reads the same as {classes[name].name!a}")
        else:
            classes[name] = path
    return classes


def _in_order(names: Iterable[str]) -> list[str]:
    """Sort as torchvision does, by characters; but numbers as numbers: 2 before 10."""
    names = sorted(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=int)
    return names


def _shortened(told: Sequence[str], separator: str) -> str:
    more = [f"and {len(told) - MAX_NAMED} more"] if len(told) > MAX_NAMED else []
    return separator.join([*told[:MAX_NAMED], *more])

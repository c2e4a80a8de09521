"""Which runs there are, and which lines of the table they made: a cache beside the table."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cifar_lightning.runs.cache import IN_DOUBT, read_cache, stamp
from cifar_lightning.runs.folder import MEASUREMENTS, RECORD, RUNS, run_folders
from cifar_lightning.runs.identity import Kin
from cifar_lightning.runs.run import Run, listed_run

log = logging.getLogger(__name__)

INDEX = ".results.index"
MANY = 300  # runs that take a second to read


@dataclass(frozen=True)
class Listed:
    """What is known of a folder where runs are.

    Attributes:
        record: Stamp of the run's record.
        everything: Stamp of that, of the measurements and of their folder.
        files: Names of the measurements.
        name: Of the run; None if there is none.
        label: Its ID.
        kin: What it has in common with others.
        started: When it was.
        rows: How many it has in the table.
        widths: Of their cells in ``results.md``.
    """

    record: int
    everything: int
    files: list[str]
    name: str | None = None
    label: str = ""
    kin: Kin | None = None
    started: str = ""
    rows: int = 0
    widths: list[int] = field(default_factory=list)

    @classmethod
    def now(cls, outputs: Path, name: str) -> Self:
        """Take the stamps of a folder; what it holds has still to be read."""
        measurements = f"{outputs}/{RUNS}/{name}/{MEASUREMENTS}"
        with suppress(OSError):
            files = sorted(os.listdir(measurements))  # noqa: PTH208
            return cls(_record_stamp(outputs, name), _full_stamp(outputs, name, files), files)
        return cls(_record_stamp(outputs, name), _full_stamp(outputs, name, []), [])

    def holds(self, outputs: Path, name: str) -> bool:
        """Tell whether nothing in the folder has changed."""
        return IN_DOUBT != self.everything == _full_stamp(outputs, name, self.files)

    def record_holds(self, outputs: Path, name: str) -> bool:
        """Tell whether the run's record has not changed."""
        return IN_DOUBT != self.record == _record_stamp(outputs, name)


def _record_stamp(outputs: Path, name: str) -> int:
    return stamp(f"{outputs}/{RUNS}/{name}/{RECORD}")


def _full_stamp(outputs: Path, name: str, files: Sequence[str]) -> int:
    folder = f"{outputs}/{RUNS}/{name}"
    measurements = f"{folder}/{MEASUREMENTS}"
    return stamp(f"{folder}/{RECORD}", measurements, *(f"{measurements}/{file}" for file in files))


@dataclass(frozen=True)
class Index:
    """What the table was made of.

    Attributes:
        tables: SHA-256 of the tables that it belongs to, by their names.
        widths: Of the columns of ``results.md``.
        folders: By their names, in the order of the table's rows.
    """

    tables: Mapping[str, str] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    folders: Mapping[str, Listed] = field(default_factory=dict)

    @classmethod
    def read(cls, outputs: Path) -> Self:
        """Read it; an empty one if there is none that could be used."""
        return read_cache(outputs / INDEX, cls) or cls()


@dataclass(frozen=True)
class Named:
    """A run by what people call it, and what it has in common with others."""

    folder: Path
    name: str
    label: str
    kin: Kin

    @classmethod
    def of(cls, folder: Path, run: Run) -> Self:
        return cls(folder, run.name, run.label, Kin.of(run.config))


def named_runs(outputs: Path) -> Iterator[Named | str]:
    """Yield what runs are called, or why one is left out; reads records that have changed."""
    known = Index.read(outputs).folders
    changed = []
    for name in run_folders(outputs):
        entry = known.get(name)
        if entry is not None and entry.kin is not None and entry.record_holds(outputs, name):
            yield Named(outputs / RUNS / name, name, entry.label, entry.kin)
        else:
            changed.append(outputs / RUNS / name)
    tell_reading(len(changed))
    for folder in changed:
        found = listed_run(folder)
        if isinstance(found, Run):
            yield Named.of(folder, found)
        elif found is not None:
            yield found


def tell_reading(runs: int) -> None:
    """Say that runs are read, if there are so many that it takes more than a moment."""
    if runs > MANY:
        log.info("reading %d runs", runs)

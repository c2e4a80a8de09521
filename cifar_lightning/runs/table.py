"""The results table: a view of all records. Runs that have not changed keep their lines in it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

from cifar_lightning.runs import layout
from cifar_lightning.runs.cache import IN_DOUBT, write_cache
from cifar_lightning.runs.folder import RUNS, remove_link, run_folders
from cifar_lightning.runs.identity import Kin
from cifar_lightning.runs.index import INDEX, Index, Listed, tell_reading
from cifar_lightning.runs.results import CSV_COLUMNS, RunResults, warned
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system.files import check_replaceable, open_regular, remove_unfinished
from cifar_lightning.system.garbage import no_garbage_collection
from cifar_lightning.system.locks import check_lock, locked

log = logging.getLogger(__name__)

TABLE_CSV, TABLE_MD = "results.csv", "results.md"
TABLE_LOCK = ".results.lock"
TABLE_DIGESTS = ".results.sha256"  # of the tables written last; others were changed by hand


@dataclass(frozen=True)
class Part:
    """A run's part of the table.

    Attributes:
        csv: Its lines in ``results.csv``.
        md: Its lines in ``results.md``.
        widths: Of that table's columns when the lines were written; empty for new ones.
    """

    listed: Listed
    csv: Sequence[str]
    md: Sequence[str]
    widths: Sequence[int] = ()


def write_table(outputs: Path) -> None:
    """Renew ``results.csv`` and ``results.md`` from every run under ``outputs``.

    Listing, building and replacing happen under one file lock, so of several writers the last one
    has seen what all the others wrote. Runs come in the order in which they were started. A table
    that somebody changed by hand is kept beside the new one.
    """
    lock = locked(outputs / TABLE_LOCK, "waiting for another process that writes the table")
    with lock, no_garbage_collection():  # of many runs it would take a tenth of the time
        remove_unfinished(outputs)
        index = Index.read(outputs)
        earlier = _parts(outputs, index)
        parts = _renewed(outputs, earlier)
        for gone in index.folders.keys() - parts.keys():
            remove_link(outputs, index.folders[gone].label, gone)
        listed = {name: part.listed for name, part in parts.items()}
        needed = {tuple(one.widths) for one in listed.values() if one.rows}
        head, widths = layout.head(needed)
        csv_lines, md_lines = [",".join(CSV_COLUMNS)], head
        for part in parts.values():
            csv_lines += part.csv
            same = part.widths == widths
            md_lines += part.md if same else [layout.aligned(line, widths) for line in part.md]
        views = {TABLE_CSV: _text(csv_lines), TABLE_MD: _text(md_lines)}
        digests = {name: sha256(content).hexdigest() for name, content in views.items()}
        if not earlier or digests != index.tables:
            replace_views(outputs, views, TABLE_DIGESTS)
        renewed = Index(digests, widths, listed)
        if renewed != index:
            write_cache(outputs / INDEX, renewed)


def check_table(outputs: Path) -> None:
    """See that this user can write the table in the end.

    Raises:
        UserError: If not.
    """
    check_lock(outputs / TABLE_LOCK)
    for name in (TABLE_CSV, TABLE_MD, TABLE_DIGESTS, INDEX):
        check_replaceable(outputs / name)


def _parts(outputs: Path, index: Index) -> dict[str, Part]:
    """Take the tables apart by runs; nothing comes of tables that the index does not belong to."""
    if not index.tables:
        if (outputs / INDEX).exists():
            log.info("%s is damaged or by other code: made anew", outputs / INDEX)
        return {}
    texts = {}
    for name in index.tables:
        try:
            with open_regular(outputs / name) as stream:
                texts[name] = stream.read()
        except OSError:
            continue  # lost
    if {name: sha256(text).hexdigest() for name, text in texts.items()} != index.tables:
        log.info("%s does not fit the table: both are made anew", outputs / INDEX)
        return {}
    in_csv, in_md = (iter(texts[name].decode().split("\n")) for name in (TABLE_CSV, TABLE_MD))
    _ = next(in_csv), next(in_md), next(in_md)  # the heads
    parts = {}
    for name, listed in index.folders.items():
        csv_lines, md_lines = ([*islice(lines, listed.rows)] for lines in (in_csv, in_md))
        parts[name] = Part(listed, csv_lines, md_lines, index.widths)
    return parts


def _renewed(outputs: Path, earlier: Mapping[str, Part]) -> dict[str, Part]:
    """Keep the parts of runs that have not changed, and read the others."""
    names = run_folders(outputs)
    kept = {name for name in names if name in earlier and earlier[name].listed.holds(outputs, name)}
    tell_reading(len(names) - len(kept))
    parts = {name: earlier[name] if name in kept else _read(outputs, name) for name in names}
    return dict(sorted(parts.items(), key=lambda part: (part[1].listed.started, part[0])))


def _read(outputs: Path, name: str) -> Part:
    listed = Listed.now(outputs, name)  # before reading: a change in between is seen the next time
    found = RunResults.listed(outputs / RUNS / name)
    rows = sorted(warned([found]), key=lambda row: str(row.variant))
    csv_lines, md_lines = layout.lines_of(rows)
    if found.damaged:  # it is said each time, and may be mended meanwhile
        listed = replace(listed, record=IN_DOUBT, everything=IN_DOUBT)
    if found.run is not None:
        listed = replace(
            listed,
            name=found.run.name,
            label=found.run.label,
            kin=Kin.of(found.run.config),
            started=found.run.started,
            rows=len(rows),
            widths=layout.widths_of(md_lines),
        )
    return Part(listed, csv_lines, md_lines)


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()

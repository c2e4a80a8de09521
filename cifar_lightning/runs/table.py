"""The results table: a view of all records, rebuilt as a whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

from cifar_lightning.runs.markdown import markdown
from cifar_lightning.runs.results import CSV_COLUMNS, Row, RunResults, warned
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system import escaping
from cifar_lightning.system.files import check_replaceable, remove_unfinished
from cifar_lightning.system.locks import check_lock, locked


def write_table(outputs: Path) -> list[Row]:
    """Rebuild ``results.csv`` and ``results.md`` from every run under ``outputs``.

    Listing, building and replacing happen under one file lock, so of several writers the last one
    has seen what all the others wrote. A table that somebody changed by hand is kept beside the
    new one.

    Returns:
        The rows, runs in the order in which they were started.
    """
    with locked(outputs / TABLE_LOCK, "waiting for another process that writes the table"):
        remove_unfinished(outputs)
        rows = warned(RunResults.read_all(outputs))
        rows.sort(key=lambda row: (row.started, row.run, str(row.variant)))
        views = {TABLE_CSV: csv_text(CSV_COLUMNS, map(astuple, rows)), TABLE_MD: markdown(rows)}
        replace_views(outputs, views, TABLE_DIGESTS)
    return rows


Value = str | float | None  # of a cell
TABLE_CSV, TABLE_MD = "results.csv", "results.md"
TABLE_LOCK = ".results.lock"
TABLE_DIGESTS = ".results.sha256"  # of the tables written last; others were changed by hand


def check_table(outputs: Path) -> None:
    """See that this user can write the table in the end.

    Raises:
        UserError: If not.
    """
    check_lock(outputs / TABLE_LOCK)
    for name in (TABLE_CSV, TABLE_MD, TABLE_DIGESTS):
        check_replaceable(outputs / name)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """Write a CSV file's text: floats rounded, texts escaped."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            round(value, 6) if isinstance(value, float) else escaping.csv_cell(value)
            for value in row
        )
    return text.getvalue()

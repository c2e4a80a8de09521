"""The results table: a view of all records, rebuilt as a whole."""

import csv
import io
from collections.abc import Container, Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

from tabulate import tabulate

from cifar_lightning.runs.results import CSV_COLUMNS, Row, RunResults, warned
from cifar_lightning.runs.run import MEGA
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system import escaping
from cifar_lightning.system.files import check_replaceable, remove_unfinished
from cifar_lightning.system.formatting import counted
from cifar_lightning.system.locks import check_lock, locked

Value = str | float | None  # of a cell
TABLE_CSV, TABLE_MD = "results.csv", "results.md"
TABLE_LOCK = ".results.lock"
TABLE_DIGESTS = ".results.sha256"  # of the tables written last; others were changed by hand
HEADER = (
    "ID", "Variant", "Acc. (%)", "Lat. mean (ms)", "Lat. p95 (ms)", "Size (MB)", "Params (M)",
    "MACs (M)", "Device",
)  # fmt: skip


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


def markdown(rows: Iterable[Row]) -> str:
    """Draw the table for people. What is not there is a dash."""
    return draw_table(HEADER, map(_cells, rows), range(2, 8))


def draw_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Container[int]
) -> str:
    """Draw a Markdown table; what Markdown would interpret in a cell is escaped.

    Args:
        header: The columns' names.
        rows: A text for each column.
        numeric: Columns of numbers, which stand to the right.
    """
    columns = range(len(header))
    drawn = tabulate(
        [list(map(escaping.markdown_cell, row)) for row in rows],
        list(map(escaping.markdown_cell, header)),
        tablefmt="pipe",
        disable_numparse=True,
        colglobalalign="left",
        colalign=["right" if column in numeric else "left" for column in columns],
    )
    return f"{drawn}\n"


def number(value: float | None, digits: int) -> str:
    """Write a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _cells(row: Row) -> tuple[str, ...]:
    teacher = f" (taught by {row.teacher.rpartition('-')[2]})" if row.teacher else ""
    device = row.device or "-"
    if row.device and row.threads and row.clock == "perf_counter":
        device += f", {counted(row.threads, 'thread')}"
    marks = row.marks.split(", ") if row.marks else []
    device += "".join(f" ({mark})" for mark in marks if mark != row.status)
    variant = row.variant or "-"
    if row.status not in ("ok", "finished"):
        variant += f" ({row.status})"
    return (
        row.id + teacher,
        variant,
        number(row.test_acc, 2),
        number(row.lat_mean_ms, 3),
        number(row.lat_p95_ms, 3),
        number(row.size_mb, 2),
        number(row.params / MEGA, 2),
        number(row.macs / MEGA, 2),
        device,
    )

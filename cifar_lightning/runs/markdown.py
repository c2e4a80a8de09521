"""Tables of rows for people."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from tabulate import tabulate

from cifar_lightning.runs.results import Row
from cifar_lightning.runs.run import MEGA
from cifar_lightning.system import escaping

HEADER = (
    "ID", "Variant", "Acc. (%)", "Lat. mean (ms)", "Lat. p95 (ms)", "Size (MB)", "Params (M)",
    "MACs (M)", "Device",
)  # fmt: skip


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
    if row.device and row.clock == "perf_counter":
        device += f", {row.threads} thread" + ("s" if row.threads != 1 else "")
    if row.protocol == "quick":
        device += " (quick)"
    if row.lat_converged is False:
        device += " (not converged)"
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

"""Tables of rows for people."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Container, Mapping, Sequence
from typing import Any

from cifar_lightning.runs.results import Row
from cifar_lightning.runs.run import MEGA
from cifar_lightning.system import escaping


def markdown(rows: list[Row]) -> str:
    """Draw the table for people. What is not there is a dash."""
    header = (
        "ID",
        "Variant",
        "Acc. (%)",
        "Lat. mean (ms)",
        "Lat. p95 (ms)",
        "Size (MB)",
        "Params (M)",
        "MACs (M)",
        "Device",
    )
    lines = [header] + [_cells(row) for row in rows]
    return draw_table(lines, range(2, 8))


def group_means(rows: list[Row]) -> str:
    """Draw mean ± standard deviation over the runs that differ only in the seed.

    Returns:
        The table, a line for each of those groups on each device; empty if there is no group. A
        group has no latency where one of its measurements was disturbed.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["test_acc"] is not None:
            like = operator.itemgetter(
                "group", "variant", "recipe", "device", "hardware", "threads", "protocol", "torch"
            )(row)
            groups.setdefault(like, []).append(row)
    lines: list[tuple[str, ...]] = [
        ("Group", "Variant", "Seeds", "Acc. (%)", "Lat. mean (ms)", "Lat. p95 (ms)")
    ]
    for (group, variant, *_), alike in groups.items():
        if len(alike) > 1:
            accuracy = _mean_and_deviation([row["test_acc"] for row in alike], 2)
            latencies = [
                _mean_and_deviation(
                    [row[key] if row["status"] != "disturbed" else None for row in alike], 3
                )
                for key in ("lat_mean_ms", "lat_p95_ms")
            ]
            lines.append((group, variant or "-", str(len(alike)), accuracy, *latencies))
    return draw_table(lines, range(2, 6)) if len(lines) > 1 else ""


def _mean_and_deviation(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{statistics.fmean(known):.{digits}f} ± {statistics.stdev(known):.{digits}f}"


def draw_table(lines: Sequence[tuple[str, ...]], numeric: Container[int]) -> str:
    """Draw a Markdown table.

    Args:
        lines: The header, then the rows; what Markdown would interpret in them is escaped.
        numeric: Columns of numbers, which stand to the right.
    """
    lines = [tuple(map(escaping.markdown_cell, line)) for line in lines]
    header = lines[0]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = [
        "-" * (width - 1) + ":" if column in numeric else "-" * width
        for column, width in enumerate(widths)
    ]
    drawn = [
        "| "
        + " | ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (header, tuple(rule), *lines[1:])
    ]
    return "\n".join(drawn) + "\n"


def _taught(row: Mapping[str, Any]) -> str:
    """Name a row, and its teacher if it had one."""
    teacher = row["teacher"]
    return f"{row['id']} (taught by {teacher.rpartition('-')[2]})" if teacher else str(row["id"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def millions(value: int | None) -> float | None:
        return None if value is None else value / MEGA

    device = row["device"] or "-"
    if row["device"] and row["clock"] == "perf_counter":
        device += f", {row['threads']} thread" + ("s" if row["threads"] != 1 else "")
    if row["protocol"] == "quick":
        device += " (quick)"
    if row["lat_converged"] is False:
        device += " (not converged)"
    variant = row["variant"] or "-"
    if row["status"] not in ("ok", "finished"):
        variant += f" ({row['status']})"
    return (
        _taught(row),
        variant,
        number(row["test_acc"], 2),
        number(row["lat_mean_ms"], 3),
        number(row["lat_p95_ms"], 3),
        number(row["size_mb"], 2),
        number(millions(row["params"]), 2),
        number(millions(row["macs"]), 2),
        device,
    )

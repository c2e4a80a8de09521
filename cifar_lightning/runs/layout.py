"""What tables look like: as CSV, and as Markdown for people."""

import csv
import io
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import astuple

from tabulate import tabulate

from cifar_lightning.runs.results import Row
from cifar_lightning.runs.run import MEGA
from cifar_lightning.system import escaping
from cifar_lightning.system.formatting import counted

Value = str | float | None  # of a cell
Varied = Mapping[str, Mapping[str, str]]  # in a sweep: values of keys, by the runs' names
# "Training" is the rest of a run's name: optimizer, schedule, epochs, seed and 8 hex digits.
HEADER = (
    "ID", "Network", "Training", "Variant", "Acc. (%)", "Lat. mean (ms)", "Lat. p95 (ms)",
    "Size (MB)", "Params (M)", "MACs (M)", "Device",
)  # fmt: skip
NUMERIC = range(4, 10)  # of these columns
TOLD_ELSEWHERE = ("id", "model", "seed", "outputs")  # keys that need no column of their own
BETWEEN = " | "  # cells; in a cell a bar has a backslash before it


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
    return draw_table(HEADER, map(_cells, rows), NUMERIC)


def sweep_table(rows: Iterable[Row], varied: Varied) -> str:
    """Draw the table of a sweep: with what varies in it in place of the training runs' names."""
    keys = varied_keys(varied)
    header = [*HEADER[:2], *keys, "Seed", *HEADER[3:]]
    cells = []
    for row in rows:
        label, network, _, *figures = _cells(row)
        cells.append([label, network, *values_of(row.run, varied), str(row.seed), *figures])
    shift = len(header) - len(HEADER)
    seed = len(keys) + 2
    return draw_table(header, cells, {seed, *(column + shift for column in NUMERIC)})


def varied_keys(varied: Varied) -> list[str]:
    """List the keys that vary in a sweep and that no other column tells."""
    keys = dict.fromkeys(key for of_run in varied.values() for key in of_run)
    return [
        key for key in keys if key not in TOLD_ELSEWHERE and key.partition(".")[0] != "benchmark"
    ]


def values_of(run: str, varied: Varied) -> list[str]:
    """Tell a run's values of the keys that vary, by its name; a dash where it has none."""
    return [varied.get(run, {}).get(key, "-") for key in varied_keys(varied)]


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


def lines_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Write rows as lines of CSV, and of Markdown whose columns are not yet `aligned`."""
    in_csv = csv_text((), map(astuple, rows)).splitlines()[1:]
    cells = ([*map(escaping.markdown_cell, _cells(row))] for row in rows)
    return in_csv, [f"| {BETWEEN.join(row)} |" for row in cells]


def widths_of(lines: Iterable[str]) -> list[int]:
    """Tell how wide the columns have to be at least for such lines."""
    return [max(map(len, column)) for column in zip(*map(_split, lines), strict=True)]


def head(widths: Iterable[Sequence[int]]) -> tuple[list[str], list[int]]:
    """Draw the two lines above the rows; return them with the columns' widths.

    Args:
        widths: What rows need.
    """
    widest = map(max, zip([0] * len(HEADER), *widths, strict=True))
    drawn = draw_table(HEADER, [["x" * width for width in widest]], NUMERIC).splitlines()
    return drawn[:2], [len(cell) for cell in drawn[0][2:-2].split(BETWEEN)]


def aligned(line: str, widths: Sequence[int]) -> str:
    """Draw a row as wide as the others."""
    cells = [
        cell.rjust(width) if column in NUMERIC else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(_split(line), widths, strict=True))
    ]
    return f"| {BETWEEN.join(cells)} |"


def number(value: float | None, digits: int) -> str:
    """Write a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line[2:-2].split(BETWEEN)]


def _cells(row: Row) -> tuple[str, ...]:
    origins = {"from": row.init, "taught by": row.teacher}
    told = ", ".join(f"{how} {run.rpartition('-')[2]}" for how, run in origins.items() if run)
    device = row.device or "-"
    if row.device and row.threads and row.clock == "perf_counter":
        device += f", {counted(row.threads, 'thread')}"
    marks = row.marks.split(", ") if row.marks else []
    device += "".join(f" ({mark})" for mark in marks if mark != row.status)
    variant = row.variant or "-"
    if row.status not in ("ok", "finished"):
        variant += f" ({row.status})"
    return (
        f"{row.id} ({told})" if told else row.id,
        row.model,
        row.run.removeprefix(f"{row.model}-"),
        variant,
        number(row.test_acc, 2),
        number(row.lat_mean_ms, 3),
        number(row.lat_p95_ms, 3),
        number(row.size_mb, 2),
        number(row.params / MEGA, 2),
        number(row.macs / MEGA, 2),
        device,
    )

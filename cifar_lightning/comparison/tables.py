"""Which columns the tables of a leaderboard have, and the order of their rows."""

from collections.abc import Sequence
from dataclasses import replace

from cifar_lightning.comparison.columns import COLUMNS, Column, rank_and_marks
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.errors import unknown_name
from cifar_lightning.runs.layout import Varied, draw_table, number, values_of, varied_keys


def _accuracy_over_seeds(leaderboard: Leaderboard, entry: Entry) -> str:
    return f"{entry.accuracy.mean:.2f} ± {number(entry.accuracy.std, 2)}"


# What the page shows at first, as wide as a screen.
FIRST = (
    "id", "model", "variant", "threads", "seeds", "test_acc", "lat_rel", "lat_rank", "slower_pct",
    "lat_mean_ms", "lat_p95_ms", "size_mb", "marks",
)  # fmt: skip
RANK_AND_MARKS = replace(COLUMNS["pareto"], header="Lat. rank", text=rank_and_marks)
# What fits into a terminal; the rest is on the page and in table.csv.
SUMMARY = [
    COLUMNS[name]
    for name in (
        "id", "model", "variant", "threads", "seeds", "test_acc", "lat_rel", "lat_mean_ms",
        "lat_p95_ms", "size_mb",
    )
] + [RANK_AND_MARKS]  # fmt: skip


def over_seeds(varied: Varied) -> list[Column]:
    """Choose the columns of a sweep's means over seeds; what varies in it is among them."""

    def of(place: int, key: str) -> Column:
        def value(leaderboard: Leaderboard, entry: Entry) -> str:
            return values_of(entry.group.runs[0].name, varied)[place]

        return Column(value, key, numeric=False)

    return [
        *(COLUMNS[name] for name in ("id", "model")),
        *(of(place, key) for place, key in enumerate(varied_keys(varied))),
        *(COLUMNS[name] for name in ("variant", "threads", "seeds")),
        replace(COLUMNS["test_acc"], text=_accuracy_over_seeds),
        *(COLUMNS[name] for name in ("lat_mean_ms", "lat_p95_ms")),
    ]


def table(
    leaderboard: Leaderboard, entries: Sequence[Entry], columns: Sequence[Column] = SUMMARY
) -> str:
    """Draw columns of a leaderboard in Markdown."""
    rows = [[column.shown(leaderboard, entry) for column in columns] for entry in entries]
    numeric = [index for index, column in enumerate(columns) if column.numeric]
    return draw_table([str(column.header) for column in columns], rows, numeric)


def known(entries: Sequence[tuple[Leaderboard, Entry]]) -> dict[str, Column]:
    """Choose the columns for people that tell something of some entry."""
    return {
        name: column
        for name, column in COLUMNS.items()
        if column.header and any(column.value(*one) is not None for one in entries)
    }


def in_order(leaderboard: Leaderboard, sort: str) -> list[Entry]:
    """Sort a leaderboard's entries by a column, the best first; what has no value comes last."""
    column = COLUMNS[sort.removeprefix("-")]
    reverse = column.highest != sort.startswith("-")

    def order(entry: Entry) -> tuple[bool, float, str]:
        value = column.value(leaderboard, entry)
        if isinstance(value, str):
            return reverse, 0.0, value
        return (value is None) != reverse, value or 0.0, ""

    return sorted(leaderboard.entries, key=order, reverse=reverse)


def check_sort(sort: str) -> None:
    """See that there is such a column.

    Raises:
        UserError: If not.
    """
    name = sort.removeprefix("-")
    if name not in COLUMNS:
        raise unknown_name(f"sort={sort}", "column", name, COLUMNS)

"""The columns of a leaderboard: what they hold, how people read them, and its table."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cifar_lightning.comparison.entry import Conditions, Entry, Estimate
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.errors import bad_value, unknown_name
from cifar_lightning.runs.run import MEGA
from cifar_lightning.runs.table import Value, draw_table, number


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Attributes:
        value: What ``table.csv`` holds.
        header: In the table for people; None leaves it out there.
        text: How people read it; None is the value as it is.
        highest: Whether a high value is the better one.
        numeric: Whether it is a number.
    """

    value: Callable[[Leaderboard, Entry], Value]
    header: str | None = None
    text: Callable[[Leaderboard, Entry], str] | None = None
    highest: bool = False
    numeric: bool = True

    def shown(self, leaderboard: Leaderboard, entry: Entry) -> str:
        if self.text is not None:
            return self.text(leaderboard, entry)
        value = self.value(leaderboard, entry)
        return "-" if value is None else str(value)


def _accuracy_rank(leaderboard: Leaderboard, entry: Entry) -> tuple[int, bool]:
    return leaderboard.rank(entry, lambda one: one.accuracy, highest=True)


def _latency_rank(leaderboard: Leaderboard, entry: Entry) -> tuple[int, bool]:
    return leaderboard.rank(entry, lambda one: one.mean_ms, highest=False)


def _rank_text(rank: tuple[int, bool]) -> str:
    return f"{rank[0]}{'=' * rank[1]}"


def _accuracy(leaderboard: Leaderboard, entry: Entry) -> str:
    estimate = entry.accuracy
    std = "" if estimate.std is None else f" ± {estimate.std:.2f}"
    return f"{estimate.mean:.2f}{std}"


def _latency(leaderboard: Leaderboard, entry: Entry) -> str:
    std = "" if entry.mean_ms.std is None else f" ± {entry.mean_ms.std:.3f}"
    return f"{entry.mean_ms.mean:.3f}{std}{'' if entry.converged else ' ~'}"


def _interval(estimate: Estimate, digits: int) -> str:
    if not estimate.known:
        return "-"
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _speedup(leaderboard: Leaderboard, entry: Entry) -> float:
    return leaderboard.baseline.mean_ms.mean / entry.mean_ms.mean


def _pareto(leaderboard: Leaderboard, entry: Entry) -> str:
    better = leaderboard.dominated_by.get(entry)
    return "front" if better is None else f"dominated by {better.name}"


COLUMNS: dict[str, Column] = {
    "id": Column(lambda a, e: e.label, "ID", numeric=False),
    "model": Column(lambda a, e: e.network, "Network", numeric=False),
    "variant": Column(lambda a, e: e.variant, "Variant", numeric=False),
    "seeds": Column(lambda a, e: len(e.runs), "Seeds", highest=True),
    "test_acc": Column(lambda a, e: e.accuracy.mean, "Acc. (%)", _accuracy, highest=True),
    "test_acc_low": Column(
        lambda a, e: _finite(e.accuracy.low),
        "Acc. 95 % interval",
        lambda a, e: _interval(e.accuracy, 2),
        highest=True,
    ),
    "test_acc_high": Column(lambda a, e: _finite(e.accuracy.high), highest=True),
    "test_acc_std": Column(lambda a, e: e.accuracy.std),
    "acc_rank": Column(
        lambda a, e: _accuracy_rank(a, e)[0],
        "Acc. rank",
        lambda a, e: _rank_text(_accuracy_rank(a, e)),
    ),
    "lat_mean_ms": Column(lambda a, e: e.mean_ms.mean, "Lat. mean (ms)", _latency),
    "lat_mean_low_ms": Column(
        lambda a, e: _finite(e.mean_ms.low),
        "Lat. 95 % interval",
        lambda a, e: _interval(e.mean_ms, 3),
    ),
    "lat_mean_high_ms": Column(lambda a, e: _finite(e.mean_ms.high)),
    "lat_mean_std_ms": Column(lambda a, e: e.mean_ms.std),
    "lat_rank": Column(
        lambda a, e: _latency_rank(a, e)[0],
        "Lat. rank",
        lambda a, e: _rank_text(_latency_rank(a, e)),
    ),
    "lat_p95_ms": Column(lambda a, e: e.p95_ms, "Lat. p95 (ms)", lambda a, e: number(e.p95_ms, 3)),
    "speedup": Column(_speedup, "Speed-up", lambda a, e: f"{_speedup(a, e):.2f}", highest=True),
    "size_mb": Column(lambda a, e: e.size_mb, "Size (MB)", lambda a, e: number(e.size_mb, 2)),
    "params": Column(lambda a, e: e.params, "Params (M)", lambda a, e: f"{e.params / MEGA:.2f}"),
    "macs": Column(lambda a, e: e.macs, "MACs (M)", lambda a, e: f"{e.macs / MEGA:.2f}"),
    "pareto": Column(_pareto, "Pareto", numeric=False),
    "optim": Column(lambda a, e: e.runs[0].choices["optim"], numeric=False),
    "scheduler": Column(lambda a, e: e.runs[0].choices["scheduler"], numeric=False),
    "epochs": Column(lambda a, e: e.runs[0].config["epochs"]),
    "converged": Column(lambda a, e: e.converged, numeric=False),
    "dataset": Column(lambda a, e: a.conditions.dataset, numeric=False),
    "fingerprint": Column(lambda a, e: a.conditions.fingerprint, numeric=False),
    "device": Column(lambda a, e: a.conditions.device, numeric=False),
    "threads": Column(lambda a, e: a.conditions.threads or None),
    "protocol": Column(lambda a, e: a.conditions.protocol, numeric=False),
    "runs": Column(lambda a, e: " ".join(run.name for run in e.runs), numeric=False),
}

SHOWN = {name: column for name, column in COLUMNS.items() if column.header}
# Known only once rows have met each other, so nothing can be filtered by them.
RELATIVE = {"acc_rank", "lat_rank", "speedup", "pareto"}

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
}


def table(leaderboard: Leaderboard, entries: Sequence[Entry]) -> str:
    """Draw a leaderboard's table in Markdown; ``~`` marks means that had not settled."""
    rows = [[column.shown(leaderboard, entry) for column in SHOWN.values()] for entry in entries]
    numeric = [index for index, column in enumerate(SHOWN.values()) if column.numeric]
    return draw_table([str(column.header) for column in SHOWN.values()], rows, numeric)


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


def make_filter(conditions: Sequence[str]) -> Callable[[Conditions, Entry], bool]:
    """Make one test out of conditions such as ``variant=fp32`` or ``test_acc>=80``.

    Raises:
        UserError: If one can't be read, names no column, or compares a text with a number.
    """
    tests: list[Callable[[Leaderboard, Entry], bool]] = []
    for condition in conditions:
        match = re.fullmatch(r"\s*(-?\w+)\s*(>=|<=|!=|=)\s*(.*?)\s*", condition)
        if match is None:
            raise bad_value("filter", condition, "column=value, or !=, >=, <= in place of =")
        name, sign, text = match.groups()
        names = COLUMNS.keys() - RELATIVE
        if name not in names:
            raise unknown_name(f"filter={condition}", "column", name, names)
        tests.append(_test(condition, name, sign, text))

    def keep(conditions: Conditions, entry: Entry) -> bool:
        leaderboard = Leaderboard(conditions.name, conditions, (entry,), entry)
        return all(test(leaderboard, entry) for test in tests)

    return keep


def _test(condition: str, name: str, sign: str, text: str) -> Callable[[Leaderboard, Entry], bool]:
    column, holds = COLUMNS[name], OPERATORS[sign]
    if not column.numeric:
        if sign not in ("=", "!="):
            raise bad_value("filter", condition, f"{name}=... or {name}!=...: it is a text")
        return lambda leaderboard, entry: (
            (str(column.value(leaderboard, entry)).lower() == text.lower()) == (sign == "=")
        )
    try:
        limit = float(text)
    except ValueError as error:
        raise bad_value("filter", condition, f"{name}{sign} and a number") from error

    def test(leaderboard: Leaderboard, entry: Entry) -> bool:
        value = column.value(leaderboard, entry)
        return isinstance(value, int | float) and holds(value, limit)

    return test

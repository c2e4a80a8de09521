"""Which rows are wanted: conditions on columns."""

import operator
import re
from collections.abc import Callable, Sequence

from cifar_lightning.comparison.columns import COLUMNS
from cifar_lightning.comparison.conditions import Conditions
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.errors import bad_value, unknown_name

# Known only once rows have met each other, so nothing can be filtered by them.
RELATIVE = {
    "acc_rank", "baseline_speedup", "lat_rank", "pareto", "slower_high_pct", "slower_low_pct",
    "slower_pct", "test_acc_se",
}  # fmt: skip

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
}


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
        leaderboard = Leaderboard(conditions.name, conditions, (entry,), (entry, entry.group))
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

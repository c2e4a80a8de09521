"""The space of a search: its ranges, checked before the first trial.

An entry's form says how a value is drawn: ``{low, high}`` a number, ``{choices}`` one of a list,
``{length, first, growth}`` a list of numbers such as the channels of each stage. Where an entry is
a group's, such as ``model: {choices: [cifarnet, repvgg]}``, keys of the group that the option drawn
does not have are left out of the trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cifar_lightning.config.options import as_override, option
from cifar_lightning.config.values import is_integer, is_number
from cifar_lightning.errors import bad_value, unknown_name

ALLOWED = "{low: ..., high: ...}, {choices: [...]}"


@dataclass(frozen=True)
class Numbers:
    """A number between two, integer where both are; ``log`` for one that spans powers of ten."""

    low: float
    high: float
    log: bool = False
    step: int | None = None

    def draw(self, trial: Any, name: str) -> Any:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: Sequence[Any]

    def draw(self, trial: Any, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    @property
    def ends(self) -> list[Any]:
        return [*self.values]


@dataclass(frozen=True)
class Lists:
    """A list of integers, each as large as the one before times a factor.

    Attributes:
        length: How many.
        first: Of which each is a multiple of ``first.step``.
        growth: The factors.
    """

    length: Numbers
    first: Numbers
    growth: Choices

    def draw(self, trial: Any, name: str) -> list[int]:
        values = [self.first.draw(trial, f"{name}.first")]
        for place in range(1, self.length.draw(trial, f"{name}.length")):
            values.append(self._next(values[-1], self.growth.draw(trial, f"{name}.growth{place}")))
        return values

    @property
    def ends(self) -> list[Any]:
        grown = [
            self._grown(first, factor, length)
            for length in self.length.ends
            for first in self.first.ends
            for factor in (min(self.growth.values), max(self.growth.values))
        ]
        return [values for place, values in enumerate(grown) if values not in grown[:place]]

    def _next(self, value: int, factor: float) -> int:
        step = self.first.step or 1
        return max(1, round(value * factor / step)) * step

    def _grown(self, first: int, factor: float, length: int) -> list[int]:
        values = [first]
        while len(values) < length:
            values.append(self._next(values[-1], factor))
        return values


Range = Numbers | Choices | Lists
FORMS: dict[str, tuple[str, ...]] = {  # by the key that an entry of the form must have
    "low": ("low", "high", "log", "step"),
    "choices": ("choices",),
    "length": ("length", "first", "growth"),
}
Space = Mapping[str, Range]


def draw(trial: Any, space: Space) -> list[str]:
    """Let a trial draw a value of each range that applies; return the overrides."""
    overrides: list[str] = []
    options: dict[str, set[str]] = {}
    for key in sorted(space, key=lambda key: key.count(".")):  # a group before its keys
        group, _, inner = key.partition(".")
        if group in options and inner.partition(".")[0] not in options[group]:
            continue
        value = space[key].draw(trial, key)
        if inner == "" and isinstance(value, str) and _is_group(key, space):
            options[key] = keys_of(key, value)
        overrides.append(as_override(key, value))
    return overrides


def flatten_space(node: Mapping[str, Any], prefix: str = "") -> Space:
    """Name every range of the space by its key in the configuration, such as ``optim.lr``.

    Raises:
        UserError: If an entry is no range.
    """
    space: dict[str, Range] = {}
    for key, value in node.items():
        name = f"space.{prefix}{key}"
        if not isinstance(value, Mapping) or not value:
            raise bad_value(name, value, ALLOWED)
        nested = {inner: one for inner, one in value.items() if isinstance(one, Mapping)}
        if not {"low", "high", "choices", "length", "log"} & set(value):
            space |= flatten_space(value, f"{prefix}{key}.")
        elif "choices" in value and nested:  # a group's options, and ranges of their keys
            own = {inner: one for inner, one in value.items() if inner not in nested}
            space[f"{prefix}{key}"] = _range(name, own)
            space |= flatten_space(nested, f"{prefix}{key}.")
        else:
            space[f"{prefix}{key}"] = _range(name, value)
    return space


def ends(space: Space) -> list[list[str]]:
    """Tell the overrides between which each range lies, or all of its choices.

    Returns:
        For each end the overrides that it needs: its own, and a group's option that has the key.

    Raises:
        UserError: If there is no range, or none of the group's options has a key.
    """
    if not space:
        raise bad_value("space", "{}", "at least one key with low and high, or choices")
    found = []
    for key, entry in space.items():
        group, _, inner = key.partition(".")
        needed: list[list[str]] = [[]]
        if inner and group in space:
            having = [
                option
                for option in space[group].ends
                if inner.partition(".")[0] in keys_of(group, option)
            ]
            # Where no option has it, the first one's error says so.
            needed = [[as_override(group, one)] for one in having or space[group].ends[:1]]
        found += [[*one, as_override(key, end)] for one in needed for end in entry.ends]
    return found


def as_plain(space: Space) -> dict[str, Any]:
    """Make plain containers of a space, which name it."""
    return {key: asdict(entry) for key, entry in space.items()}


def concerns(refused: str | None, key: str) -> bool:
    """Tell whether a refused key is one of the space's, lies in it, or holds it."""
    return refused is not None and (
        f"{refused}.".startswith(f"{key}.") or key.startswith(refused + ".")
    )


def _is_group(key: str, space: Space) -> bool:
    return any(other.startswith(f"{key}.") for other in space)


def keys_of(group: str, choice: str) -> set[str]:
    """Tell which keys an option of a group has; `UserError` if there is no such option."""
    return {*option(group, choice, {"data": {"num_classes": 10}})}


def _range(name: str, entry: Mapping[str, Any]) -> Range:
    form = next((key for key in ("choices", "length") if key in entry), "low")
    allowed = FORMS[form]
    for key in entry:
        if key not in allowed:
            if form == "choices":
                raise bad_value(name, entry, "{choices: [...]} with at least one")
            raise unknown_name(f"{name}.{key}", "key", key, allowed)
    if form == "choices":
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices:
            raise bad_value(name, entry, "{choices: [...]} with at least one")
        return Choices(choices)
    if form == "length":
        return _lists(name, entry)
    return _numbers(name, entry)


def _lists(name: str, entry: Mapping[str, Any]) -> Lists:
    shape = "{length: {low, high}, first: {low, high, step}, growth: [...]} of integers"
    parts = [entry.get(key) for key in ("length", "first")]
    growth = entry.get("growth")
    if not all(isinstance(part, Mapping) for part in parts) or not isinstance(growth, list):
        raise bad_value(name, entry, shape)
    length, first = (
        _numbers(f"{name}.{key}", entry[key], equal=True) for key in ("length", "first")
    )
    factors = [one for one in growth if isinstance(one, int | float) and one > 0]
    integers = all(isinstance(end, int) and end >= 1 for end in (*length.ends, *first.ends))
    if not integers or not factors or len(factors) < len(growth):
        raise bad_value(name, entry, shape)
    return Lists(length, first, Choices(factors))


def _numbers(name: str, entry: Mapping[str, Any], equal: bool = False) -> Numbers:
    for key in entry:
        if key not in FORMS["low"]:
            raise unknown_name(f"{name}.{key}", "key", key, (*FORMS["low"], "choices"))
    low, high, step = entry.get("low"), entry.get("high"), entry.get("step")
    if not is_number(low) or not is_number(high):
        raise bad_value(name, entry, "numbers, low below high")
    assert low is not None
    assert high is not None
    if low > high or (low == high and not equal):
        raise bad_value(name, entry, "numbers, low below high")
    if entry.get("log") and low <= 0:
        raise bad_value(f"{name}.low", low, "a number above 0 where log is true")
    if step is not None and not (
        is_integer(step) and step >= 1 and isinstance(low, int) and not entry.get("log")
    ):
        raise bad_value(f"{name}.step", step, "an integer of at least 1, between integers")
    return Numbers(low, high, bool(entry.get("log", False)), step)

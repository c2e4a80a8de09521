"""The space of a search: its ranges, checked before the first trial."""

from collections.abc import Mapping
from typing import Any

from cifar_lightning.errors import bad_value, unknown_name

OWN_KEYS = ("n_trials", "space")
RANGE_KEYS = ("low", "high", "log", "choices")
Space = Mapping[str, Mapping[str, Any]]


def draw(trial: Any, space: Space) -> list[str]:
    """Let a trial draw a value of each range; return the overrides."""
    overrides = []
    for key, entry in space.items():
        if "choices" in entry:
            value = trial.suggest_categorical(key, entry["choices"])
        else:
            low, high = entry["low"], entry["high"]
            integers = isinstance(low, int) and isinstance(high, int)
            suggest = trial.suggest_int if integers else trial.suggest_float
            value = suggest(key, low, high, log=entry.get("log", False))
        overrides.append(as_override(key, value))
    return overrides


def as_override(key: str, value: Any) -> str:
    """Write a setting as the command line takes it."""
    return f"{key}={'null' if value is None else value}"


def flatten_space(node: Mapping[str, Any], prefix: str = "") -> Space:
    """Name every range of the space by its key in the configuration, such as ``optim.lr``."""
    space: dict[str, Mapping[str, Any]] = {}
    for key, value in node.items():
        if not isinstance(value, Mapping) or not value:
            raise bad_value(
                f"space.{prefix}{key}", value, "{low: ..., high: ...}, {choices: [...]}"
            )
        if set(value) & set(RANGE_KEYS):
            space[prefix + key] = value
        else:
            space |= flatten_space(value, f"{prefix}{key}.")
    return space


def ends(space: Space) -> list[str]:
    """Tell the overrides between which each range lies, or all of its choices."""
    if not space:
        raise bad_value("space", "{}", "at least one key with low and high, or choices")
    return [as_override(key, one) for key, entry in space.items() for one in _range(key, entry)]


def _range(key: str, entry: Mapping[str, Any]) -> list[Any]:
    for name in entry:
        if name not in RANGE_KEYS:
            raise unknown_name(f"space.{key}.{name}", "key", name, RANGE_KEYS)
    if "choices" in entry:
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices or len(entry) > 1:
            raise bad_value(f"space.{key}", entry, "{choices: [...]} with at least one")
        return choices
    low, high = entry.get("low"), entry.get("high")
    numbers = [v for v in (low, high) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or numbers[0] >= numbers[1]:
        raise bad_value(f"space.{key}", entry, "numbers, low below high")
    if entry.get("log") and numbers[0] <= 0:
        raise bad_value(f"space.{key}.low", low, "a number above 0 where log is true")
    return numbers


def concerns(refused: str | None, key: str) -> bool:
    """Tell whether a refused key is one of the space's, lies in it, or holds it."""
    return refused is not None and (
        f"{refused}.".startswith(f"{key}.") or key.startswith(refused + ".")
    )

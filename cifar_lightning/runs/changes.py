"""What differs between the settings of two runs, in a few words each."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from cifar_lightning.config.options import read_option
from cifar_lightning.config.rules import DERIVED_KEYS
from cifar_lightning.config.schema import CONF_DIR, NAMING_GROUPS
from cifar_lightning.runs.identity import canonical, leave_out, training_config
from cifar_lightning.runs.run import Run


def settings_changes(base: Run, run: Run) -> list[str]:
    """Tell what differs from another run's configuration.

    Another network, optimizer or schedule is one change together with the defaults that come with
    it; so is a feature that was off. The seed is none.
    """
    old, new = settings(base), settings(run)
    choices = base.choices, run.choices
    found = []
    for name in (*NAMING_GROUPS, *sorted((old.keys() | new.keys()) - {*NAMING_GROUPS})):
        before, after = old.get(name), new.get(name)
        if name in NAMING_GROUPS and choices[0][name] != choices[1][name]:
            found.append(f"{name} {choices[0][name]} → {choices[1][name]}")
            unusual = _unusual(name, choices[0], old) | _unusual(name, choices[1], new)
            before, after = ({key: one[name].get(key) for key in unusual} for one in (old, new))
        if name == "augment":
            found += _augment_changes(before or {}, after or {})
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(name, before, after)
        elif before != after:
            found.append(f"{name} {show_value(before)} → {show_value(after)}")
    return found


def _differences(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{name}.{key} {show_value(before.get(key))} → {show_value(after.get(key))}"


def _unusual(name: str, choices: Mapping[str, str], found: Mapping[str, Any]) -> set[str]:
    """Tell which of an option's settings are not its file's."""
    file = _file(name, choices[name])
    return {key for key, value in found[name].items() if file.get(key) != value}


@cache
def _file(group: str, option: str) -> dict[str, Any]:
    path = CONF_DIR / group / f"{option}.yaml"
    if not path.exists():
        return {}
    found: dict[str, Any] = canonical(OmegaConf.to_container(read_option(path)), group)
    return found


def settings(run: Run) -> dict[str, Any]:
    """Keep a run's settings that change the weights, each in one place, without the seed."""
    training = training_config(run.config)
    training["augment"] = dict(training["augment"])
    return leave_out(training, lambda key, _: key in DERIVED_KEYS or key == "seed")


def _augment_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if list(before) != list(after):
        yield f"augment {', '.join(before) or 'none'} → {', '.join(after) or 'none'}"
    for name in before:
        if name in after:
            yield from _differences(f"augment.{name}", before[name], after[name])


def show_value(value: Any) -> str:
    """Write a setting for people."""
    if value is None:
        return "off"
    if isinstance(value, Mapping):
        kept = [f"{key}={show_value(one)}" for key, one in value.items() if not key.startswith("_")]
        return f"on ({', '.join(kept)})" if kept else "on"
    return f"{value:g}" if isinstance(value, float) else str(value)

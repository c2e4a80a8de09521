"""The command line before Hydra reads it."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.config.schema import (
    CONF_DIR,
    TrainConfig,
    is_optional,
    options_of,
    renamed_arguments,
)
from cifar_lightning.config.texts import Text, expand_home, text_keys
from cifar_lightning.errors import bad_value


def is_sweep(arguments: Collection[str]) -> bool:
    """Tell whether a command line asks for a multirun."""
    return not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)


def for_hydra(arguments: list[str], config: type, positional: str | None) -> list[str]:
    """Write a command's arguments as Hydra takes them.

    Args:
        arguments: As the shell hands them over.
        config: The command's schema.
        positional: The key, a list of texts, of arguments that come without one.

    Raises:
        UserError: If a group that is needed is left out.
    """
    texts, renamed = text_keys(config), renamed_arguments(config)
    flags, overrides = flags_apart(arguments)
    if positional is not None:
        overrides = key_positional(overrides, positional)
    overrides = [rename(text, renamed) for text in overrides]
    if issubclass(config, TrainConfig):  # it alone has groups
        overrides = [without_null(text) for text in overrides]
    return flags + [as_typed(text, texts, is_sweep(arguments)) for text in overrides]


def key_positional(overrides: list[str], key: str) -> list[str]:
    """Collect what has no key, or names a file although it looks like ``key=value``."""
    plain = [text for text in overrides if "=" not in text or Path(text).exists()]
    rest = [text for text in overrides if text not in plain]
    quoted = (_quote(text, Text(), whole=True) for text in plain)
    return [*rest, f"{key}=[{','.join(quoted)}]"] if plain else rest


def flags_apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part Hydra's own flags, with their values, from everything else.

    Its parser takes overrides in one place alone, so flags between them have to go before them.
    """
    takes_value = {
        option: action
        for action in get_args_parser()._actions
        for option in action.option_strings
        if action.nargs != 0
    }
    flags, others, remaining = [], [], list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-"):
            others.append(argument)
            continue
        flags.append(argument)
        action = takes_value.get(argument)
        if action and remaining and (action.nargs != "?" or remaining[0] in (action.choices or ())):
            flags.append(remaining.pop(0))
    return flags, others


def rename(argument: str, names: Mapping[str, str]) -> str:
    """Replace an argument's key by what the configuration calls it."""
    key, equals, value = argument.partition("=")
    return names.get(key, key) + equals + value


def without_null(argument: str) -> str:
    """Turn ``logger=null``, a group with none of its options, into what Hydra takes for it.

    In a sweep, such as ``logger=null,csv``, it may be one of several.
    """
    group, _, value = argument.partition("=")
    if not re.search(_NULL, value) or not (CONF_DIR / group).is_dir():
        return argument
    if not is_optional(group):
        raise bad_value(group, value, ", ".join(options_of(group)))
    return f"{group}={re.sub(_NULL, '[]', value)}"


_NULL = r"(?<![^,(\s])null(?![^,)\s])"


def as_typed(argument: str, texts: Mapping[str, Text], sweeping: bool) -> str:
    """Put quotes around a text or path, so that it arrives as it was typed.

    Hydra alone would read a number, a list, a sweep or nothing at all out of it. What stays Hydra's
    is a text in quotes, an interpolation such as ``${oc.env:DATA}``, and ``null`` where there may
    be none; a path that exists as typed is taken whole.

    Args:
        argument: As the shell hands it over.
        texts: What takes texts.
        sweeping: Whether it is a multirun, in which several texts are a sweep.
    """
    key, equals, value = argument.partition("=")
    text = texts.get(key.lstrip("+"))
    if text is None or not equals or (sweeping and re.fullmatch(_SWEEP, value, re.DOTALL)):
        return argument
    whole = text.path and os.path.lexists(expand_home(value))
    if text.several and value.startswith("[") and value.endswith("]") and not whole:
        parts = [part.strip() for part in _split(value[1:-1])] if value.strip("[] ") else []
    else:
        parts = _split(value) if (text.several or sweeping) and not whole else [value]
    quoted = ",".join(_quote(part, text, whole) for part in parts)
    return f"{key}=[{quoted}]" if text.several else f"{key}={quoted}"


_SWEEP = r"(choice|range|glob|shuffle|sort)\(.*\)"  # as Hydra writes them, beside a,b
_ELEMENT = re.compile(
    r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?=,|$)|((?:\$\{[^{}]*\}|[^,])*)""", re.DOTALL
)


def _split(value: str) -> list[str]:
    """Split at commas, but not in quotes or interpolations."""
    parts, begin = [], 0
    while begin <= len(value):
        match = _ELEMENT.match(value, begin)
        assert match is not None
        parts.append(match[1] or match[2])
        begin = match.end() + 1
    return parts


def _quote(value: str, text: Text, whole: bool) -> str:
    if (value == "null" and text.nullable) or (not whole and _is_hydras(value)):
        return value
    if whole or not _is_interpolation(value):
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # OmegaConf's way to write it
    return QuotedString(value, Quote.single).with_quotes()


def _is_hydras(value: str) -> bool:
    """Tell whether it is a text in quotes."""
    if not value.startswith(("'", '"')):
        return False
    try:
        return isinstance(OverridesParser.create().parse_rule(value, "element"), QuotedString)
    except HydraException:
        return False


def _is_interpolation(value: str) -> bool:
    try:
        OmegaConf.create({"value": value})
    except OmegaConfBaseException:
        return False
    return True

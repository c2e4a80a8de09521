"""The command line before Hydra reads it."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hydra._internal.utils import get_args_parser


def key_positional(overrides: list[str], key: str) -> list[str]:
    """Collect what has no key, or names a file although it looks like ``key=value``."""
    plain = [text for text in overrides if "=" not in text or Path(text).exists()]
    rest = [text for text in overrides if text not in plain]
    quoted = ("'" + text.replace("'", "\\'") + "'" for text in plain)
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


def quote_text(argument: str, texts: Collection[str], lists: Collection[str]) -> str:
    """Put quotes around what Hydra would read as a number, a sweep or nothing at all.

    Args:
        argument: As it was typed.
        texts: Keys whose values are texts; several of them, ``id=A,B``, are a sweep.
        lists: Keys whose values are lists of texts, so ``run=A,B`` is none.
    """
    key, _, value = argument.partition("=")
    key = key.lstrip("+")
    if key in lists and re.fullmatch(r"'[^']*'|\"[^\"]*\"", value):
        return f"{key}=[{value}]"
    special = r"'\"\[\]{}\\" if key in lists else r"'\"\[\]{}()\\"
    if not re.fullmatch(f"[^{special}]+", value) or value == "null":
        return argument  # quoted already, or something else than plain text
    quoted = ",".join(f"'{part}'" for part in value.split(","))
    if key in texts:
        return argument.removesuffix(value) + quoted
    return f"{key}=[{quoted}]" if key in lists else argument

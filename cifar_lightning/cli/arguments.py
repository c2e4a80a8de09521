"""The command line before Hydra reads it."""

from __future__ import annotations

import re
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


def quote_text(argument: str, texts: tuple[str, ...], lists: tuple[str, ...]) -> str:
    """Put quotes around what Hydra would read as a number, a sweep or nothing at all."""
    key, _, value = argument.partition("=")
    key = key.lstrip("+")
    special = r"'\"\[\]{}\\" if key in lists else r"'\"\[\]{}()\\"
    if not re.fullmatch(f"[^{special}]+", value) or value == "null":
        return argument  # quoted already, or something else than plain text
    if key in texts:
        parts = value.split(",") if "," in value else [value]  # several are a sweep
        return argument.removesuffix(value) + ",".join(f"'{part}'" for part in parts)
    if key in lists:
        return f"{key}=[{','.join(repr(part) for part in value.split(','))}]"
    return argument

"""Durations and paths as people read them."""

from collections.abc import Sequence
from pathlib import Path

SOME = 15  # names that are read in a sentence


def duration(seconds: float) -> str:
    """Write seconds as people say them: ``45 s``, ``12 min``, ``1 h 40 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(number: int, noun: str) -> str:
    """Write how many there are: ``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """List names, of many the first ones and how many more there are."""
    more = len(names) - SOME
    return ", ".join(names[:SOME]) + (f" and {more} more" if more > 0 else "")


def relative(path: Path) -> Path:
    """Shorten a path that lies below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

"""The errors that users see: each is one line and carries its exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CifarLightningError(Exception):
    """Base of the errors that end a command with one line instead of a traceback."""

    exit_status = 1


class UserError(CifarLightningError):
    """A mistake in what the user asked for or gave: configuration, files, network."""

    exit_status = 2


class RunFailed(CifarLightningError):
    """The work itself failed after it had started."""


class NotFinite(RunFailed):
    """The training loss was no number any more."""

    BEGINNING = "the training loss is"


class Interrupted(CifarLightningError):
    """The user stopped the command; the same command again continues it."""

    exit_status = 130  # after Ctrl-C; 143 after SIGTERM, 129 after a closed window


def bad_value(key: str, value: object, allowed: str) -> UserError:
    """Make the error for a value that is out of range: the key, the value, what is allowed."""
    return UserError(f"{key}={value}: allowed is {allowed}")


def unknown_name(subject: str, kind: str, name: str, allowed: Iterable[object]) -> UserError:
    """Make the error for a name that does not exist, offering the nearest one that does.

    Args:
        subject: What the user wrote, such as ``model=mobilnet`` or ``optim.lrr``.
        kind: What the name stands for, such as ``key`` or ``option``.
        name: The name itself.
        allowed: Every valid name.
    """
    names = sorted(str(candidate) for candidate in allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return UserError(f"{subject}: no such {kind}; {hint}allowed: {', '.join(names) or 'none'}")

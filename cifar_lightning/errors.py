"""The errors that users see: each is one line and carries its exit status."""

import difflib
from collections.abc import Iterable, Iterator

MANY = 30  # names are too many to read


class CifarLightningError(Exception):
    """Base of the errors that end a command with one line instead of a traceback.

    Attributes:
        kind: What a command that started this one is told, beside the message.
        key: The configuration's key that is wrong, where it is one.
    """

    exit_status = 1
    kind = "failed"
    key: str | None = None


class UserError(CifarLightningError):
    """A mistake in what the user asked for or gave: configuration, files, network."""

    exit_status = 2
    kind = "refused"

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class RunFailed(CifarLightningError):
    """The work itself failed after it had started."""


class NotFinite(RunFailed):
    """The training loss, or what a network answers, is NaN or infinite."""

    kind = "not_finite"


class DeviceLost(RunFailed):
    """An error has left a device of no use to this process."""


class Crashed(RunFailed):
    """Training raised an unexpected error."""

    kind = "crashed"


class Interrupted(CifarLightningError):
    """The user stopped the command; the same command again continues it."""

    kind = "interrupted"
    exit_status = 130  # after Ctrl-C; 143 after SIGTERM, 129 after a closed window


def bad_value(key: str, value: object, allowed: str) -> UserError:
    """Make the error for a value that is out of range: the key, the value, what it must be."""
    return UserError(f"{key}={value}: must be {allowed}", key)


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
    told = f"allowed: {', '.join(names) or 'none'}"
    if len(names) > MANY:
        nearest = difflib.get_close_matches(name, names, n=5, cutoff=0.0)
        told = f"the nearest of {len(names)}: {', '.join(nearest)}"
    return UserError(f"{subject}: no such {kind}; {hint}{told}")


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that came before it: to look for one of a kind.

    OmegaConf hides what its resolvers raised; here that counts, too.
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = _cause(link) or link.__context__


def reason_of(error: BaseException) -> str:
    """Tell in one line why something failed: the cause, not what was made of it."""
    error = cause_of(error)
    line = first_line_of(error)
    if isinstance(error, CifarLightningError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def cause_of(error: BaseException) -> BaseException:
    """Find the error that others were made of."""
    while (cause := _cause(error)) is not None:
        error = cause
    return error


def _cause(error: BaseException) -> BaseException | None:
    """Give the error that another one was made of; torch's compiler has a field of its own."""
    inner: BaseException | None = getattr(error, "inner_exception", None)
    return inner or error.__cause__


def first_line_of(error: BaseException) -> str:
    """Take the line of an error's text that says most: a compiler's first error, or the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else "")

"""What a user is told of whatever ended a command: one line, and its exit status."""

import shlex
import sys
import tempfile
import traceback

from cifar_lightning.config import user_errors
from cifar_lightning.errors import (
    CifarLightningError,
    Interrupted,
    RunFailed,
    UserError,
    chain,
    reason_of,
)
from cifar_lightning.system import signals
from cifar_lightning.system.escaping import without_secrets
from cifar_lightning.system.files import is_disk_full, lacks_temporary_folder, no_temporary_folder


def to_ending(error: BaseException, started: bool) -> CifarLightningError:
    """Turn whatever ended a command into one line; a signal that has come outranks the rest.

    Where a signal strikes, libraries raise errors of their own while they tidy up.

    Args:
        error: What ended it.
        started: Whether the work had begun: from there on, an unknown error is none of Hydra's.
    """
    if isinstance(error, Interrupted):
        return error
    if signals.received() is not None or not isinstance(error, Exception):
        return signals.error()
    if isinstance(error, CifarLightningError):
        return error
    if is_disk_full(error):
        return RunFailed("no space left; free some, and give the same command again")
    if lacks_temporary_folder(error):
        return no_temporary_folder()
    if explained := user_errors.to_user_error(error):
        return explained
    # What is a library's own error may come from the system, such as a log's that can't be opened.
    for link in [error] if started else chain(error):
        if isinstance(link, OSError) and link.filename:
            line = f"{link.filename}: {link.strerror}"
            return RunFailed(line) if started else UserError(line)
    if not started and user_errors.raised_in_composing(error):
        # Hydra does not wrap everything that it finds wrong with a command line.
        return UserError(" ".join(str(error).split()) or type(error).__name__)
    return _fault(error)


def _fault(error: Exception) -> RunFailed:
    """Turn an unexpected error into one line; its traceback goes into a file."""
    line = f"{reason_of(error)}; this is a fault of cifar-lightning, please report it"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cifar-lightning-error-", suffix=".log", delete=False, errors="replace"
        ) as stream:
            text = f"{shlex.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
            stream.write(without_secrets(text))
    except OSError:
        traceback.print_exception(error)
        return RunFailed(line)
    return RunFailed(f"{line} with {stream.name}")

"""Atomic file writes, and checks of what lies where a file is read or written."""

import errno
import os
import re
import sqlite3
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from cifar_lightning.errors import UserError, chain

# Begins the names of files that are being written: nobody's own files are called so.
_UNFINISHED = ".cifar-lightning-"
TEMPORARY = ("/tmp", "/var/tmp", "/usr/tmp")  # where Python looks after the environment


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as `write_all` does."""
    write_all(path.parent, {path.name: content})


def write_all(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Replace files: readers see the old or the new content of each, never a part.

    All content is on the disk, not only in the system's memory, before the first old file goes.

    Args:
        folder: Is made if needed.
        contents: By the files' names; text is written as UTF-8.

    Raises:
        OSError: If one can't be written; all old files are still there then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f"{_UNFINISHED}{os.getpid()}-{name}" for name in contents}
    try:
        for name, content in contents.items():
            with temporary[name].open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
        for name, path in temporary.items():
            path.replace(folder / name)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    # The new names have to reach the disk, too.
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, and nothing else: some devices never end.

    Raises:
        OSError: If it can't be read, or is a folder, a pipe, a device or a socket.
    """
    # Without O_NONBLOCK, opening a pipe waits; for regular files it has no meaning.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def check_inside(outputs: Path, path: Path) -> None:
    """See that what is written below the outputs folder stays there, and follows no link out of it.

    Args:
        outputs: The folder.
        path: Of a file or folder, perhaps not there yet. One that does not lie below the outputs is
            the user's own choice.

    Raises:
        UserError: If a link leads out of it.
    """
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(outputs)):  # noqa: PTH100
        return
    # Not `Path.resolve`, which raises where links go round in a circle.
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(outputs)):
        raise UserError(f"{path}: leads out of {outputs}, to {target}; remove this link")


def share_with_others(folder: Path) -> None:
    """Let those who may write in a folder write to what this process makes from now on, too.

    They are to go on with what others began, whatever their umask is. In a sticky folder, such as
    the temporary one, everybody has files of their own.
    """
    with suppress(OSError):
        mode = folder.stat().st_mode
        if not mode & stat.S_ISVTX:
            classes = ((stat.S_IWGRP, stat.S_IRWXG), (stat.S_IWOTH, stat.S_IRWXO))
            shared = sum(bits & mode for may_write, bits in classes if mode & may_write)
            os.umask(os.umask(0o777) & ~shared)


def check_writable(folder: Path) -> None:
    """See that this user can write files in a folder, which is made if needed, or `UserError`."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "" if there == folder else f": {there} is no folder that can be"
        raise UserError(f"{folder}: can't be written to{reason}")


def check_replaceable(path: Path) -> None:
    """See that this user can write or replace a file; a `UserError` says why not."""
    folder = path.parent
    reason = None
    if not os.access(folder, os.W_OK | os.X_OK):
        reason = f"{folder} can't be written to"
    elif path.is_dir() and not path.is_symlink():
        reason = "it is a folder"
    elif path.exists() and folder.stat().st_mode & stat.S_ISVTX:
        # In a sticky folder only the owners replace a file.
        user, owners = os.geteuid(), {path.lstat().st_uid, folder.stat().st_uid}
        if user != 0 and user not in owners:
            reason = f"it is another user's, and {folder} is sticky"
    if reason:
        raise UserError(f"{path}: can't be replaced: {reason}")


def temporary_folder() -> Path:
    """Find the machine's folder for temporary files; Python's last resort, where one is, is none.

    Raises:
        UserError: If there is none that can be written to.
    """
    with suppress(FileNotFoundError):
        folder = Path(tempfile.gettempdir())
        usual = [*filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), *TEMPORARY]
        if folder != Path.cwd() or folder in map(Path, usual):
            return folder
    raise no_temporary_folder()


def no_temporary_folder() -> UserError:
    """Make the error for that."""
    usual = ", ".join(TEMPORARY)
    return UserError(
        f"TMPDIR: must be a folder that can be written to; {usual} can't be, or are full"
    )


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing; call it where nobody else is writing."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        if is_unfinished(path):
            with suppress(OSError):  # another user's
                path.unlink()


def finished_files(folder: Path, suffix: str) -> list[Path]:
    """List a folder's files of a kind by their names, but none that is being written."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not is_unfinished(path))


def is_unfinished(path: Path) -> bool:
    """Tell whether a process of this project is, or was, writing a file: by its name and kind."""
    named = re.fullmatch(rf"{re.escape(_UNFINISHED)}\d+-.+", path.name, re.DOTALL)
    return named is not None and path.is_file() and not path.is_symlink()


def lacks_temporary_folder(error: BaseException) -> bool:
    """Tell whether a library found nowhere to write to; such an error names no file."""
    return any(
        isinstance(link, OSError) and not link.filename and "temporary directory" in str(link)
        for link in chain(error)
    )


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error comes from a full disk, a used-up quota or a limit of a file's size."""
    return any(
        getattr(link, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        or getattr(link, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        for link in chain(error)
    )

"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_lightning.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: readers see the old or the new content, never a part.

    The content is on the disk, not only in the system's memory, before the old file goes.

    Args:
        path: Its folder is made if needed.
        content: Text is written as UTF-8.

    Raises:
        OSError: If it can't be written; the old file is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The new name has to reach the disk, too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Opening a pipe would wait for a writer, and some devices never end.

    Raises:
        OSError: If it can't be read, or is a folder, a pipe, a device or a socket.
    """
    # Without O_NONBLOCK, opening a pipe waits; for regular files it has no meaning.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file; the operating system lets it go however this process ends.

    Args:
        path: Of the file; its folder has to exist.
        refusal: What to say if another process holds it.

    Raises:
        UserError: If so.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{refusal}; let it finish") from error
    try:
        yield
    finally:
        lock.release()


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing; call it where nobody else is writing."""
    for path in folder.glob(".*.*"):
        if re.search(r"\.\d+$", path.name):
            path.unlink(missing_ok=True)


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error comes from a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False

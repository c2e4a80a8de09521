"""Locks between processes and users; the operating system releases them with their holder."""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cifar_lightning.errors import UserError
from cifar_lightning.system import signals
from cifar_lightning.system.files import check_replaceable
from cifar_lightning.system.progress import Progress

log = logging.getLogger(__name__)

LOCK_POLL_S = 0.2


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file; wait, and say so, while another process holds it.

    The lock is the operating system's: it ends with the process, however that ends. The file is
    made for everyone who may write in its folder, and reading it is enough to lock it, so users
    share folders without sharing a umask.

    Args:
        path: Of the file; its folder has to exist.
        waiting: What to say if another process holds it.

    Raises:
        UserError: If it can't be locked by this user at all.
        Interrupted: If a signal came while waiting.
    """
    if (descriptor := _try_lock(path)) is None:
        log.info("%s (%s)", waiting, path)
        with Progress(waiting) as progress:
            while descriptor is None:
                signals.check()
                time.sleep(LOCK_POLL_S)
                progress.at(0)
                descriptor = _try_lock(path)
    with os.fdopen(descriptor):
        yield


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file as `locked` does, but do not wait for it.

    Args:
        path: Of the file; its folder has to exist.
        refusal: What to say if another process holds it.

    Raises:
        UserError: If another process holds it, or it can't be locked by this user at all.
    """
    with claimed(path) as mine:
        if not mine:
            raise UserError(f"{refusal}; let it finish")
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock file as `locked` does if no other process does; tell whether it is held here.

    Raises:
        UserError: If it can't be locked by this user at all.
    """
    if (descriptor := _try_lock(path)) is None:
        yield False
        return
    with os.fdopen(descriptor):
        yield True


def check_lock(path: Path) -> None:
    """See that a lock can be had sooner or later, or raise `UserError`; leaves nothing behind."""
    if os.path.lexists(path):
        os.close(_open_lock(path))
    else:
        check_replaceable(path)


def _try_lock(path: Path) -> int | None:
    """Lock a file; give its descriptor, or None while another process holds it."""
    while True:
        descriptor = _open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # removed by the one who held it before: lock the next one
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"{path}: can't be locked ({error.strerror})") from error
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open a lock file, and make it if it is not there.

    NOTE: first without O_CREAT: with it Linux refuses another user's file in a sticky folder
    (fs.protected_regular). Locking needs no more than reading, except on NFS.
    """
    quietly = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        while True:
            with suppress(FileNotFoundError):
                try:
                    descriptor = os.open(path, os.O_RDWR | quietly)
                except PermissionError:
                    descriptor = os.open(path, os.O_RDONLY | quietly)
                break
            with suppress(FileExistsError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | quietly, 0o600)
                with suppress(OSError):  # some file systems have no modes
                    os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
                break
    except OSError as error:
        hint = "remove it, or ask its owner" if os.path.lexists(path) else "make its folder so"
        raise UserError(f"{path}: needs a lock file here ({error.strerror}); {hint}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is no regular file, and needed as a lock; remove it")
    return descriptor

"""Ctrl-C, SIGTERM, a closed window: an end at once, or where nothing is lost by it.

Inside `deferred` a signal is only remembered, and the work looks for it with `check` at points
where it can end; inside `immediate`, where that would take long and nothing is there yet that could
be lost, it ends the work again. A second Ctrl-C ends the process at once.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cifar_lightning.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal and a parent process may both pass on one and the same key press.
SAME_PRESS_S = 0.2
_received: signal.Signals | None = None
_received_at = 0.0
_deferring = False
_handled: tuple[signal.Signals, ...] = ()


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals meanwhile; nothing is remembered from before the outermost of these.

    SIGHUP stays ignored where it is: that is what ``nohup`` asks for.
    """
    global _received, _handled
    if _handled:
        yield
        return
    _received = None
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    _handled = tuple(before)
    take_over()
    try:
        yield
    finally:
        _handled = ()
        for number, handler in before.items():
            signal.signal(number, handler)


def take_over() -> None:
    """Put our handlers in place, in this thread's process; Lightning puts its own there."""
    if threading.current_thread() is threading.main_thread():
        for number in _handled:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> Any:
    global _received, _received_at
    now = time.monotonic()
    if _received is None:
        _received, _received_at = signal.Signals(number), now
        if not _deferring:
            raise KeyboardInterrupt
    elif number == signal.SIGINT and now - _received_at > SAME_PRESS_S:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait for the next `check`."""
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before


@contextmanager
def immediate() -> Iterator[None]:
    """Let signals end the work at once meanwhile, inside `deferred`, too.

    Raises:
        Interrupted: If one came, whatever a library has made of it.
    """
    global _deferring
    check()
    before, _deferring = _deferring, False
    try:
        yield
    except BaseException as surfaced:
        if _received is None:
            raise
        raise error() from surfaced
    finally:
        _deferring = before
    check()  # a library may have swallowed it


def received() -> signal.Signals | None:
    """Tell the signal that has come, if any."""
    return _received


def error(message: str = "interrupted") -> Interrupted:
    """Make the error for the signal that has come; its exit status is 128 and the number."""
    interrupted = Interrupted(message)
    interrupted.exit_status = 128 + (_received or signal.SIGINT)
    return interrupted


def check() -> None:
    """End here if a signal has come.

    Raises:
        Interrupted: If so.
    """
    if _received is not None:
        raise error()

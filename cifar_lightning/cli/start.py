"""Starts a command, so that Ctrl-C ends it in one line even while its modules are being imported.

Nothing but this module and the signals is imported before.
"""

import atexit
import codecs
import os
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from cifar_lightning.system import signals

CHECKOUT = Path(__file__).resolve().parents[2]


def _use_utf8() -> None:
    """Start Python again in its UTF-8 mode where the locale has another encoding.

    Names of files would have other letters there, and files that libraries open, such as a log,
    would lack some. What is printed stays in the terminal's encoding.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "utf-8" or not sys.executable:
        return
    terminal = getattr(sys.stdout or sys.stderr, "encoding", None)
    os.environ.setdefault("PYTHONIOENCODING", terminal or "ascii")
    os.environ["PYTHONUTF8"] = "1"  # of child processes
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _start(name: str) -> None:
    """Import and run the command of a file in this folder."""
    _use_utf8()
    if (CHECKOUT / "pyproject.toml").exists():
        # Processes that this one starts take the same copy, wherever the user is.
        searched = filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH")))
        os.environ["PYTHONPATH"] = os.pathsep.join(searched)
    with signals.handled():
        try:
            main = import_module(f"cifar_lightning.cli.{name}").main
            signals.check()
        except BaseException:  # an interrupted import may raise anything
            if signals.received() is None:
                raise
            print(f"error: {signals.error()}", file=sys.stderr)
            sys.exit(signals.error().exit_status)
        try:
            main()
        except SystemExit as end:
            if signals.received() is not None:
                _end_now(end.code)
            raise


def _end_now(status: str | int | None) -> None:
    """End as Python does, but without waiting for threads of libraries.

    torch.compile has a queue of calls of the C++ compiler there, each of which takes seconds.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status if isinstance(status, int) else 1)


train, tune, measure, report, predict, export = (
    partial(_start, name) for name in ("train", "tune", "measure", "report", "predict", "export")
)

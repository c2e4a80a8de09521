"""Starts a command, so that Ctrl-C ends it in one line even while its modules are being imported.

Nothing but this module and the signals is imported before.
"""

import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from cifar_lightning.system import signals

CHECKOUT = Path(__file__).resolve().parents[2]


def _start(name: str) -> None:
    """Import and run the command of a file in this folder."""
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
        main()


train, tune, measure, report, predict, export = (
    partial(_start, name) for name in ("train", "tune", "measure", "report", "predict", "export")
)

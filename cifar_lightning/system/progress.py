"""How far long work is: a bar on a terminal, elsewhere a line now and then; none of what is short.

There is no bar with ``TQDM_DISABLE=1``, and nothing at all where it was not wanted (`shown`).
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from cifar_lightning.system.formatting import duration

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_S = 10.0  # until the first line; the pause doubles after each
LONGEST_S = 60.0  # between two lines
_shown = True


@contextmanager
def shown(wanted: bool) -> Iterator[None]:
    """Show progress meanwhile, or none."""
    global _shown
    before, _shown = _shown, wanted
    try:
        yield
    finally:
        _shown = before


class Progress:
    """How far one piece of work is.

    Args:
        what: Is done, such as ``measuring``.
        total: How many steps there are; None where nobody knows.
        unit: What the steps are of, in the plural.
        slow_steps: Whether a step may take long, so that a thread looks after the lines. Where time
            is measured there must be none.
        bar: Whether there may be one.
        first_s: When the first line is due, in seconds.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        slow_steps: bool = False,
        bar: bool = True,
        first_s: float | None = None,
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._done, self._now = 0, ""
        self._begin = time.monotonic()
        self._every = FIRST_S if first_s is None else first_s
        self._due = self._begin + self._every
        self._bar: Any = None  # tqdm's
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        if not _shown:
            return
        seen = sys.stderr is not None and sys.stderr.isatty()
        bar &= seen and total is not None and not os.environ.get("TQDM_DISABLE")
        if bar:
            from tqdm import tqdm

            self._bar = tqdm(desc=what, total=total, unit=f" {unit}", leave=False)
        elif slow_steps:
            self._thread = threading.Thread(target=self._look_after, daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def at(self, done: int, total: int | None = None, now: str = "") -> None:
        """Note how far it is.

        Args:
            done: Steps.
            total: How many there are by now; None leaves it.
            now: The step that is under way.
        """
        with self._lock:
            self._done, self._now = done, now
            self.total = self.total if total is None else total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(done - self._bar.n)
            if now:  # it may stand there for minutes
                self._bar.set_postfix_str(now)
        else:
            self._say_if_due()

    def _look_after(self) -> None:
        while not self._ended.wait(max(0.0, self._due - time.monotonic())):
            self._say_if_due()

    def _say_if_due(self) -> None:
        with self._lock:
            elapsed = (now := time.monotonic()) - self._begin
            if not _shown or now < self._due:
                return
            self._every = min(2 * self._every, LONGEST_S)
            self._due = now + self._every
            told = self._line(elapsed)
        log.info("%s", told)

    def _line(self, elapsed: float) -> str:
        said = f"{self.what}: "
        if self.total is not None:
            said += f"{self._done} of {self.total} {self.unit}, "
        said += f"{duration(elapsed)} so far"
        if self.total is not None and self._done:
            left = elapsed / self._done * max(0, self.total - self._done)
            said += f", about {duration(left)} left"
        return f"{said}; now {self._now}" if self._now else said


def tracked(
    steps: Iterable[T],
    what: str,
    unit: str,
    name: Callable[[T], str] = lambda step: "",
    *,
    total: int | None = None,
    slow_steps: bool = False,
) -> Iterator[T]:
    """Go through steps, and show how far that is.

    Args:
        steps: What is to be done.
        what: See `Progress`, like the other ones.
        unit: What the steps are of.
        name: Says which step is under way.
        total: How many steps there are, where they can't be counted.
        slow_steps: Whether a step may take long.
    """
    total = len(steps) if isinstance(steps, Sized) else total
    with Progress(what, total, unit, slow_steps=slow_steps) as progress:
        for done, step in enumerate(steps):
            progress.at(done, now=name(step))
            yield step

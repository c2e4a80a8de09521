"""Work that one process at a time is at, and none any more where it killed them again and again."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from cifar_lightning.system.locks import claimed, locked

KILLED_TOO_OFTEN = 3  # times, and nobody takes the work up any more


class Claim:
    """A piece of work that is this process's own until it ends, or until the process does.

    Its file is locked meanwhile, and says how often work on it began that was neither ended nor
    left: a process that is killed, perhaps for want of memory, can't say so itself.
    """

    def __init__(self, path: Path, lock: ExitStack) -> None:
        self._path, self._lock = path, lock

    @classmethod
    def make(cls, path: Path) -> Self | None:
        """Claim what a file stands for; None if it is another process's."""
        lock = ExitStack()
        return cls(path, lock) if lock.enter_context(claimed(path)) else None

    @classmethod
    def awaited(cls, path: Path) -> Self:
        """Claim what a file stands for as soon as no other process has it.

        Raises:
            Interrupted: If a signal came while waiting.
        """
        lock = ExitStack()
        waiting = f"waiting for another process, which is at {path.stem}"
        lock.enter_context(locked(path, waiting))
        return cls(path, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def killed(self) -> int:
        """How many processes were killed in it."""
        with suppress(ValueError):
            return int(self._path.read_text())
        return 0

    @property
    def hopeless(self) -> bool:
        return self.killed >= KILLED_TOO_OFTEN

    @contextmanager
    def work(self) -> Iterator[None]:
        """Note that work begins, and when it is left, however, that it was not killed."""
        before = self.killed
        self._note(before + 1)
        try:
            yield
        finally:
            self._note(before)

    def end(self) -> None:
        """Have nothing more of it: the work is done."""
        self._path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let other processes have it."""
        self._lock.close()

    def _note(self, killed: int) -> None:
        self._path.write_text(str(killed))

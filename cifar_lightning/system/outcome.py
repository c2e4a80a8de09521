"""How a command that another one started has ended, told in a file instead of by its output."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cifar_lightning.system.untrusted import Unreadable, decode, encode

VARIABLE = "CIFAR_LIGHTNING_OUTCOME"  # of the environment: where to write it


@dataclass(frozen=True)
class Outcome:
    """An error that ended a command.

    Attributes:
        kind: The error's.
        message: What the user was shown.
        key: The configuration's key that is wrong, if it is one.
    """

    kind: str
    message: str
    key: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read what the command wrote; None if it ended well, or could not say."""
        try:
            return decode(path.read_bytes(), cls)
        except (FileNotFoundError, Unreadable):  # killed before or while writing
            return None

    def write(self, path: Path) -> None:
        with suppress(OSError):  # a full disk: the exit status has to do
            path.write_bytes(encode(self).encode())

"""How a command that another one started has ended, told in a file instead of by its output."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cifar_lightning.errors import CifarLightningError, UserError

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
    def of(cls, error: CifarLightningError) -> Outcome:
        key = error.key if isinstance(error, UserError) else None
        return cls(error.kind, str(error), key)

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """Read what the command wrote; None if it ended well, or could not say."""
        try:
            content: Any = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # killed before or while writing
            return None
        return cls(**content)

    def write(self, path: Path) -> None:
        with suppress(OSError):  # a full disk: the exit status has to do
            path.write_text(json.dumps(asdict(self)))


def requested() -> Path | None:
    """Tell where this command's outcome is wanted; its own child processes are not asked for it."""
    path = os.environ.pop(VARIABLE, None)
    return Path(path) if path else None

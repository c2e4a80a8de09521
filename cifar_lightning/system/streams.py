"""Output that survives a reader that goes away: a closed window, ``| head -1``, ``2>&-``."""

import errno
import io
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


# A pipe's or a connection's reader has gone, or the terminal has.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENXIO)


def secure() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` safe to write to until the process ends.

    A descriptor that is closed is opened on ``/dev/null``, so that no file of ours gets its number;
    one whose reader goes away is sent there then. What a terminal's encoding lacks is shown by
    its number. Streams that somebody else has put in place stay.
    """
    for descriptor in (0, 1, 2):  # in this order: each gets its own number
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        with suppress(OSError, AttributeError):  # it is None where the descriptor was closed
            stream.flush()
        raw = _Lasting(descriptor, "wb", closefd=False)
        write_through = getattr(stream, "write_through", False)
        secured = io.TextIOWrapper(
            raw if write_through else io.BufferedWriter(raw),  # as Python does
            getattr(stream, "encoding", "utf-8"),
            "backslashreplace",
            line_buffering=getattr(stream, "line_buffering", True),
            write_through=write_through,
        )
        setattr(sys, name, secured)


class _Lasting(io.FileIO):
    """Writes to a descriptor, and to nowhere once its reader has gone.

    A file on a disk has no reader: what can't be written there is an error.
    """

    def write(self, content: "ReadableBuffer") -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in GONE or stat.S_ISREG(os.fstat(self.fileno()).st_mode):
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # of C's and child processes' output, too
        os.close(nowhere)
        return super().write(content)

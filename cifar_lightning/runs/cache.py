"""What was derived from files, kept for the next time: never trusted without a look at them.

The files are the truth. A cache that is missing, damaged or made by other code is none, and what
it says of a file holds only while the file's stamp is the same.
"""

import os
from functools import cache
from hashlib import sha256
from pathlib import Path
from time import time_ns
from typing import TypeVar

import msgspec

from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.system import untrusted
from cifar_lightning.system.files import write_atomically

T = TypeVar("T")
IN_DOUBT = 0  # a stamp that equals none, not even itself
# File systems tell times in steps: what was changed so recently may change again within one.
RECENT_NS = 2 * 10**9
ROOMS = ("config", "runs", "system")  # of the code that what is derived depends on


def stamp(*paths: str) -> int:
    """Tell the state of files and folders by their times and sizes, as one number.

    It is another one once any of them was written, replaced or removed. A file's times of change
    are the system's, so copying another file's over it is seen, too.
    """
    seen: list[tuple[int, ...]] = []
    latest = 0
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116  # of ten thousands, `Path` takes most of the time
        except OSError:
            seen.append(())
            continue
        seen.append((found.st_mtime_ns, found.st_ctime_ns, found.st_size))
        latest = max(latest, found.st_ctime_ns)
    return IN_DOUBT if latest > time_ns() - RECENT_NS else hash(tuple(seen))


def read_cache(path: Path, kind: type[T]) -> T | None:
    """Read what `write_cache` wrote; None if there is nothing that could be used."""
    try:
        digest, content = untrusted.read(path).split(b"\n", 1)
        if digest != _digest(content):
            return None
        return untrusted.decode(content, kind)
    except (OSError, ValueError):
        return None


def write_cache(path: Path, value: object) -> None:
    """Replace a cache; readers need no lock."""
    content = msgspec.json.encode(value)
    write_atomically(path, _digest(content) + b"\n" + content)


def _digest(content: bytes) -> bytes:
    return sha256(_code() + content).hexdigest().encode()


@cache
def _code() -> bytes:
    """Tell the state of the code and of ``conf``, on which names of runs depend."""
    package = Path(__file__).parents[1]
    sources = [path for room in ROOMS for path in (package / room).glob("*.py")]
    digest = sha256()
    for path in sorted([*sources, *CONF_DIR.glob("*/*.yaml")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.digest()

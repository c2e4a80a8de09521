"""The one way in for what files say: regular files of limited size, decoded as typed plain data.

A record may come from anybody. What comes through here has the types that it is declared with,
holds no interpolation, and names nothing to call but at the top of a component.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cifar_lightning.system.files import open_regular

MAX_BYTES = 128 * 2**20  # of a record: a million samples take 20 MB
MAX_WEIGHTS = 8 * 2**30
MAX_REASON = 200  # characters
MAX_DEPTH = 16  # of lists and mappings in one another
MAX_HEADER = 2**20  # of the metadata in front of weights
_BYTE = re.compile(r"[\udc80-\udcff]")
T = TypeVar("T")


class Unreadable(ValueError):
    """What a file holds is not what it should be; the text says why, in one short line."""

    def __init__(self, reason: object) -> None:
        line = " ".join(str(reason).split())
        super().__init__(line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}...")


def read(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file, and nothing else: a FIFO would wait for its writer for ever.

    Raises:
        Unreadable: If there is something else, it can't be read, or has more than ``limit`` bytes.
        FileNotFoundError: If there is nothing.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise Unreadable("a link to nothing") from error
        raise
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "too large for the memory"
        raise Unreadable(reason) from error
    if len(content) > limit:
        raise Unreadable(f"larger than {limit / 1e6:.0f} MB")
    return content


def decode(content: bytes | str, kind: type[T]) -> T:
    """Decode JSON as a type, such as a dataclass.

    Raises:
        Unreadable: If it is no JSON or of another type; the text says where.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    except (ValueError, OverflowError, MemoryError) as error:  # msgspec's errors are ValueErrors
        raise Unreadable(error) from error


def convert(value: object, kind: type[T]) -> T:
    """Check plain data against a type; errors as `decode`."""
    try:
        return msgspec.convert(value, kind)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Unreadable(error) from error


def encode(record: Any, indent: int | None = 1) -> str:
    """Write a record as JSON that `decode` reads: text as UTF-8, and what is no number as null."""
    text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False)
    # Halves of characters have no place in JSON; some stand for bytes of a file name that is no
    # UTF-8, and are written so that two names stay two.
    text = _BYTE.sub(lambda half: rf"\\x{ord(half.group()) - 0xDC00:02x}", text)
    plain = json.loads(text.encode(errors="replace"), parse_constant=lambda _: None)
    separators = (",", ":") if indent is None else None  # no spaces where nobody reads
    return json.dumps(plain, indent=indent, separators=separators, ensure_ascii=False) + "\n"


def check_plain(value: object, components: Sequence[str] = (), place: tuple[str, ...] = ()) -> None:
    """See that nothing in decoded data could be resolved, or called where nobody calls.

    Args:
        value: Mappings, lists, dataclasses and what is in them.
        components: Names of mappings at the top, which are built again from what they say: a
            ``_target_`` is allowed at their top alone.
        place: The keys that lead to the value.

    Raises:
        Unreadable: If a text or key holds an interpolation (``${``), a component names something
            to call further down, or it is nested too deeply.
    """
    if len(place) > MAX_DEPTH:
        raise Unreadable("nested too deeply")
    if isinstance(value, str):
        if "${" in value:
            raise Unreadable(f"{'.'.join(place)}: holds an interpolation")
        return
    if value is None or isinstance(value, float | int):
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            inside = (*place, str(key))
            special = str(key).startswith("_") and str(key).endswith("_")
            if special and inside[0] in components and (place[1:] or key != "_target_"):
                raise Unreadable(f"{'.'.join(inside)}: names what to call inside a component")
            check_plain(str(key), components, inside)
            check_plain(inner, components, inside)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            if not isinstance(inner, float | int):  # most of them are samples
                check_plain(inner, components, (*place, str(index)))


def metadata(content: bytes) -> dict[str, str]:
    """Take the metadata out of the bytes of a safetensors file.

    Raises:
        Unreadable: If it is no such file.
    """
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= MAX_HEADER or len(content) < 8 + size:
        raise Unreadable("no safetensors file")
    return decode(content[8 : 8 + size], _Header).metadata


class _Header(msgspec.Struct):
    """The part of a safetensors header that says what the tensors are for."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)

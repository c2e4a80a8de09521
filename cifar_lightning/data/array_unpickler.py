"""Unpickling arrays and containers only: nothing that could run code."""

import io
import pickle
import pickletools
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Python's hash of nested tuples has no limit of its own; the format has a handful, none nested.
MAX_TUPLES = 100
Member = Mapping[Any, Any]  # as it was unpickled: nothing about it is known yet


class Bad(Exception):
    """What is wrong in an archive; the place is put before it."""


def show_value(value: object) -> str:
    """Show what a file says in a short line of plain characters."""
    try:
        text = ascii(value[:80])[1:-1] if isinstance(value, str) else ascii(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a deep list
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Type:
    """Stands for ``numpy.dtype``: the letter and size of its elements, ``u1``."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        """Take byte order and the like, which say nothing about single bytes."""


class Array:
    """Stands for ``numpy.ndarray``: shape, type and bytes, and no code of numpy's.

    NumPy believes the state that a pickle gives it, up to taking bytes for addresses.
    """

    code, raw, transposed = "nothing", b"", False
    shape: tuple[int, ...] = ()

    def __init__(self, *_: object) -> None:
        """Take what a subclass of numpy's would need."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, self.transposed, raw = state
        self.shape = tuple(int(size) for size in shape)
        self.code = kind.code
        self.raw = raw.encode("latin1") if isinstance(raw, str) else raw

    def bytes(self) -> NDArray[np.uint8]:
        """Give the array itself."""
        if not isinstance(self.raw, bytes) or min(self.shape) < 0:
            raise Bad("data has no bytes")
        if len(self.raw) != prod(self.shape):
            raise Bad(f"data has {len(self.raw)} bytes, must be {prod(self.shape)}")
        pixels = np.frombuffer(self.raw, np.uint8)
        return pixels.reshape(self.shape, order="F" if self.transposed else "C")


class _Unpickler(pickle.Unpickler):
    """Knows the four names that the format needs, and imports none of them."""

    NAMES: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,  # since NumPy 2
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): str.encode,  # bytes, where Python 3 wrote by an old protocol
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.NAMES[module, name]
        except KeyError:
            raise Bad(f"{show_value(f'{module}.{name}')} has no place in it") from None


def unpickle_arrays(content: bytes) -> Member:
    """Load a pickle of containers and arrays.

    Raises:
        Bad: If it is none, or holds anything else.
    """
    try:
        _check_operations(content)
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Bad:
        raise
    except Exception as error:  # whatever pickle makes of what is no pickle
        said = show_value(str(error) or type(error).__name__)
        raise Bad(f"can't be read as a pickle ({said})") from error
    if not isinstance(loaded, dict):
        raise Bad("must be a mapping")
    return loaded


def _check_operations(content: bytes) -> None:
    """See that unpickling takes no more memory than the file, and hashes nothing deep."""
    tuples = 0
    for operation, argument, _ in pickletools.genops(content):
        tuples += operation.name.startswith("TUPLE")
        if tuples > MAX_TUPLES:
            raise Bad(f"more than {MAX_TUPLES} tuples in it")
        if operation.name.endswith("PUT") and int(argument or 0) > len(content):
            raise Bad("a memo larger than the file")

"""What a run's network answers to each test image: ``predictions/<variant>.npz``.

Two networks are compared on the same images by them.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.system import untrusted
from cifar_lightning.system.files import write_atomically

MAX_BYTES = 64 * 2**20
Classes: TypeAlias = NDArray[np.unsignedinteger]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Numbers of classes, (images,), in the order of the data's archive.

    Attributes:
        predicted: What the network answers.
        true: What is right.
    """

    predicted: Classes
    true: Classes

    @classmethod
    def read(cls, folder: Path, variant: str) -> Self:
        """Read those of a run under a variant.

        Raises:
            ValueError: If the file holds something else; the text says what, in one line.
            FileNotFoundError: If there is none.
        """
        content = io.BytesIO(untrusted.read(RunFolder(folder).prediction(variant), MAX_BYTES))
        try:
            with zipfile.ZipFile(content) as packed:
                if sum(one.file_size for one in packed.infolist()) > MAX_BYTES:
                    raise ValueError("unpacked too large")
            with np.load(content, allow_pickle=False) as arrays:
                found = cls(arrays["predicted"], arrays["true"])
        except (
            ValueError, KeyError, OSError, EOFError, MemoryError, NotImplementedError,
            RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            raise untrusted.Unreadable(error) from error
        for one in (found.predicted, found.true):
            if one.dtype.kind != "u" or one.ndim != 1 or one.shape != found.true.shape:
                raise untrusted.Unreadable("not two lists of classes")
        return found

    def save(self, folder: Path, variant: str) -> None:
        """Write them into a run's folder, in place of earlier ones."""
        stream = io.BytesIO()
        np.savez_compressed(stream, predicted=self.predicted, true=self.true)
        write_atomically(RunFolder(folder).prediction(variant), stream.getvalue())

    @property
    def right(self) -> NDArray[np.bool_]:
        """Of each image, whether it was classified correctly."""
        right: NDArray[np.bool_] = self.predicted == self.true
        return right

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * int(self.right.sum()) / len(self.right)

    def confusion(self, classes: int) -> list[list[int]]:
        """Count images, a row for each true class and a column for each predicted one.

        Raises:
            ValueError: If there are other classes.
        """
        if len(self.true) and max(self.true.max(), self.predicted.max()) >= classes:
            raise ValueError(f"not of {classes} classes")
        cells = self.true.astype(np.int64) * classes + self.predicted
        counts: list[list[int]] = (
            np.bincount(cells, minlength=classes**2).reshape(classes, classes).tolist()
        )
        return counts

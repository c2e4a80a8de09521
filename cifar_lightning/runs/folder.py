"""Where a run's files are: the one place that knows their names."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from cifar_lightning.errors import UserError
from cifar_lightning.system.files import check_inside

RUNS = "runs"  # the folder of the runs in the outputs
BENCHMARKS = "benchmarks"  # that of the benchmarks
RECORD, MEASUREMENTS = "run.json", "measurements"  # in the folder of a run
BOARD = "tensorboard"  # the folder in the outputs that TensorBoard is given
DRAWN = ".results"  # the ending of what TensorBoard shows beside the curves


def run_folders(outputs: Path) -> list[str]:
    """List the names of what lies where the outputs' runs are."""
    runs = outputs / RUNS
    return sorted(os.listdir(runs)) if runs.is_dir() else []  # noqa: PTH208  # names, not paths


def remove_link(outputs: Path, label: str, name: str) -> None:
    """Remove TensorBoard's link to a run's curves, and its ID's folder if no other has that ID."""
    link = outputs / BOARD / label / name
    with suppress(OSError, UserError):
        check_inside(outputs, link.parent)
        if link.is_symlink():
            link.unlink()
            link.parent.rmdir()


class RunFolder:
    """The paths of a run's files, whether they are there or not.

    Attributes:
        lock: Held by the process that trains the run.
        log: What the training run said.
        output: What a job of a sweep that failed printed.
        csv: The metrics, with ``logger=csv``.
        results: Removed when a run starts over; the record first, since without it there is no run.
        before_training: Made before there is a record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / RECORD
        self.weights = path / "weights.safetensors"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.measurements = path / MEASUREMENTS
        self.predictions = path / "predictions"
        self.tensorboard = path / "tensorboard"
        self.csv = path / "csv"
        self.hydra = path / ".hydra"
        self.overrides = self.hydra / "overrides.yaml"
        self.lock = path / ".lock"
        self.log = path / "train.log"
        self.output = path / "output.log"
        self.results = (
            self.record, self.weights, self.checkpoints, self.measurements, self.predictions,
            self.tensorboard, self.csv,
        )  # fmt: skip
        self.before_training = (self.hydra, self.lock, self.log)

    @classmethod
    def of(cls, outputs: Path, name: str) -> Self:
        """Take the folder of the run of that name."""
        return cls(outputs / RUNS / name)

    @property
    def outputs(self) -> Path:
        return self.path.parent.parent

    def is_in(self, outputs: Path) -> bool:
        """Tell whether it is one of these outputs' runs, and not one that was moved elsewhere."""
        return self.path.resolve().parent == (outputs / RUNS).resolve()

    def link_board(self, label: str) -> None:
        """Link its curves under its ID, by which TensorBoard lists it then.

        A link of an earlier ID is removed. Without links TensorBoard can still be given the runs,
        so nothing is said where there can't be any.
        """
        board = self.outputs / BOARD
        link = board / label / self.path.name
        if not self.tensorboard.is_dir() or not self.is_in(self.outputs):
            return
        with suppress(OSError, UserError):
            check_inside(self.outputs, link.parent)
            for other in os.listdir(board) if board.is_dir() else ():  # noqa: PTH208
                if other != label and os.path.islink(f"{board}/{other}/{self.path.name}"):  # noqa: PTH114
                    remove_link(self.outputs, other, self.path.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(Path("..", "..", RUNS, self.path.name, self.tensorboard.name))

    def drawings(self) -> list[Path]:
        """List what was drawn for TensorBoard out of the records; the curves are no part of it."""
        return list(self.tensorboard.glob(f"*{DRAWN}"))

    def is_undrawn(self) -> bool:
        """Tell whether TensorBoard lacks a finished run's results, or they are newer."""
        drawn = [path.stat().st_mtime_ns for path in self.drawings()]
        results = self.record, *self.measurements.glob("*.json")
        newest = max(path.stat().st_mtime_ns for path in results)
        return self.tensorboard.is_dir() and (not drawn or newest > max(drawn))

    def measurement(self, variant: str, hardware: str, threads: int, protocol: str) -> Path:
        return self.measurements / f"{variant}@{hardware}-t{threads}-{protocol}.json"

    def prediction(self, variant: str) -> Path:
        return self.predictions / f"{variant}.npz"

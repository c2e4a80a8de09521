"""All that a report reads: runs with their measurements and predictions, and benchmarks."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Self

import yaml

from cifar_lightning.comparison.accuracy import Right
from cifar_lightning.errors import UserError
from cifar_lightning.runs.benchmark import BenchmarkMeans, BenchmarkRecord
from cifar_lightning.runs.folder import BENCHMARKS, RUNS, RunFolder
from cifar_lightning.runs.interleaved import Interleaved
from cifar_lightning.runs.predictions import Predictions
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.run import left_out
from cifar_lightning.system import untrusted
from cifar_lightning.system.files import finished_files


@dataclass(frozen=True)
class Records:
    """What is compared.

    Attributes:
        runs: With their rows.
        benchmarks: By their ids.
        right: By a run's name and a variant, which test images were classified correctly.
        overrides: By a run's name, what its command said.
        damaged: One line for each file that could not be read and is left out.
    """

    runs: Sequence[RunResults]
    benchmarks: Mapping[str, Interleaved] = field(default_factory=dict)
    right: Mapping[tuple[str, str], Right] = field(default_factory=dict)
    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    damaged: Sequence[str] = ()

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The runs' folders by their names."""
        return {one.run.name: one.folder for one in self.runs if one.run is not None}

    @classmethod
    def read(cls, outputs: Sequence[Path]) -> Self:
        """Read everything below several outputs folders; what is damaged is left out.

        Raises:
            UserError: If one is no outputs folder, or there is no run in any.
        """
        runs: list[RunResults] = []
        for folder in outputs:
            if not (folder / RUNS).is_dir():
                raise UserError(
                    f"outputs={folder}: there is no folder {RUNS} in it; train a run first"
                )
            runs += RunResults.read_all(folder)
        if not any(one.lines or one.damaged for one in runs):
            raise UserError(f"outputs={','.join(map(str, outputs))}: no finished run in it")
        damaged = [line for one in runs for line in one.damaged]
        benchmarks = _benchmarks(outputs, damaged)
        return cls(runs, benchmarks, _right(runs, damaged), _overrides(runs), damaged)


def _benchmarks(outputs: Iterable[Path], damaged: list[str]) -> dict[str, BenchmarkMeans]:
    found = {}
    for path in [path for one in outputs for path in finished_files(one / BENCHMARKS, ".json")]:
        try:
            record = BenchmarkRecord.read(path)
            if record.id != path.stem:
                raise ValueError(f"it is the benchmark {record.id}")
        except FileNotFoundError:
            continue  # another process has removed it
        except ValueError as error:
            damaged.append(left_out(path, error))
        else:
            found[record.id] = BenchmarkMeans.of(record, partial(_whole, path))
    return found


@lru_cache(maxsize=2)
def _whole(path: Path) -> BenchmarkRecord:
    """Read a benchmark with its calls; all entries of one are asked for one after the other."""
    return BenchmarkRecord.read(path)


def _right(runs: Iterable[RunResults], damaged: list[str]) -> dict[tuple[str, str], Right]:
    """Read the predictions that measurements are of; on another machine they may differ."""
    found = {}
    for one in runs:
        for _, measurement in one.lines:
            if one.run is None or measurement is None or measurement.confusion is None:
                continue
            variant, confusion = measurement.variant, measurement.confusion
            try:
                predictions = Predictions.read(one.folder, variant)
                if predictions.confusion(len(confusion)) == confusion:
                    found[one.run.name, variant] = predictions.right
            except FileNotFoundError:
                continue
            except ValueError as error:
                damaged.append(left_out(RunFolder(one.folder).prediction(variant), error))
    return found


def _overrides(runs: Iterable[RunResults]) -> Mapping[str, Sequence[str]]:
    """Read what Hydra wrote down of each run's command, where it is there."""
    found = {}
    for one in runs:
        if one.run is not None:
            with suppress(OSError, ValueError, yaml.YAMLError):
                said = yaml.safe_load(untrusted.read(RunFolder(one.folder).overrides))
                found[one.run.name] = untrusted.convert(said, list[str])
    return found

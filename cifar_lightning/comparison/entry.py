"""A row of a leaderboard: a candidate with the group of seeds that represents it."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from cifar_lightning.comparison.accuracy import Accuracy, Right
from cifar_lightning.comparison.relation import Timed, Timings
from cifar_lightning.runs.candidate import candidate_key
from cifar_lightning.runs.identity import group_name
from cifar_lightning.runs.latency import LatencyStats, worth
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import MEGA, Run


def says_most(measurement: Measurement, here: Collection[str]) -> tuple[bool, int, str]:
    """Sort the measurement that shows a latency last: the latest.

    Those whose benchmark is here outweigh others, and then those of whole benchmarks.

    Args:
        measurement: One of several of a candidate.
        here: Benchmarks' ids.
    """
    benchmark = measurement.benchmark or ""
    return benchmark in here, worth(measurement.ended), benchmark


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in the seed, measured in one way.

    Attributes:
        label: The ID; of seeds without a common one the first one's, and how many more there are.
        runs: One a seed.
        measurements: Of those runs, in the same order.
        right: Of each run, which test images it classified correctly; empty if that is not known.
        note: What tells it from one whose variant was made by another recipe or engine.
        overrides: What the first run's command said; None if that is not known.
        folder: Of the first run.
        query: What finds the first run: its ID where no other run has that, else its name.
    """

    label: str
    runs: tuple[Run, ...]
    measurements: tuple[Measurement, ...]
    right: tuple[Right, ...] = ()
    note: str = ""
    overrides: Sequence[str] | None = None
    folder: Path = Path()
    query: str = ""

    @property
    def variant(self) -> str:
        return self.measurements[0].variant

    @property
    def threads(self) -> int:
        """CPU threads; 0 on a GPU, where they don't count."""
        first = self.measurements[0]
        return 0 if first.clock == "cuda_event" else first.threads

    @property
    def name(self) -> str:
        return self._named(f"{self.threads} threads" if self.threads > 1 else "", self.note)

    @property
    def name_among_peers(self) -> str:
        """The name where all have as many threads."""
        return self._named(self.note)

    def _named(self, *notes: str) -> str:
        more = ", ".join(filter(None, notes))
        return f"{self.label} {self.variant}{more and f' ({more})'}"

    @property
    def seeds_name(self) -> str:
        return group_name(self.runs[0].config, self.runs[0].choices)

    @cached_property
    def accuracy(self) -> Accuracy:
        """In percent of the test images, under this variant."""
        values = [m.test_acc for m in self.measurements if m.test_acc is not None]
        return Accuracy(values, self._images, self.right)

    @property
    def _images(self) -> int | None:
        confusion = self.measurements[0].confusion
        return None if confusion is None else sum(map(sum, confusion))

    @property
    def val_acc(self) -> float | None:
        """Mean over the seeds, by which trainings of one candidate are chosen."""
        return _mean([run.val_acc for run in self.runs])

    @property
    def represents(self) -> tuple[bool, float, int]:
        """Sort what represents a candidate last."""
        found = self.val_acc
        return found is not None, found or 0.0, self.runs[0].config["epochs"]

    @property
    def acc_from(self) -> str | None:
        """Where accuracies were evaluated that were carried over."""
        found = [str(one.carried_over) for one in self.measurements if one.carried_over]
        return "; ".join(dict.fromkeys(found)) or None

    @property
    def size_mb(self) -> float | None:
        return _mean([m.size_bytes and m.size_bytes / MEGA for m in self.measurements])

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts over all seeds; a row for each true class, a column for each predicted one."""
        known = [m.confusion for m in self.measurements if m.confusion is not None]
        if len(known) < len(self.measurements):
            return None
        return [
            [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*known, strict=True)
        ]

    @property
    def classes(self) -> list[str]:
        return self.runs[0].class_names(len(self.measurements[0].confusion or ()))

    def matches(self, query: str) -> bool:
        """Tell whether it is meant by an ID, a name with its variant or a run's beginning."""
        return query in (self.label, self.name) or any(
            query == run.label or run.name.startswith(query) for run in self.runs
        )


@dataclass(frozen=True, eq=False)
class Entry:
    """A candidate with the group of seeds that represents it: a row of the comparison.

    Attributes:
        groups: All that were trained, the one that represents it first.
        measurement: What `says_most` of all its runs', as they have one latency.
        timings: Its latency beside others'.
    """

    groups: tuple[Group, ...]
    measurement: Measurement
    timings: Timings

    @classmethod
    def of(cls, groups: Sequence[Group], timed: Sequence[Timed] = ()) -> Self:
        """Make the entry of a candidate's groups and of where it was timed."""
        measurements = [one for group in groups for one in group.measurements]
        here = {one.benchmark.id for one in timed}
        latest = max(measurements, key=lambda one: says_most(one, here))
        ordered = sorted(groups, key=lambda one: one.represents, reverse=True)
        return cls(tuple(ordered), latest, Timings.of(latest, timed))

    @property
    def group(self) -> Group:
        """The one that represents it."""
        return self.groups[0]

    @property
    def label(self) -> str:
        return self.group.label

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def name_among_peers(self) -> str:
        return self.group.name_among_peers

    @property
    def variant(self) -> str:
        return self.group.variant

    @property
    def threads(self) -> int:
        return self.group.threads

    @property
    def network(self) -> str:
        return self.group.runs[0].choices["model"]

    @property
    def accuracy(self) -> Accuracy:
        return self.group.accuracy

    @property
    def told_apart(self) -> bool:
        return by_weights(self.group.runs[0], self.group.measurements[0])

    @property
    def latency(self) -> LatencyStats:
        """The statistics of that measurement, which has them."""
        assert self.measurement.latency is not None
        return self.measurement.latency

    @cached_property
    def relative(self) -> float:
        """Its latency over the reference's."""
        return self.timings.relative.ratio[0]

    @property
    def size_mb(self) -> float | None:
        return self.group.size_mb

    @property
    def params(self) -> int:
        return self.group.runs[0].params

    @property
    def macs(self) -> int:
        return self.group.runs[0].macs

    @property
    def marks(self) -> list[str]:
        """What to know before trusting its latency."""
        return self.measurement.marks


def by_weights(run: Run, how: Measurement) -> bool:
    """Tell whether a run is a candidate of its own, because weights changed the latency."""
    key = candidate_key(run.config["model"], how.variant, how.recipe, how.engines, how.threads)
    return how.candidate != key


def _mean(values: Sequence[float | None]) -> float | None:
    """Take the mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None

"""A row of a leaderboard, and what rows must share to be ranked together."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from scipy import stats

from cifar_lightning.runs.identity import group_name
from cifar_lightning.runs.latency import CONFIDENCE, LatencyStats
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import MEGA, Run


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        low: Of the interval; minus infinity where it is not known, which ties with everything.
        high: Of the interval; infinity where it is not known.
        std: Standard deviation over the seeds; None for one.
        n: Number of seeds.
    """

    mean: float
    low: float
    high: float
    std: float | None
    n: int

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval reaches below and above the mean; 0 where it is not known."""
        return (self.mean - self.low, self.high - self.mean) if self.known else (0.0, 0.0)

    @classmethod
    def over_seeds(
        cls,
        means: Sequence[float],
        intervals: Sequence[tuple[float, float] | None],
        highest: float = math.inf,
    ) -> Self:
        """Combine each seed's figure and its own 95 % interval.

        One seed keeps its interval. Several get Student's interval of their mean, made as wide as
        the widest of their own where it is narrower: seeds that agree by chance prove nothing.

        Args:
            means: One a seed, not negative.
            intervals: Each one's own; None where it is not known.
            highest: What the figure can be at most.
        """
        n, mean = len(means), statistics.fmean(means)
        std = statistics.stdev(means, mean) if n > 1 else None
        known = [interval for interval in intervals if interval is not None]
        if len(known) < n:
            return cls(mean, -math.inf, math.inf, std, n)
        below = max(value - low for value, (low, _) in zip(means, known, strict=True))
        above = max(high - value for value, (_, high) in zip(means, known, strict=True))
        if std is not None:
            half = _student(n) * std / math.sqrt(n)
            below, above = max(half, below), max(half, above)
        return cls(mean, max(mean - below, 0.0), min(mean + above, highest), std, n)

    def significantly_below(self, other: Self) -> bool:
        return self.high < other.low

    def overlaps(self, other: Self) -> bool:
        return not self.significantly_below(other) and not other.significantly_below(self)


def _student(n: int) -> float:
    """Take Student's quantile for the mean of ``n`` values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


@dataclass(frozen=True, order=True)
class Conditions:
    """What has to be the same for two rows to be ranked together.

    Attributes:
        threads: On a CPU; 0 on a GPU, where they don't count.
        hardware: What the device is, more exactly than its name.
        torch: The version that executed it.
    """

    dataset: str
    fingerprint: str
    device: str
    threads: int
    clock: str
    protocol: str
    protocol_version: int
    hardware: str = ""
    torch: str = ""

    @property
    def name(self) -> str:
        return f"{self.device}{self._rest}"

    @property
    def _rest(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        version = f", version {self.protocol_version}" if self.protocol_version > 1 else ""
        return f"{threads} on {self.dataset}, {self.protocol} protocol{version}"

    @property
    def slug(self) -> str:
        """Name its files, each condition another one."""
        text = f"{self.hardware or self.device} torch {self.torch}{self._rest}"
        kept = "".join(c if c.isalnum() else "-" for c in text.lower())
        return f"{'-'.join(filter(None, kept.split('-')))}-{self.fingerprint[:8]}"


@dataclass(frozen=True, eq=False)
class Entry:
    """A network executed in one way: a row of the comparison, its seeds together.

    Attributes:
        label: The ID; of seeds without a common one the first one's, and how many more there are.
        runs: One a seed.
        measurements: Of those runs, in the same order.
        note: What tells it from one whose variant was made by another recipe or engine.
    """

    label: str
    runs: tuple[Run, ...]
    measurements: tuple[Measurement, ...]
    note: str = ""

    @property
    def variant(self) -> str:
        return self.measurements[0].variant

    @property
    def name(self) -> str:
        return f"{self.label} {self.variant}{self.note and f' ({self.note})'}"

    @property
    def group(self) -> str:
        return group_name(self.runs[0].config, self.runs[0].choices)

    @property
    def network(self) -> str:
        return self.runs[0].choices["model"]

    @cached_property
    def accuracy(self) -> Estimate:
        """In percent of the test images, under this variant."""
        values = [float(m.test_acc or 0) for m in self.measurements]
        return Estimate.over_seeds(values, [_test_interval(m) for m in self.measurements], 100.0)

    @cached_property
    def mean_ms(self) -> Estimate:
        values = [_stats(m).mean_ms for m in self.measurements]
        return Estimate.over_seeds(values, [_latency_interval(m) for m in self.measurements])

    @property
    def p95_ms(self) -> float | None:
        """Mean over the seeds."""
        return _mean([_stats(m).p95_ms for m in self.measurements])

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

    @property
    def params(self) -> int:
        return self.runs[0].params

    @property
    def macs(self) -> int:
        return self.runs[0].macs

    @property
    def converged(self) -> bool:
        return all(_stats(m).converged for m in self.measurements)


def _mean(values: Sequence[float | None]) -> float | None:
    """Take the mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _stats(measurement: Measurement) -> LatencyStats:
    """Take the latency of a ranked measurement, which has one."""
    assert measurement.latency is not None
    return measurement.latency


def _test_interval(measurement: Measurement) -> tuple[float, float] | None:
    """Wilson's interval: how far the finite test split lets the accuracy be off."""
    if measurement.confusion is None:  # not recorded: the number of test images is not known
        return None
    n = sum(map(sum, measurement.confusion))
    right = round(float(measurement.test_acc or 0) * n / 100)
    interval = stats.binomtest(right, n).proportion_ci(CONFIDENCE, "wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def _latency_interval(measurement: Measurement) -> tuple[float, float] | None:
    mean, width = _stats(measurement).mean_ms, _stats(measurement).mean_ci_ms
    return None if width is None else (mean - width, mean + width)


# How a variant was made: the versions of its parts, and of what executed it beside torch.
Making = tuple[tuple[str, str], ...]

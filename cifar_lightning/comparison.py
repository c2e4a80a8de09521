"""The comparison: what may be ranked together, who is better than whom, and which one to take.

Pure functions of runs and their measurements. Whatever is uncertain is an interval, and two
intervals that overlap are a tie: nothing is ranked by less than that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf
from scipy import stats

from cifar_lightning.config import CONF_DIR, NAMING_GROUPS, group_name, training_config
from cifar_lightning.errors import unknown_name
from cifar_lightning.results import MEGA, Measurement, Recorded, Row, Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        std: Standard deviation over the seeds; None for one.
        n: Number of seeds.
    """

    mean: float
    low: float
    high: float
    std: float | None
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @classmethod
    def over_seeds(
        cls, means: Sequence[float], intervals: Sequence[tuple[float, float]]
    ) -> Estimate:
        """Combine each seed's figure and its own 95 % interval.

        One seed keeps its interval. Several get Student's interval of their mean, made as wide as
        the widest of their own where it is narrower: seeds that agree by chance prove nothing.
        """
        n, mean = len(means), statistics.fmean(means)
        below = max(value - low for value, (low, _) in zip(means, intervals, strict=True))
        above = max(high - value for value, (_, high) in zip(means, intervals, strict=True))
        if n == 1:
            return cls(mean, mean - below, mean + above, None, 1)
        std = statistics.stdev(means, mean)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
        return cls(mean, mean - max(half, below), mean + max(half, above), std, n)

    def surely_below(self, other: Estimate) -> bool:
        return self.high < other.low

    def ties_with(self, other: Estimate) -> bool:
        return not self.surely_below(other) and not other.surely_below(self)


@dataclass(frozen=True, order=True)
class Conditions:
    """What has to be the same for two rows to be ranked together.

    Attributes:
        threads: On a CPU; 0 on a GPU, where they don't count.
    """

    dataset: str
    fingerprint: str
    device: str
    threads: int
    clock: str
    protocol: str

    @property
    def name(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.device}{threads} on {self.dataset}, {self.protocol} protocol"

    @property
    def slug(self) -> str:
        kept = "".join(c if c.isalnum() else "-" for c in self.name.lower())
        return f"{'-'.join(filter(None, kept.split('-')))}-{self.fingerprint[:4]}"


@dataclass(frozen=True, eq=False)
class Entry:
    """A network executed in one way: a row of the comparison, its seeds together.

    Attributes:
        label: The ID; of seeds without a common one the first one's, and how many more there are.
        runs: One a seed.
        measurements: Of those runs, in the same order.
    """

    label: str
    runs: tuple[Run, ...]
    measurements: tuple[Measurement, ...]

    @property
    def variant(self) -> str:
        return self.measurements[0].variant

    @property
    def name(self) -> str:
        return f"{self.label} {self.variant}"

    @property
    def network(self) -> str:
        return self.runs[0].choices["model"]

    @cached_property
    def accuracy(self) -> Estimate:
        """In percent of the test images, under this variant."""
        values = [float(m.test_acc or 0) for m in self.measurements]
        return Estimate.over_seeds(values, [_test_interval(m) for m in self.measurements])

    @cached_property
    def mean_ms(self) -> Estimate:
        values = [m.latency["mean_ms"] for m in self.measurements]
        widths = [m.latency.get("mean_ci_ms") or 0.0 for m in self.measurements]
        return Estimate.over_seeds(
            values, [(v - w, v + w) for v, w in zip(values, widths, strict=True)]
        )

    @cached_property
    def p95_ms(self) -> Estimate | None:
        found = [m.latency for m in self.measurements if m.latency.get("p95_ms") is not None]
        if not found:
            return None
        values = [one["p95_ms"] for one in found]
        ends = [(one.get("p95_low_ms"), one.get("p95_high_ms")) for one in found]
        return Estimate.over_seeds(
            values,
            [
                (v if a is None else a, v if b is None else b)
                for v, (a, b) in zip(values, ends, strict=True)
            ],
        )

    @property
    def size_mb(self) -> float:
        return statistics.fmean(m.size_bytes or 0 for m in self.measurements) / MEGA

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
        count = len(self.measurements[0].confusion or ())
        return self.runs[0].classes or [str(number) for number in range(count)]

    def answers_to(self, query: str) -> bool:
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
        return all(m.latency.get("converged") is not False for m in self.measurements)


def _test_interval(measurement: Measurement) -> tuple[float, float]:
    """Wilson's interval: how far the finite test split lets the accuracy be off."""
    value = float(measurement.test_acc or 0)
    if measurement.confusion is None:  # not recorded: the number of test images is not known
        return value, value
    n = sum(map(sum, measurement.confusion))
    interval = stats.binomtest(round(value * n / 100), n).proportion_ci(CONFIDENCE, "wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


@dataclass(frozen=True)
class Arena:
    """Entries that may be ranked together, and the one that the others are compared with."""

    conditions: Conditions
    entries: tuple[Entry, ...]
    baseline: Entry

    def rank(self, entry: Entry, of: Callable[[Entry], Estimate], highest: bool) -> str:
        """Rank an entry behind all that are surely better; ``=`` marks a tie with another.

        Args:
            entry: One of the arena's.
            of: The figure to rank by.
            highest: Whether a high one is good.
        """
        mine = of(entry)
        others = [of(other) for other in self.entries if other is not entry]
        better = sum(
            mine.surely_below(other) if highest else other.surely_below(mine) for other in others
        )
        tied = any(mine.ties_with(other) for other in others)
        return f"{better + 1}{'=' * tied}"

    @cached_property
    def dominators(self) -> dict[Entry, Entry]:
        """For each entry that another one makes needless, that other one.

        It is surely better in accuracy or latency and surely worse in neither; of several the
        fastest on the front.
        """
        found = {
            entry: [other for other in self.entries if _dominates(other, entry)]
            for entry in self.entries
        }
        front = [entry for entry in self.entries if not found[entry]]
        return {
            entry: min(
                [other for other in others if other in front] or others,
                key=lambda other: other.mean_ms.mean,
            )
            for entry, others in found.items()
            if others
        }

    @property
    def front(self) -> list[Entry]:
        """What no other entry makes needless, the fastest first."""
        kept = [entry for entry in self.entries if entry not in self.dominators]
        return sorted(kept, key=lambda entry: entry.mean_ms.mean)

    def choice(self, min_acc: float) -> Entry | None:
        """Take the fastest entry with at least that accuracy, in percent."""
        good = [entry for entry in self.entries if entry.accuracy.mean >= min_acc]
        return min(good, key=lambda entry: entry.mean_ms.mean, default=None)


def _dominates(one: Entry, other: Entry) -> bool:
    if other.accuracy.surely_below(one.accuracy):
        return not other.mean_ms.surely_below(one.mean_ms)
    if one.mean_ms.surely_below(other.mean_ms):
        return not one.accuracy.surely_below(other.accuracy)
    return False


# --- From files to arenas -------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """All there is: rows to be ranked, by their conditions, and rows that can't be.

    Attributes:
        apart: Rows that failed, were disturbed, are unsupported or not measured.
    """

    arenas: tuple[Arena, ...]
    apart: tuple[Row, ...]


Keep = Callable[[Conditions, Entry], bool]


def compare(
    recorded: Iterable[Recorded], baseline: str | None = None, keep: Keep = lambda *_: True
) -> Comparison:
    """Sort all rows into arenas.

    Args:
        recorded: Runs with their rows.
        baseline: The ID (or the beginning of a run's name) of the row that others are compared
            with; else the first row. Its fp32 variant is taken where there is one.
        keep: Says which entries are wanted.

    Raises:
        UserError: If there is no such baseline.
    """
    apart: list[Row] = []
    seeds: dict[Conditions, dict[tuple[str, str], dict[str, tuple[Run, Measurement]]]] = {}
    for one in sorted(recorded, key=lambda one: one.run.started if one.run else ""):
        for row, measurement in one.lines:
            if one.run is None or measurement is None or row["status"] != "ok":
                apart.append(row)
                continue
            group = group_name(one.run.config, one.run.choices), measurement.variant
            # The same run measured in two places under the same conditions counts once.
            alike = seeds.setdefault(_conditions(one.run, measurement), {}).setdefault(group, {})
            alike[one.run.name] = one.run, measurement
    labels = _labels(seeds.values())
    arenas = []
    known: set[str] = set()
    for conditions, groups in sorted(seeds.items()):
        entries = [
            Entry(labels[group], *zip(*alike.values(), strict=True))
            for (group, _), alike in groups.items()
        ]
        known |= {entry.label for entry in entries}
        base = _baseline(entries, baseline) or entries[0]
        kept = tuple(entry for entry in entries if keep(conditions, entry))
        if kept:
            arenas.append(Arena(conditions, kept, base))
    if baseline is not None and known and not any(a.baseline.answers_to(baseline) for a in arenas):
        raise unknown_name(f"baseline={baseline}", "row", baseline, known)
    return Comparison(tuple(arenas), tuple(apart))


def _conditions(run: Run, measurement: Measurement) -> Conditions:
    return Conditions(
        dataset=run.config["data"]["name"],
        fingerprint=run.data_fingerprint,
        device=measurement.device,
        threads=0 if measurement.clock == "cuda_event" else measurement.threads,
        clock=measurement.clock,
        protocol=measurement.protocol,
    )


def _labels(
    arenas: Iterable[Mapping[tuple[str, str], Mapping[str, tuple[Run, Measurement]]]],
) -> dict[str, str]:
    """Name each group: its common ID, else its first run's with the number of the others."""
    runs: dict[str, dict[str, Run]] = {}
    for groups in arenas:
        for (group, _), alike in groups.items():
            runs.setdefault(group, {}).update((name, run) for name, (run, _) in alike.items())
    labels = {}
    for group, members in runs.items():
        names = {run.label for run in members.values()}
        first = min(members.values(), key=lambda run: run.started).label
        labels[group] = first if len(names) == 1 else f"{first}+{len(members) - 1}"
    taken = list(labels.values())
    return {
        group: label if taken.count(label) == 1 else f"{label}/{group.rpartition('-')[2][:4]}"
        for group, label in labels.items()
    }


def _baseline(entries: Sequence[Entry], query: str | None) -> Entry | None:
    found = [entry for entry in entries if query is None or entry.answers_to(query)]
    # Of the first group's variants, the plain one.
    found = [entry for entry in found if entry.label == found[0].label]
    return min(found, key=lambda entry: entry.variant != "fp32", default=None)


# --- One change at a time -------------------------------------------------------------------

# Keys that repeat another one (a test holds this against conf/), and the seed, which is no change.
REPEATED = {
    "augment.cutmix.num_classes",
    "augment.cutout.fill",
    "augment.mixup.num_classes",
    "data.batch_size",
    "data.cache_dir",
    "data.seed",
    "model.num_classes",
    "seed",
    "trainer.max_epochs",
    "trainer.precision",
}


def changes(base: Entry, entry: Entry) -> list[str]:
    """Tell what differs from the baseline's configuration, each change in a few words.

    Another network, optimizer or schedule is one change together with the defaults that come with
    it; so is a feature that was off. The seed is none.
    """
    old, new = (settings(one.runs[0]) for one in (base, entry))
    choices = base.runs[0].choices, entry.runs[0].choices
    found = []
    for name in (*NAMING_GROUPS, *sorted((old.keys() | new.keys()) - {*NAMING_GROUPS})):
        before, after = old.get(name), new.get(name)
        if name in NAMING_GROUPS and choices[0][name] != choices[1][name]:
            found.append(f"{name} {choices[0][name]} → {choices[1][name]}")
            unusual = _unusual(name, choices[0], old) | _unusual(name, choices[1], new)
            before, after = ({key: one[name].get(key) for key in unusual} for one in (old, new))
        if name == "augment":
            found += _augment_changes(before or {}, after or {})
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(name, before, after)
        elif before != after:
            found.append(f"{name} {_shown(before)} → {_shown(after)}")
    if base.variant != entry.variant:
        found.append(f"variant {base.variant} → {entry.variant}")
    return found


def _differences(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{name}.{key} {_shown(before.get(key))} → {_shown(after.get(key))}"


def _unusual(name: str, choices: Mapping[str, str], found: Mapping[str, Any]) -> set[str]:
    """Tell which of an option's settings are not its file's."""
    path = CONF_DIR / name / f"{choices[name]}.yaml"
    file = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    assert isinstance(file, dict)
    return {key for key, value in found[name].items() if file.get(key) != value}


def settings(run: Run) -> dict[str, Any]:
    """Keep a run's settings that change the weights, each in one place."""

    def kept(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: kept(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in node.items()
            if prefix + key not in REPEATED
        }

    training = training_config(run.config)
    return kept(training | {"augment": dict(training["augment"])}, "")


def _augment_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if list(before) != list(after):
        yield f"augment {', '.join(before) or 'none'} → {', '.join(after) or 'none'}"
    for name in before:
        if name in after:
            yield from _differences(f"augment.{name}", before[name], after[name])


def _shown(value: Any) -> str:
    if value is None:
        return "off"
    if isinstance(value, Mapping):
        kept = [f"{key}={_shown(one)}" for key, one in value.items() if not key.startswith("_")]
        return f"on ({', '.join(kept)})" if kept else "on"
    return f"{value:g}" if isinstance(value, float) else str(value)


def effect(base: Entry, entry: Entry) -> str:
    """Tell what the changes did to accuracy, latency and size."""
    points = entry.accuracy.mean - base.accuracy.mean
    tie = " (tie)" if entry.accuracy.ties_with(base.accuracy) else ""
    slow = " (tie)" if entry.mean_ms.ties_with(base.mean_ms) else ""
    share = 100 * (entry.mean_ms.mean / base.mean_ms.mean - 1)
    size = 100 * (entry.size_mb / base.size_mb - 1) if base.size_mb else 0.0
    return f"accuracy {points:+.2f} points{tie}, latency {share:+.0f} %{slow}, size {size:+.0f} %"


# --- In sentences ---------------------------------------------------------------------------


def verdict(arena: Arena, min_acc: float) -> list[str]:
    """Say which entry to take and why not each other one."""
    chosen = arena.choice(min_acc)
    if chosen is None:
        best = max(arena.entries, key=lambda entry: entry.accuracy.mean)
        first = (
            f"No row reaches {min_acc:g} %; the most accurate is {best.name} with "
            f"{_percent(best.accuracy)}."
        )
    else:
        good = [entry for entry in arena.entries if entry.accuracy.mean >= min_acc]
        first = (
            f"Take {chosen.name}: {_percent(chosen.accuracy)} in {chosen.mean_ms.mean:.3f} ms, the "
            f"fastest of {len(good)} row{'s' * (len(good) != 1)} with at least {min_acc:g} %."
        )
        if chosen.accuracy.low < min_acc:
            first += f" Its interval reaches below {min_acc:g} %: more seeds would make it sure."
        ties = [e.name for e in good if e is not chosen and e.mean_ms.ties_with(chosen.mean_ms)]
        if ties:
            first += f" Not slower for sure: {', '.join(ties)}."
    front = ", ".join(
        f"{entry.name} ({entry.accuracy.mean:.2f} %, {entry.mean_ms.mean:.3f} ms)"
        for entry in arena.front
    )
    sentences = [first, f"On the front, from fast to accurate: {front}."]
    for entry, better in arena.dominators.items():
        sentences.append(f"{entry.name} is not needed: {_advantage(better, entry)}.")
    return sentences


def _percent(estimate: Estimate) -> str:
    seeds = f" over {estimate.n} seeds" if estimate.n > 1 else ""
    if estimate.half_width == 0:
        return f"{estimate.mean:.2f} %"
    return f"{estimate.mean:.2f} ± {estimate.half_width:.2f} %{seeds}"


def _advantage(better: Entry, entry: Entry) -> str:
    points = better.accuracy.mean - entry.accuracy.mean
    times = entry.mean_ms.mean / better.mean_ms.mean
    accurate = (
        "as accurate within the uncertainty"
        if better.accuracy.ties_with(entry.accuracy)
        else f"{points:.2f} points more accurate"
    )
    fast = (
        "as fast within the uncertainty"
        if better.mean_ms.ties_with(entry.mean_ms)
        else f"{times:.2f} times as fast"
    )
    return f"{better.name} is {accurate} and {fast}"

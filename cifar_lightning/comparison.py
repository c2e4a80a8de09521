"""The comparison: what may be ranked together, who is better than whom, and which one to take.

Pure functions of runs and their measurements. Whatever is uncertain is an interval, and two
intervals that overlap are a tie: nothing is ranked by less than that.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf
from scipy import stats

from cifar_lightning.config import (
    CONF_DIR,
    FOLLOWING,
    NAMING_GROUPS,
    group_name,
    training_config,
)
from cifar_lightning.errors import bad_value, unknown_name
from cifar_lightning.latency_stats import LatencyStats
from cifar_lightning.results import MEGA, Measurement, Recorded, Row, Run

CONFIDENCE = 0.95


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
    ) -> Estimate:
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

    def surely_below(self, other: Estimate) -> bool:
        return self.high < other.low

    def ties_with(self, other: Estimate) -> bool:
        return not self.surely_below(other) and not other.surely_below(self)


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
        values = [_stats(m).p95_ms for m in self.measurements]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(self.measurements) else None

    @property
    def size_mb(self) -> float | None:
        known = [m.size_bytes for m in self.measurements if m.size_bytes is not None]
        return statistics.fmean(known) / MEGA if len(known) == len(self.measurements) else None

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
        return all(_stats(m).converged for m in self.measurements)


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
    """Take the interval within the process, or between fresh processes where that is wider."""
    mean, width = _stats(measurement).mean_ms, _stats(measurement).mean_ci_ms
    if width is None:
        return None
    means = [repeat.mean_ms for repeat in measurement.repeats]
    if (n := len(means)) > 1:
        width = max(width, _student(n) * statistics.stdev(means) / math.sqrt(n))
    return mean - width, mean + width


@dataclass(frozen=True)
class Arena:
    """Entries that may be ranked together, and the one that the others are compared with.

    Attributes:
        name: Of the conditions, with the data's fingerprint where another arena has the same.
    """

    name: str
    conditions: Conditions
    entries: tuple[Entry, ...]
    baseline: Entry

    def rank(
        self, entry: Entry, of: Callable[[Entry], Estimate], highest: bool
    ) -> tuple[int, bool]:
        """Rank an entry behind all that are surely better.

        Args:
            entry: One of the arena's.
            of: The figure to rank by.
            highest: Whether a high one is good.

        Returns:
            The rank, and whether it ties with another entry.
        """
        mine = of(entry)
        others = [of(other) for other in self.entries if other is not entry]
        better = sum(
            mine.surely_below(other) if highest else other.surely_below(mine) for other in others
        )
        return better + 1, any(mine.ties_with(other) for other in others)

    @cached_property
    def dominators(self) -> dict[Entry, Entry]:
        """For each entry that another one makes needless, that other one.

        Its means are at least as good in both accuracy and latency, and one of them is surely
        better. Of several it is the fastest.
        """
        found = {}
        for entry in self.entries:
            others = [other for other in self.entries if _dominates(other, entry)]
            if others:
                found[entry] = min(others, key=_speed)
        return found

    @property
    def front(self) -> list[Entry]:
        """What no other entry makes needless, the fastest first."""
        kept = [entry for entry in self.entries if entry not in self.dominators]
        return sorted(kept, key=_speed)

    def choice(self, min_acc: float) -> Entry | None:
        """Take the fastest entry with at least that accuracy, in percent."""
        good = [entry for entry in self.entries if entry.accuracy.mean >= min_acc]
        return min(good, key=_speed, default=None)


def _speed(entry: Entry) -> tuple[float, float]:
    """Sort the fastest first, and of equally fast ones the most accurate."""
    return entry.mean_ms.mean, -entry.accuracy.mean


def _dominates(one: Entry, other: Entry) -> bool:
    as_good = one.accuracy.mean >= other.accuracy.mean and one.mean_ms.mean <= other.mean_ms.mean
    return as_good and (
        other.accuracy.surely_below(one.accuracy) or one.mean_ms.surely_below(other.mean_ms)
    )


# --- From files to arenas -------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """All there is: rows to be ranked, by their conditions, and rows that can't be.

    Attributes:
        arenas: Their names differ.
        apart: Rows that failed, were disturbed, are unsupported or not measured.
    """

    arenas: tuple[Arena, ...]
    apart: tuple[Row, ...]


Keep = Callable[[Conditions, Entry], bool]
# How a variant was made: the versions of its parts, and of what executed it beside torch.
Making = tuple[tuple[str, str], ...]
# By a group of seeds, a variant and its making: each run of it, by its name, with its measurement.
Groups = dict[tuple[str, str, Making], dict[str, tuple[Run, Measurement]]]


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
        UserError: If there is no such baseline, or several.
    """
    apart: list[Row] = []
    met: dict[Conditions, Groups] = {}
    for one in sorted(recorded, key=lambda one: one.run.started if one.run else ""):
        for row, measurement in one.lines:
            if one.run is None or measurement is None or row["status"] != "ok":
                apart.append(row)
                continue
            name = group_name(one.run.config, one.run.choices)
            group = name, measurement.variant, _making(measurement)
            # The same run measured in two places under the same conditions counts once.
            alike = met.setdefault(_conditions(one.run, measurement), {}).setdefault(group, {})
            alike[one.run.name] = one.run, measurement
    names = _names(met)
    arenas: list[Arena] = []
    everything: list[Entry] = []
    for conditions, groups in sorted(met.items()):
        labels, notes = _labels(groups), _notes(groups)
        entries = [
            Entry(
                labels[group[0]],
                tuple(run for run, _ in alike.values()),
                tuple(measurement for _, measurement in alike.values()),
                notes[group],
            )
            for group, alike in groups.items()
        ]
        everything += entries
        name = names[conditions]
        meant = [entry for entry in entries if baseline is not None and entry.answers_to(baseline)]
        # Without one, the first row's network.
        base = plainest(meant or [one for one in entries if one.label == entries[0].label])
        if kept := tuple(entry for entry in entries if keep(conditions, entry)):
            arenas.append(Arena(name, conditions, kept, base))
    if baseline is not None and everything:
        entries_of(everything, baseline, "baseline")
    return Comparison(tuple(arenas), tuple(apart))


def _conditions(run: Run, measurement: Measurement) -> Conditions:
    return Conditions(
        dataset=run.config["data"]["name"],
        fingerprint=run.data_fingerprint,
        device=measurement.device,
        threads=0 if measurement.clock == "cuda_event" else measurement.threads,
        clock=measurement.clock,
        protocol=measurement.protocol,
        protocol_version=measurement.protocol_version,
        hardware=measurement.hardware,
        torch=measurement.environment.versions["torch"],
    )


def _names(met: Iterable[Conditions]) -> dict[Conditions, str]:
    """Name conditions; where two would have one name, by more of what tells them apart."""
    names = {conditions: conditions.name for conditions in met}
    further: tuple[Callable[[Conditions], str], ...] = (
        lambda one: f"torch {one.torch}",
        lambda one: one.hardware,
        lambda one: one.fingerprint[:8],
        lambda one: one.clock,
    )
    for tell in further:
        alike: dict[str, list[Conditions]] = {}
        for conditions, name in names.items():
            alike.setdefault(name, []).append(conditions)
        for name, several in alike.items():
            if len({tell(one) for one in several}) > 1:
                names |= {one: f"{name} ({tell(one)})" for one in several}
    return names


def _making(measurement: Measurement) -> Making:
    recipe = {f"{part} recipe": str(version) for part, version in measurement.recipe.items()}
    engines = {name: version for name, version in measurement.engines.items() if name != "torch"}
    return tuple(sorted((recipe | engines).items()))


def _notes(groups: Groups) -> dict[tuple[str, str, Making], str]:
    """Say of each group what differs from others of the same seeds and variant."""
    notes = {}
    for group, variant, making in groups:
        others = [other for name, one, other in groups if (name, one) == (group, variant)]
        told = [" ".join(item) for item in making if not all(item in other for other in others)]
        notes[group, variant, making] = ", ".join(told)
    return notes


def _labels(groups: Groups) -> dict[str, str]:
    """Name each group: its common ID, else its first run's with the number of the others."""
    runs: dict[str, dict[str, Run]] = {}
    for (group, *_), alike in groups.items():
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


def entries_of(entries: Iterable[Entry], query: str, key: str) -> list[Entry]:
    """Find all variants of one network.

    Args:
        entries: Where to look.
        query: An ID, a name with its variant, or the beginning of a run's name.
        key: What the query was given for, to name it in errors.

    Raises:
        UserError: If there is none, or several networks are meant.
    """
    entries = list(entries)
    found = [entry for entry in entries if entry.answers_to(query)]
    if not found:
        raise unknown_name(f"{key}={query}", "row", query, {entry.label for entry in entries})
    if len({entry.group for entry in found}) > 1:
        labels = ", ".join(sorted({entry.label for entry in found}))
        raise bad_value(key, query, f"one of {labels}: it means them all")
    return found


def plainest(entries: Sequence[Entry]) -> Entry:
    """Take fp32 where it is among several variants."""
    return min(entries, key=lambda entry: entry.variant != "fp32")


# --- One change at a time -------------------------------------------------------------------


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
    """Keep a run's settings that change the weights, each in one place, without the seed."""

    def kept(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: kept(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in node.items()
            if prefix + key not in FOLLOWING and prefix + key != "seed"
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
    told = f"accuracy {points:+.2f} points{tie}, latency {share:+.0f} %{slow}"
    if not (entry.size_mb and base.size_mb):
        return told
    return f"{told}, size {100 * (entry.size_mb / base.size_mb - 1):+.0f} %"


# --- In sentences ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the figures say, in sentences.

    Attributes:
        advice: Which entry to take, and how sure that is.
        front: What is on the front.
        needless: Why each other entry is not needed.
    """

    advice: str
    front: str
    needless: list[str]


def verdict(arena: Arena, min_acc: float) -> Verdict:
    """Say which entry to take if at least ``min_acc`` percent are needed."""
    front = ", ".join(
        f"{entry.name} ({entry.accuracy.mean:.2f} %, {entry.mean_ms.mean:.3f} ms)"
        for entry in arena.front
    )
    return Verdict(
        advice=" ".join(_advice(arena, min_acc)),
        front=f"On the front, from fast to accurate: {front}.",
        needless=[
            f"{entry.name} is not needed: {_advantage(better, entry)}."
            for entry, better in arena.dominators.items()
        ],
    )


def _advice(arena: Arena, min_acc: float) -> Iterator[str]:
    chosen = arena.choice(min_acc)
    good = [entry for entry in arena.entries if entry.accuracy.mean >= min_acc]
    if chosen is None:
        best = max(arena.entries, key=lambda entry: entry.accuracy.mean)
        yield (
            f"No row reaches {min_acc:g} %; the most accurate is {best.name} with "
            f"{_percent(best.accuracy)}."
        )
    else:
        yield (
            f"Take {chosen.name}: {_percent(chosen.accuracy)} in {chosen.mean_ms.mean:.3f} ms, the "
            f"fastest of {len(good)} row{'s' * (len(good) != 1)} with at least {min_acc:g} %."
        )
        if not chosen.accuracy.known:
            yield "How sure its accuracy is was not recorded: measure it again."
        elif chosen.accuracy.low < min_acc:
            yield f"Whether it truly reaches {min_acc:g} % is within the uncertainty."
        if ties := [
            e.name for e in good if e is not chosen and e.mean_ms.ties_with(chosen.mean_ms)
        ]:
            yield f"Not slower for sure: {', '.join(ties)}."
    near = [
        entry.name
        for entry in arena.entries
        if entry.accuracy.mean < min_acc <= entry.accuracy.high and entry.accuracy.known
    ]
    if near:
        yield f"Below {min_acc:g} % only within the uncertainty: {', '.join(near)}."
    if any(not entry.converged for entry in arena.entries):
        yield "Means marked ~ had not settled; measure run=A,B compares two in turns."
    yield from _drift(arena)


def _drift(arena: Arena) -> Iterator[str]:
    """Warn where one network, trained twice, came out at two speeds: weights don't change it."""
    pairs = [
        (slow, fast)
        for slow, fast in itertools.permutations(arena.entries, 2)
        if fast.mean_ms.surely_below(slow.mean_ms)
        and slow.variant == fast.variant
        and settings(slow.runs[0]).get("model") == settings(fast.runs[0]).get("model")
    ]
    if pairs:
        slow, fast = max(pairs, key=lambda pair: pair[0].mean_ms.mean / pair[1].mean_ms.mean)
        share = 100 * (slow.mean_ms.mean / fast.mean_ms.mean - 1)
        yield (
            f"{slow.name} and {fast.name} are one network, yet differ by {share:.0f} %: this "
            "machine's speed changed between measurements by more than the intervals say."
        )


def _percent(estimate: Estimate) -> str:
    seeds = f" over {estimate.n} seeds" if estimate.n > 1 else ""
    if not estimate.known:
        return f"{estimate.mean:.2f} %{seeds}"
    return f"{estimate.mean:.2f} % ({estimate.low:.2f} to {estimate.high:.2f}){seeds}"


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

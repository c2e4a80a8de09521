"""From records to leaderboards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cifar_lightning.comparison.entry import Conditions, Entry, Making
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.errors import bad_value, unknown_name
from cifar_lightning.runs.identity import group_name
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import Row, RunResults
from cifar_lightning.runs.run import Run


@dataclass(frozen=True)
class Comparison:
    """All there is: rows to be ranked, by their conditions, and rows that can't be.

    Attributes:
        leaderboards: Their names differ.
        unranked: Rows that failed, were disturbed, are unsupported or not measured.
    """

    leaderboards: tuple[Leaderboard, ...]
    unranked: tuple[Row, ...]


Keep = Callable[[Conditions, Entry], bool]
# By a group of seeds, a variant and its making: each run of it, by its name, with its measurement.
Groups = dict[tuple[str, str, Making], dict[str, tuple[Run, Measurement]]]


def compare(
    recorded: Iterable[RunResults], baseline: str | None = None, keep: Keep = lambda *_: True
) -> Comparison:
    """Sort all rows into leaderboards.

    Args:
        recorded: Runs with their rows.
        baseline: The ID (or the beginning of a run's name) of the row that others are compared
            with; else the first row. Its fp32 variant is taken where there is one.
        keep: Says which entries are wanted.

    Raises:
        UserError: If there is no such baseline, or several.
    """
    unranked: list[Row] = []
    by_conditions: dict[Conditions, Groups] = {}
    for one in sorted(recorded, key=lambda one: one.run.started if one.run else ""):
        for row, measurement in one.lines:
            if one.run is None or measurement is None or row.status != "ok":
                unranked.append(row)
                continue
            name = group_name(one.run.config, one.run.choices)
            group = name, measurement.variant, _making(measurement)
            # The same run measured in two places under the same conditions counts once.
            alike = by_conditions.setdefault(_conditions(one.run, measurement), {}).setdefault(
                group, {}
            )
            alike[one.run.name] = one.run, measurement
    names = _names(by_conditions)
    leaderboards: list[Leaderboard] = []
    everything: list[Entry] = []
    for conditions, groups in sorted(by_conditions.items()):
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
        meant = [] if baseline is None else matching(entries, baseline)
        # Without one, the first row's network.
        base = plainest(meant or [one for one in entries if one.label == entries[0].label])
        if kept := tuple(entry for entry in entries if keep(conditions, entry)):
            leaderboards.append(Leaderboard(name, conditions, kept, base))
    if baseline is not None and everything:
        entries_of(everything, baseline, "baseline")
    return Comparison(tuple(leaderboards), tuple(unranked))


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


def _names(found: Iterable[Conditions]) -> dict[Conditions, str]:
    """Name conditions; where two would have one name, by more of what tells them apart."""
    names = {conditions: conditions.name for conditions in found}
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
    found = matching(entries, query)
    if not found:
        raise unknown_name(f"{key}={query}", "row", query, {entry.label for entry in entries})
    if len({entry.group for entry in found}) > 1:
        labels = ", ".join(sorted({entry.label for entry in found}))
        raise bad_value(key, query, f"one of {labels}: it means them all")
    return found


def matching(entries: Sequence[Entry], query: str) -> list[Entry]:
    """Take what a query means; a run's full name means that run, whatever other rows' IDs are."""
    exact = [entry for entry in entries if any(query == run.name for run in entry.runs)]
    return exact or [entry for entry in entries if entry.matches(query)]


def plainest(entries: Sequence[Entry]) -> Entry:
    """Take fp32 where it is among several variants."""
    return min(entries, key=lambda entry: entry.variant != "fp32")

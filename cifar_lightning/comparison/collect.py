"""From records to leaderboards."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cifar_lightning.comparison.choice import Need, choose
from cifar_lightning.comparison.conditions import TOYS, Conditions
from cifar_lightning.comparison.entry import Entry, Group, by_weights, says_most
from cifar_lightning.comparison.leaderboard import Leaderboard, Place
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.relation import Timed, between_std, timed
from cifar_lightning.errors import bad_value, unknown_name
from cifar_lightning.runs.identity import group_name
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import Row
from cifar_lightning.runs.run import Run
from cifar_lightning.system.processor import processor


@dataclass(frozen=True)
class Comparison:
    """All there is: rows to be ranked, by their conditions, and rows that can't be.

    Attributes:
        leaderboards: That of the overall answer first. Their names differ.
        unranked: Rows that failed, are unsupported, not measured, or measured by `bench.py`.
    """

    leaderboards: tuple[Leaderboard, ...]
    unranked: tuple[Row, ...]

    @property
    def entries(self) -> list[Entry]:
        """All that is shown, what others are compared with included."""
        return [entry for one in self.leaderboards for entry in (*one.entries, one.baseline[0])]


Keep = Callable[[Conditions, Entry], bool]
Measured = tuple[Run, Measurement]
# By a candidate's key and a group of seeds: each run of it, by its name, with its measurement.
Groups = dict[tuple[str, str], dict[str, Measured]]


def compare(
    records: Records,
    need: Need,
    baseline: str | None = None,
    keep: Keep = lambda *_: True,
) -> Comparison:
    """Sort all rows into leaderboards.

    Args:
        records: What was read.
        need: What the entry to take must reach.
        baseline: The ID (or the beginning of a run's name) of the row that others are compared
            with; else the first row. Its fp32 variant is taken where there is one.
        keep: Says which entries are wanted.

    Raises:
        UserError: If there is no such baseline, or several.
    """
    unranked: list[Row] = []
    by_conditions: dict[Conditions, Groups] = defaultdict(lambda: defaultdict(dict))
    more_told = partial(says_most, here=records.benchmarks)
    for one in sorted(records.runs, key=lambda one: one.run.started if one.run else ""):
        seeds = group_name(one.run.config, one.run.choices) if one.run else ""
        for row, measurement in one.lines:
            if one.run is None or measurement is None or not measurement.can_be_ranked:
                unranked.append(row)
                continue
            group = measurement.candidate, seeds
            # The same run measured in two places under the same conditions counts once.
            members = by_conditions[Conditions.of(one.run, measurement)][group]
            known = members.get(one.run.name)
            if known is None or more_told(measurement) >= more_told(known[1]):
                members[one.run.name] = one.run, measurement
    names = _names(by_conditions)
    leaderboards: list[Leaderboard] = []
    everything: list[Place] = []
    for conditions, groups in by_conditions.items():
        where = timed(one for one in records.benchmarks.values() if conditions.hold(one))
        entries = _entries(groups, records, where)
        places = [(entry, group) for entry in entries for group in entry.groups]
        everything += places
        meant = [] if baseline is None else matching(places, baseline)
        # Without one, the first row's network.
        base = plainest(meant or [one for one in places if one[1].label == places[0][1].label])
        if kept := tuple(entry for entry in entries if keep(conditions, entry)):
            between = between_std(where.values())
            found = Leaderboard(names[conditions], conditions, kept, base, between)
            for threads in found.threads:
                found.choices[threads] = choose(found, threads, need)
            leaderboards.append(found)
    if baseline is not None and everything:
        places_of(everything, baseline, "baseline")
    leaderboards.sort(key=_weight)
    return Comparison(tuple(leaderboards), tuple(unranked))


def _weight(leaderboard: Leaderboard) -> tuple[object, ...]:
    """Sort first what answers the question: real data, this machine, the full protocol."""
    conditions, entries = leaderboard.conditions, leaderboard.entries
    # What came without its benchmark was timed elsewhere, perhaps on such a processor.
    here = [one for one in entries if one.timings.timed]
    machines = [one.measurement.environment.machine.processor for one in here]
    elsewhere = processor() not in machines
    toy, look = conditions.dataset in TOYS, conditions.protocol != "full"
    return toy, elsewhere, look, -len(entries), conditions


def _entries(groups: Groups, records: Records, where: Mapping[str, Sequence[Timed]]) -> list[Entry]:
    """Make an entry of each candidate."""
    labels, notes = _labels(groups), _notes(groups)
    ids = Counter(one.run.label for one in records.runs if one.run is not None)
    candidates: dict[str, list[Group]] = defaultdict(list)
    for (candidate, seeds), members in groups.items():
        runs, measurements = zip(*members.values(), strict=True)
        known = [records.right.get((run.name, measurements[0].variant)) for run in runs]
        right = tuple(one for one in known if one is not None)
        candidates[candidate].append(
            Group(
                label=labels[seeds],
                runs=runs,
                measurements=measurements,
                right=right if len(right) == len(runs) else (),
                note=notes[candidate, seeds],
                overrides=records.overrides.get(runs[0].name),
                folder=records.folders[runs[0].name],
                query=runs[0].label if ids[runs[0].label] == 1 else runs[0].name,
            )
        )
    return [
        Entry.of(several, where.get(candidate, ())) for candidate, several in candidates.items()
    ]


def _names(found: Iterable[Conditions]) -> dict[Conditions, str]:
    """Name conditions; where two would have one name, by more of what tells them apart."""
    names = {conditions: conditions.name for conditions in found}
    further: tuple[Callable[[Conditions], str], ...] = (
        lambda one: f"torch {one.torch}",
        lambda one: one.hardware,
        lambda one: one.fingerprint[:8],
        lambda one: one.clock,
        lambda one: f"version {one.protocol_version}",
    )
    for tell in further:
        alike: dict[str, list[Conditions]] = defaultdict(list)
        for conditions, name in names.items():
            alike[name].append(conditions)
        for name, several in alike.items():
            if len({tell(one) for one in several}) > 1:
                names |= {one: f"{name} ({tell(one)})" for one in several}
    return names


def _making(measurement: Measurement) -> set[str]:
    """Tell how a variant was made: the versions of its parts, and of engines beside torch."""
    recipe = {f"{part} recipe {version}" for part, version in measurement.recipe.items()}
    engines = measurement.engines.items()
    return recipe | {f"{name} {version}" for name, version in engines if name != "torch"}


def _notes(groups: Groups) -> dict[tuple[str, str], str]:
    """Say of each group what differs from others of the same seeds, variant and threads."""
    notes, alike = {}, defaultdict(list)
    for (_, seeds), members in groups.items():
        for _, one in members.values():
            alike[seeds, one.variant, one.threads].append(_making(one))
    for place, members in groups.items():
        run, one = next(iter(members.values()))
        others = alike[place[1], one.variant, one.threads]
        told = [item for item in sorted(_making(one)) if not all(item in made for made in others)]
        if by_weights(run, one):
            told.append(f"seed {run.config['seed']}")
        notes[place] = ", ".join(told)
    return notes


def _labels(groups: Groups) -> dict[str, str]:
    """Name each group: its common ID, else its first run's with the number of the others."""
    runs: dict[str, dict[str, Run]] = defaultdict(dict)
    for (_, seeds), members in groups.items():
        runs[seeds].update((name, run) for name, (run, _) in members.items())
    labels = {}
    for seeds, several in runs.items():
        names = {run.label for run in several.values()}
        first = min(several.values(), key=lambda run: run.started).label
        labels[seeds] = first if len(names) == 1 else f"{first}+{len(several) - 1}"
    taken = list(labels.values())
    return {
        seeds: label if taken.count(label) == 1 else f"{label}/{seeds.rpartition('-')[2][:4]}"
        for seeds, label in labels.items()
    }


def places_of(places: Sequence[Place], query: str, key: str) -> list[Place]:
    """Find all variants of one group of seeds.

    Args:
        places: Where to look.
        query: An ID, a name with its variant, or the beginning of a run's name.
        key: What the query was given for, to name it in errors.

    Raises:
        UserError: If there is none, or several groups are meant.
    """
    found = matching(places, query)
    if not found:
        labels = {group.label for _, group in places}
        raise unknown_name(f"{key}={query}", "row", query, labels)
    if len(meant := {group.seeds_name: group for _, group in found}) > 1:
        names = {group.label for group in meant.values()}
        if len(names) < len(meant):  # rows of different leaderboards may share an ID
            names = {group.runs[0].name for group in meant.values()}
        raise bad_value(key, query, f"one of {', '.join(sorted(names))}: it means them all")
    return found


def matching(places: Sequence[Place], query: str) -> list[Place]:
    """Take what a query means; a run's full name means that run, whatever other rows' IDs are."""
    exact = [one for one in places if any(query == run.name for run in one[1].runs)]
    return exact or [one for one in places if one[1].matches(query)]


def plainest(places: Sequence[Place]) -> Place:
    """Take fp32 on the fewest threads where it is among several variants."""
    return min(places, key=lambda one: (one[1].variant != "fp32", one[1].threads))

"""What calls of engines take by themselves, with hardly any network."""

from collections.abc import Iterable
from dataclasses import dataclass

from cifar_lightning.comparison.entry import Entry
from cifar_lightning.runs.candidate import floor_of


@dataclass(frozen=True)
class Floor:
    """What a call takes by itself.

    Attributes:
        name: Of what executes it, and on how many threads where they are several.
        ms: How long it takes.
        relative: The same over the reference's latency.
    """

    name: str
    ms: float
    relative: float


def floors(entries: Iterable[Entry]) -> list[Floor]:
    """List the floors that entries were timed with, by their names."""
    found = {}
    for entry in entries:
        if (ms := entry.measurement.floor_ms) is not None:
            name = f"{floor_of(entry.variant)}{f', {entry.threads} threads' * (entry.threads > 1)}"
            found[name] = Floor(name, ms, entry.relative * ms / entry.latency.mean_ms)
    return sorted(found.values(), key=lambda one: one.name)

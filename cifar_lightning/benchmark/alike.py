"""Candidates that execute alike: timed once, whatever their weights and accuracies."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cifar_lightning.benchmark.candidates import Source

log = logging.getLogger(__name__)


def grouped(sources: Iterable[Source]) -> list[list[Source]]:
    """Put together what executes alike, in the order of the first ones."""
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.candidate.key, []).append(source)
    return list(groups.values())


def keyed(groups: Iterable[list[Source]]) -> Iterator[tuple[str, list[Source]]]:
    """Yield each group with the key that its candidates share."""
    for group in groups:
        yield group[0].candidate.key, group


def by_weights(group: Sequence[Source]) -> list[list[Source]]:
    """Make of a candidate one for each file of weights, as they change its latency."""
    return grouped(
        replace(source, candidate=replace(source.candidate, by_weights=True)) for source in group
    )


def checks(groups: Sequence[Sequence[Source]]) -> list[list[Source]]:
    """Choose another run's weights for each candidate that has any, to be timed beside it."""
    chosen = []
    for first, *others in groups:
        for other in others:
            if other.has_weights and other.candidate.weights != first.candidate.weights:
                chosen.append([replace(other, candidate=replace(other.candidate, role="check"))])
                break
    return chosen


def timeable(groups: Sequence[list[Source]]) -> list[list[Source]]:
    """Put random weights first where no run's weights are here: latency does not depend on them."""
    found, told = list[list[Source]](), dict[str, None]()
    for group in groups:
        if any(source.folder is None or source.has_weights for source in group):
            found.append(group)
            continue
        candidate = replace(group[0].candidate, run=None, weights=None)
        found.append([replace(group[0], candidate=candidate, folder=None), *group])
        told[candidate.label] = None
    if told:
        log.warning("timed with random weights, as theirs are not here: %s", ", ".join(told))
    return found

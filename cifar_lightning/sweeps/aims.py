"""What a search for a front is after: for each target the fastest network that may reach it.

One order of networks says who is trained longer and who is trained to the end: by what each is
guessed to have at the end of a final run, or by what it had there.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from omegaconf import DictConfig

from cifar_lightning.sweeps import curve
from cifar_lightning.sweeps.found import Rungs
from cifar_lightning.sweeps.ladder import dominated


@dataclass(frozen=True)
class Guess:
    """What a network has at the end of a final run, as far as it is known.

    Attributes:
        latency: Relative to the reference's.
        accuracy: Validation accuracy in percent, as guessed from shorter runs.
        most: How accurate it may be.
        epochs: Of its final run: as many as fit.
        final: Of its final runs, the first seed's accuracy, or the mean if there are all of them.
        complete: Whether there are, or one of them can't be trained.
    """

    latency: float
    accuracy: float
    most: float
    epochs: int = 0
    final: float | None = None
    complete: bool = False

    def reaches(self, target: float) -> bool:
        return (self.accuracy if self.final is None else self.final) >= target

    def may_reach(self, target: float) -> bool:
        return self.reaches(target) or (self.final is None and self.most >= target)


def aimed(guesses: Mapping[int, Guess], target: float) -> list[int]:
    """Sort networks by how much they deserve training for a target.

    First those that reach it by what is known or guessed, the fastest first; then those that may
    reach it, the most accurate first. What is slower than one that has reached it is left out.
    """
    limit = min(
        (one.latency for one in guesses.values() if one.complete and one.reaches(target)),
        default=math.inf,
    )
    hopeful = {
        number: one
        for number, one in guesses.items()
        if one.may_reach(target) and one.latency <= limit
    }

    def rank(number: int) -> tuple[bool, float]:
        one = hopeful[number]
        return (False, one.latency) if one.reaches(target) else (True, -one.accuracy)

    return sorted(hopeful, key=rank)


def in_turns(guesses: Mapping[int, Guess], targets: Sequence[float]) -> list[int]:
    """Sort networks by how much they deserve training, each target's first ones first."""
    rows = zip_longest(*(aimed(guesses, target) for target in targets))
    return list(dict.fromkeys(number for row in rows for number in row if number is not None))


def in_play(now: Rungs, max_ms: float | None) -> set[int]:
    """List the trained networks that are fast enough and not surely dominated.

    A network is compared with others of its highest rung; one with final runs stays.
    """
    failed = {number for (number, _), ended in now.finals.items() if -math.inf in ended.values()}
    out = now.too_slow(max_ms) | failed  # these dominate nothing either
    left: set[int] = set()
    for rung in now.points:
        playing = {number: point for number, point in rung.items() if number not in out}
        left = (left - {*rung}) | ({*playing} - dominated(playing))
    return left | {number for number, _ in now.finals} - now.too_slow(max_ms)


def guesses(now: Rungs, rungs: Sequence[int], cfg: DictConfig) -> dict[int, Guess]:
    """Guess what each network in play has at the end of a final run.

    Where final runs were made, errors are as many times the guessed ones as in their median.

    Args:
        now: What is known.
        rungs: The epochs of each.
        cfg: Of the search.
    """
    playing = {
        number: _final_epochs(now, rungs, number, cfg.final_minutes)
        for number in in_play(now, cfg.max_ms)
    }
    ratio = statistics.median([*_ratios(now, rungs)] or [1.0])
    guessed = curve.guess(rungs, now.points, playing)
    found = {}
    for number, epochs in playing.items():
        accuracy, most = (max(0.0, 100 - ratio * errors) for errors in guessed[number])
        by_seed = now.finals.get((number, epochs), {})
        ended = [by_seed[seed] for seed in cfg.final_seeds if seed in by_seed]
        complete = len(ended) == len(cfg.final_seeds) > 0 or -math.inf in ended
        first = by_seed.get(cfg.final_seeds[0]) if cfg.final_seeds else None
        final = statistics.fmean(ended) if complete else first
        latency = now.points[0][number].latency
        found[number] = Guess(latency, accuracy, most, epochs, final, complete)
    return found


def _ratios(now: Rungs, rungs: Sequence[int]) -> Iterator[float]:
    """Tell of each network with final runs how many times as many errors it had as were guessed."""
    epochs_of = dict(sorted(now.finals))  # of two lengths the longer one
    guessed = curve.guess(rungs, now.points, epochs_of)
    for number, epochs in epochs_of.items():
        errors = 100 - statistics.fmean(now.finals[number, epochs].values())
        if math.isfinite(errors):
            yield errors / guessed[number][0]


def _final_epochs(now: Rungs, rungs: Sequence[int], number: int, minutes: float) -> int:
    """Tell how many epochs fit into a final run, by the time of the network's longest run."""
    place = max(place for place, trained in enumerate(now.trained) if number in trained)
    of_one = now.trained[place][number].seconds / rungs[place]
    return max(1, int(60 * minutes / max(of_one, 1e-3)))

"""What the figures say, in sentences."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cifar_lightning.comparison.changes import settings
from cifar_lightning.comparison.entry import Entry, Estimate
from cifar_lightning.comparison.leaderboard import Leaderboard


@dataclass(frozen=True)
class Verdict:
    """What the figures say, in sentences.

    Attributes:
        advice: Which entry to take, and how sure that is.
        pareto_front: What is on it.
        dominated: Why each other entry is dominated.
    """

    advice: str
    pareto_front: str
    dominated: list[str]


def verdict(leaderboard: Leaderboard, min_acc: float) -> Verdict:
    """Say which entry to take if at least ``min_acc`` percent are needed."""
    front = ", ".join(
        f"{entry.name} ({entry.accuracy.mean:.2f} %, {entry.mean_ms.mean:.3f} ms)"
        for entry in leaderboard.pareto_front
    )
    return Verdict(
        advice=" ".join(_advice(leaderboard, min_acc)),
        pareto_front=f"On the Pareto front, from fast to accurate: {front}.",
        dominated=[
            f"{entry.name} is dominated: {_advantage(better, entry)}."
            for entry, better in leaderboard.dominated_by.items()
        ],
    )


def _advice(leaderboard: Leaderboard, min_acc: float) -> Iterator[str]:
    chosen = leaderboard.recommend(min_acc)
    good = [entry for entry in leaderboard.entries if entry.accuracy.mean >= min_acc]
    if chosen is None:
        best = max(leaderboard.entries, key=lambda entry: entry.accuracy.mean)
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
        if ties := [e.name for e in good if e is not chosen and e.mean_ms.overlaps(chosen.mean_ms)]:
            yield f"Not slower for sure: {', '.join(ties)}."
    near = [
        entry.name
        for entry in leaderboard.entries
        if entry.accuracy.mean < min_acc <= entry.accuracy.high and entry.accuracy.known
    ]
    if near:
        yield f"Below {min_acc:g} % only within the uncertainty: {', '.join(near)}."
    if any(not entry.converged for entry in leaderboard.entries):
        yield "Means marked ~ had not settled."
    yield from _drift(leaderboard)


def _drift(leaderboard: Leaderboard) -> Iterator[str]:
    """Warn where one network, trained twice, came out at two speeds: weights don't change it."""
    pairs = [
        (slow, fast)
        for slow, fast in itertools.permutations(leaderboard.entries, 2)
        if fast.mean_ms.significantly_below(slow.mean_ms)
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
        if better.accuracy.overlaps(entry.accuracy)
        else f"{points:.2f} points more accurate"
    )
    fast = (
        "as fast within the uncertainty"
        if better.mean_ms.overlaps(entry.mean_ms)
        else f"{times:.2f} times as fast"
    )
    return f"{better.name} is {accurate} and {fast}"

"""What the figures say, in sentences."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cifar_lightning.comparison.accuracy import SURE
from cifar_lightning.comparison.choice import Need, at_most_slower, bound_ms
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Choice, Leaderboard, speed
from cifar_lightning.comparison.reproduce import measure_command
from cifar_lightning.system.formatting import SOME, some


@dataclass(frozen=True)
class Verdict:
    """What the figures of one number of threads say, in sentences.

    Attributes:
        advice: Which entry to take, and how sure that is.
        command: What would tell more; None where nothing is open.
        pareto_front: What is on it.
        dominated: Why each other entry is dominated.
    """

    advice: str
    command: str | None
    pareto_front: str
    dominated: list[str]


def verdict(
    leaderboard: Leaderboard, threads: int, need: Need, listed: Collection[Entry] | None = None
) -> Verdict:
    """Say which entry with that number of threads to take.

    Args:
        leaderboard: Where it is ranked.
        threads: Of the ranking.
        need: What the entry must reach.
        listed: The entries of which a line is said each; None for all.
    """
    listed = leaderboard.entries if listed is None else listed
    named = leaderboard.named_front(threads, SOME)
    front = ", ".join(
        f"{entry.name} ({entry.accuracy.mean:.2f} %, {entry.latency.mean_ms:.3f} ms)"
        for entry in named
    )
    left = len(leaderboard.pareto_front(threads)) - len(named)
    more = f", and {left} more that are not surely worse" if left else ""
    choice = leaderboard.choices[threads]
    said = _by_accuracy if need.max_ms is None else _by_latency
    unrelated = leaderboard.unrelated(threads)
    open_between = {*unrelated}
    if need.max_ms is None and len(choice.best) > 1:
        open_between |= {*choice.best}
    elif need.max_ms is None and _circle(leaderboard, choice):
        open_between |= {*choice.eligible}
    asked = [entry for entry in leaderboard.peers(threads) if entry in open_between]
    asked = _worth_measuring(leaderboard, choice.entry, asked)
    return Verdict(
        advice=" ".join([*said(leaderboard, choice, need), *_unrelated(unrelated)]),
        command=measure_command(asked) if asked else None,
        pareto_front=f"On the Pareto front, from fast to accurate: {front}{more}.",
        dominated=[
            f"{entry.name} is dominated: {_advantage(leaderboard, better, entry)}."
            for entry, better in leaderboard.dominated_by.items()
            if entry.threads == threads and entry in listed
        ],
    )


def _worth_measuring(
    leaderboard: Leaderboard, taken: Entry, entries: Sequence[Entry]
) -> list[Entry]:
    """Take some: nobody measures hundreds of candidates together.

    That is what is taken, before others what can't be related to it, and the most accurate ones.
    """

    def rank(entry: Entry) -> tuple[bool, bool, float]:
        related = leaderboard.difference(taken, entry) is not None
        return entry is not taken, related, -entry.accuracy.mean

    kept = sorted(entries, key=rank)[:SOME]
    return [entry for entry in entries if entry in kept]


def _by_accuracy(leaderboard: Leaderboard, choice: Choice, need: Need) -> Iterator[str]:
    entry, least = choice.entry, need.min_acc
    if not choice.eligible:
        lacking = least - entry.accuracy.mean
        yield (
            f"No row reaches {least:g} %; the most accurate is {_figures(leaderboard, entry)}, "
            f"which lacks {lacking:.2f} points."
        )
    else:
        yield (
            f"Take {_figures(leaderboard, entry)}: of {_rows(choice.eligible)} with at least "
            f"{least:g} % "
        ) + _among_the_fastest(leaderboard, choice)
        if not leaderboard.surely(entry, least):
            yield from _unsure(leaderboard, choice, least)
    near = [
        one.name
        for one in leaderboard.peers(entry.threads)
        if one.accuracy.mean < least <= one.accuracy.mean + SURE * leaderboard.error(one) < math.inf
    ]
    if near:
        yield f"Below {least:g} % only within the uncertainty: {some(near)}."


def _circle(leaderboard: Leaderboard, choice: Choice) -> bool:
    """Tell whether all that is eligible is slower than something that is."""
    return bool(choice.eligible) and not leaderboard.not_slower(choice.eligible)


def _among_the_fastest(leaderboard: Leaderboard, choice: Choice) -> str:
    if len(choice.best) == 1:
        if _circle(leaderboard, choice):
            return "each is slower than some other one, and it has the least relative latency."
        return "it is the fastest."
    others = some([one.name for one in choice.best if one is not choice.entry])
    slower = 100 * at_most_slower(leaderboard, choice)
    bound = (
        f"it is at most {slower:.1f} % slower than the fastest"
        if math.isfinite(slower)
        else "nobody knows how much slower than the fastest it is"
    )
    return (
        f"none is surely faster, and {bound}. It ties with {others}: of them all it is the most "
        "accurate to 0.1 points, of those alike in that the smallest, then the fastest."
    )


def _unsure(leaderboard: Leaderboard, choice: Choice, least: float) -> Iterator[str]:
    if not math.isfinite(leaderboard.error(choice.entry)):
        yield "How sure its accuracy is was not recorded: measure it again."
        return
    yield f"Whether it truly reaches {least:g} % is within the uncertainty."
    sure = [one for one in choice.eligible if leaderboard.surely(one, least)]
    if sure:
        yield f"The fastest that surely does is {_figures(leaderboard, min(sure, key=speed))}."
    else:
        yield "None surely does."


def _by_latency(leaderboard: Leaderboard, choice: Choice, need: Need) -> Iterator[str]:
    entry, what = choice.entry, f"{need.statistic} is surely below {need.max_ms:g} ms"
    highest = bound_ms(entry, need.statistic)
    bound = f"its {need.statistic} is at most {highest:.3f} ms."
    if not math.isfinite(highest):  # nor is any other row's
        reasons = dict.fromkeys(map(_unknown, leaderboard.peers(entry.threads)))
        yield f"There is no row whose {what}: none's is known, as {', or '.join(reasons)}."
        return
    if not choice.eligible:
        nearest = _figures(leaderboard, entry)
        yield f"There is no row whose {what}; the nearest is {nearest}: {bound}"
        return
    yield (
        f"Take {_figures(leaderboard, entry)}: of {_rows(choice.eligible)} whose {what} it is the "
        f"most accurate to 0.1 points, of those alike in that one of the fastest; {bound}"
    )
    if entry.accuracy.mean < need.min_acc:
        yield f"It lacks {need.min_acc - entry.accuracy.mean:.2f} points of {need.min_acc:g} %."
    if ties := [one.name for one in choice.best if one is not entry]:
        yield f"Not surely less accurate: {some(ties)}."


def _unknown(entry: Entry) -> str:
    """Tell why nothing bounds an entry's latency."""
    if not entry.timings.timed:
        return "the benchmark's record is missing"
    if not entry.timings.has_calls:
        return "the benchmark's record holds means only"
    return "there are too few calls, rounds or processes"


def _unrelated(entries: Sequence[Entry]) -> Iterator[str]:
    if entries:
        yield (
            f"Not all benchmarks of {some([one.name for one in entries])} can be related to each "
            "other: their second references differ by over 6 %. Measure them together."
        )


def _rows(entries: Sequence[Entry]) -> str:
    return f"{len(entries)} row{'s' * (len(entries) != 1)}"


def _figures(leaderboard: Leaderboard, entry: Entry) -> str:
    n, error = len(entry.accuracy.values), leaderboard.error(entry)
    seeds = f" over {n} seeds" if n > 1 else ""
    reach = f" ± {SURE * error:.2f}" if math.isfinite(error) else ""
    marks = f", {', '.join(entry.marks)}" if entry.marks else ""
    return (
        f"{entry.name} ({entry.accuracy.mean:.2f}{reach} %{seeds}, {entry.latency.mean_ms:.3f} ms, "
        f"{entry.relative:.3f} times the reference{marks})"
    )


def _advantage(leaderboard: Leaderboard, better: Entry, entry: Entry) -> str:
    points = better.accuracy.mean - entry.accuracy.mean
    accurate = (
        f"{points:.2f} points more accurate"
        if leaderboard.above(better, entry)
        else "not less accurate"
    )
    found = leaderboard.difference(entry, better)
    fast = (
        f"{found.ratio[0]:.2f} times as fast"
        if found is not None and found.slower
        else "as fast within the uncertainty"
    )
    return f"{better.name} is {accurate} and {fast}"

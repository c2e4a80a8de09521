"""What the benchmarks of `perf.ranking` have to show, and what they have shown so far.

Pure counting: reads what each benchmark left and times nothing. A benchmark belongs to the numbers
of extra operations that it was made with: for a pair those count that have as many as its latest,
of them the first hundred.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = 100
EAGER, ONNX = "equal, eager", "equal, ONNX Runtime"
MOST_APART = 3  # of the hundred, of two equal networks
# Extra operations are looked at after each benchmark, so what is surely wrong has to be clearly so.
ENOUGH, SURE = 10, 3.0  # benchmarks, and standard errors of their mean


@dataclass(frozen=True)
class Slower:
    """What is asked of a network behind extra operations.

    Attributes:
        costs: So much more in percent, as the mean over all benchmarks,
            within: and so near to it.
        least_found: In so many of the hundred.
    """

    costs: float
    within: float
    least_found: int

    def holds(self, mean: float, beyond: float = 0.0) -> bool:
        """Tell whether a mean is in its range, or at most so far beyond it."""
        return abs(mean - self.costs) <= self.within + beyond

    @property
    def range(self) -> str:
        return f"{self.costs - self.within:g} to {self.costs + self.within:g} %"


EXTRA = {"2 % slower": Slower(2.0, 0.2, 90), "3 % slower": Slower(3.0, 0.3, 98)}


@dataclass(frozen=True)
class Found:
    """What one benchmark said of one pair.

    Attributes:
        percent: How much slower the second candidate is than the first.
        apart: Whether they were told apart, in either direction.
        slower: Whether the second was called slower.
    """

    percent: float
    half_width: float
    apart: bool
    slower: bool


@dataclass(frozen=True)
class One:
    """What one benchmark said; of relative latencies, what each of its processes did."""

    number: int
    busy: bool
    started: str
    processor: str
    operations: dict[str, int]
    rounds: int
    ended: str
    seconds: float
    noise_floor_percent: float
    relative: dict[str, list[float]]
    pairs: dict[str, Found]


def read(folder: Path) -> list[One]:
    """Read what has been measured so far."""
    ones = []
    for path in sorted(folder.rglob("[0-9]*.json")):
        content: dict[str, Any] = json.loads(path.read_text())
        content["pairs"] = {name: Found(**pair) for name, pair in content["pairs"].items()}
        ones.append(One(**content))
    return ones


def made_with(ones: Sequence[One], pair: str, operations: int | None) -> list[One]:
    """Take the benchmarks of a pair with so many extra operations, the first ones first."""
    some = [one for one in ones if pair in one.pairs and one.operations.get(pair) == operations]
    return sorted(some, key=_moment)


def counted(ones: Sequence[One], pair: str) -> list[One]:
    """Take the benchmarks that count for a pair."""
    return made_with(ones, pair, latest_operations(ones, pair))[:BENCHMARKS]


def latest_operations(ones: Sequence[One], pair: str) -> int | None:
    """Tell how many there are in its latest benchmark; None of equal networks, which have none."""
    return max(ones, key=_moment).operations.get(pair)


def _moment(one: One) -> tuple[str, int]:
    return one.started, one.number


def _cost(ones: Sequence[One], pair: str) -> tuple[float, float]:
    """Compute the mean difference in percent, and its standard error."""
    values = [one.pairs[pair].percent for one in ones]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return statistics.fmean(values), error


def _misses(ones: Sequence[One], pair: str) -> bool:
    """Tell whether operations cost what they should not: surely, or after all benchmarks at all."""
    if len(ones) < ENOUGH:
        return False
    mean, error = _cost(ones, pair)
    return not EXTRA[pair].holds(mean, beyond=0.0 if len(ones) >= BENCHMARKS else SURE * error)


def rescaled(operations: int, percent: float, wanted: float) -> int:
    """Tell how many operations should cost what is wanted, of what some cost."""
    if percent <= 0:
        return 2 * operations
    return min(2 * operations, max(1, round(operations * wanted / percent)))


def next_operations(ones: Sequence[One], pair: str) -> int:
    """Tell with how many operations the next benchmark is made: others where those miss the goal.

    What has missed it once is never taken again, so that this ends.
    """
    here = counted(ones, pair)
    operations = here[0].operations[pair]
    if not _misses(here, pair):
        return operations
    better = rescaled(operations, _cost(here, pair)[0], EXTRA[pair].costs)
    return operations if _misses(made_with(ones, pair, better), pair) else better


def tables(ones: Sequence[One]) -> str:
    """Draw what was asked for and what was found, for each processor.

    The quiet benchmarks and the others stand apart.
    """
    lines = []
    for name in sorted({one.processor for one in ones}):
        here = [one for one in ones if one.processor == name]
        lines += [f"{name}: {_progress(here)}", ""]
        lines += [
            "| pair | goal | seen | met |",
            "| --- | --- | ---: | --- |",
            *(f"| {' | '.join(cells)} |" for cells in _goals(here)),
            "",
            "| pair | machine | benchmarks | told apart | found slower | difference: mean "
            "| std between benchmarks | half width, median | rounds, median |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(line for pair in (EAGER, ONNX, *EXTRA) for line in _rows(here, pair)),
            "",
            *(line for pair in EXTRA for line in _left_out(here, pair)),
            *_three_processes([one for one in here if not one.busy]),
            "",
        ]
    return "\n".join(lines)


def _progress(ones: Sequence[One]) -> str:
    done = min(len(counted(ones, pair)) for pair in (EAGER, ONNX, *EXTRA))
    return f"{min(done, BENCHMARKS)} of {BENCHMARKS} benchmarks" + (
        "" if done >= BENCHMARKS else ", so nothing is proved yet"
    )


def _goals(ones: Sequence[One]) -> list[tuple[str, str, str, str]]:
    """Tell what is asked of each pair, what was seen, and whether that is enough."""
    lines = []
    for pair in (EAGER, ONNX):
        here = counted(ones, pair)
        apart = sum(one.pairs[pair].apart for one in here)
        goal = f"told apart in at most {MOST_APART} of {BENCHMARKS}"
        seen = f"{apart} of {len(here)}"
        lines.append((pair, goal, seen, _met(apart, len(here), MOST_APART)))
    for pair, asked in EXTRA.items():
        if not (here := counted(ones, pair)):
            continue
        name = f"{pair} ({here[0].operations[pair]} operations)"
        mean, error = _cost(here, pair)
        reach = f" ± {error:.2f}" if math.isfinite(error) else ""
        met = "yes" if asked.holds(mean) else "no"
        so_far = "" if len(here) >= BENCHMARKS else " so far"
        lines.append(
            (name, f"costs {asked.range} more on average", f"{mean:.2f}{reach} %", met + so_far)
        )
        found = sum(one.pairs[pair].slower for one in here)
        goal = f"found in at least {asked.least_found} of {BENCHMARKS}"
        met = _met(len(here) - found, len(here), BENCHMARKS - asked.least_found)
        lines.append((name, goal, f"{found} of {len(here)}", met))
    return lines


def _met(wrong: int, count: int, most: int) -> str:
    """Tell whether at most so many of the hundred are wrong, or still may be."""
    if count >= BENCHMARKS:
        return "yes" if wrong * BENCHMARKS <= most * count else "no"
    return "yes so far" if wrong <= most else "no"


def _rows(ones: Sequence[One], pair: str) -> list[str]:
    lines, here = [], counted(ones, pair)
    for kind, some in (
        ("quiet", [one for one in here if not one.busy]),
        ("beside a burner", [one for one in here if one.busy]),
        ("all", here),
    ):
        pairs = [one.pairs[pair] for one in some]
        if len(pairs) < 2:
            continue
        values = [one.percent for one in pairs]
        lines.append(
            f"| {pair} | {kind} | {len(pairs)} | {sum(one.apart for one in pairs)} "
            f"| {sum(one.slower for one in pairs)} | {statistics.fmean(values):+.2f} % "
            f"| {statistics.stdev(values):.2f} % "
            f"| {statistics.median(one.half_width for one in pairs):.2f} % "
            f"| {statistics.median(one.rounds for one in some):.0f} |"
        )
    return lines


def _left_out(ones: Sequence[One], pair: str) -> list[str]:
    """Say in a line each which benchmarks count no longer."""
    others = {one.operations[pair]: None for one in sorted(ones, key=_moment)}
    del others[counted(ones, pair)[0].operations[pair]]
    lines = []
    for operations in others:
        some = made_with(ones, pair, operations)
        cost, _ = _cost(some, pair)
        lines.append(
            f"{pair}: {len(some)} with {operations} operations, which cost {cost:.2f} % more, "
            "don't count."
        )
    return [line for one in lines for line in (one, "")]


def _three_processes(ones: Sequence[One]) -> list[str]:
    """Say how well the first three processes of each benchmark agree."""
    if not ones:
        return []
    pairs = [("a fp32", "b fp32"), ("a onnx", "b onnx")]
    equal, spread = list[float](), list[float]()
    for one in ones:
        first = {name: values[:3] for name, values in one.relative.items()}
        ratios = [y / x for a, b in pairs for x, y in zip(first[a], first[b], strict=True)]
        equal.append(max(abs(100 * (ratio - 1)) for ratio in ratios))
        spread.append(max(100 * (max(some) / min(some) - 1) for some in first.values()))
    return [
        f"Three fresh processes, {len(ones)} times: {what} within {goal} % in "
        f"{sum(value <= goal for value in seen)} (median {statistics.median(seen):.1f} %, "
        f"at most {max(seen):.1f} %)."
        for what, goal, seen in (
            ("equal networks are in each", 3, equal),
            ("all candidates' three relative latencies are", 5, spread),
        )
    ]

"""How often the interval of a relative latency holds the truth, on machines whose truth is known.

    python -m perf.simulated_machines            # 1,000 streams a kind of machine, about a minute
    python -m perf.simulated_machines plot=docs/latency-coverage.png

Each stream is a whole benchmark: two candidates and the reference, in interleaved rounds in several
processes, or, for comparison, in one, or one after the other with an interval of each one's mean,
which is how this project measured before. Only how long a block takes is made up; what is computed
from it, and when it stops, is the code that measures.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from cifar_lightning.benchmark.rounds import rounds_needed
from cifar_lightning.config.protocols import PROTOCOLS, Protocol
from cifar_lightning.runs.paired import CONFIDENCE, Difference, difference, difference_of

Array = NDArray[np.float64]
# How slow the two candidates are, relative to the reference: as fast, and three times as slow.
TRUTH = np.log([1.0, 1.0, 3.0])
STREAMS, FULL = 1000, PROTOCOLS["full"]
OVERHEAD_S = 0.002  # of a block, discarded calls included
NOISE = 0.01  # of a block's mean, where a machine has no noise of its own
SEPARATE_S, SEPARATE_TOLERANCE, SEPARATE_GAP_S = (2.0, 30.0), 0.005, 10.0


@dataclass(frozen=True)
class Machine:
    """A kind of machine.

    Attributes:
        slowdown: Draws by how much blocks are slower, as logarithms: from a generator, the blocks'
            times in seconds, rising, and the numbers of the candidates they are of.
        shift: What it adds to the long-run median of a candidate's logarithm of latency over the
            reference's.
        placement: Standard deviation of what each process adds to a candidate's logarithm.
        required: Whether the interval must hold the truth.
    """

    name: str
    slowdown: Callable[[np.random.Generator, Array, NDArray[np.intp]], Array]
    shift: float = 0.0
    placement: float = 0.0
    required: bool = True


def noise(rng: np.random.Generator, times: Array, candidates: NDArray[np.intp]) -> Array:
    """Let every block err by itself."""
    return NOISE * rng.standard_normal(len(times))


def drift(rng: np.random.Generator, times: Array, candidates: NDArray[np.intp]) -> Array:
    """Let the speed walk at random."""
    steps = rng.standard_normal(len(times)) * 0.10 * np.sqrt(np.diff(times, prepend=0.0) / 60)
    return np.cumsum(steps) + noise(rng, times, candidates)


def bursts(rng: np.random.Generator, times: Array, candidates: NDArray[np.intp]) -> Array:
    """Slow some blocks down."""
    return math.log(1.5) * (rng.random(len(times)) < 0.2) + noise(rng, times, candidates)


def two_speeds(rng: np.random.Generator, times: Array, candidates: NDArray[np.intp]) -> Array:
    """Change between two speeds, which slow the candidates down more than the reference."""
    slow = (times + rng.uniform(0, 10)) % 10 >= 5
    by = np.where(candidates == 0, math.log(1.25), math.log(1.30))
    return np.where(slow, by, 0.0) + noise(rng, times, candidates)


def heavy_tails(rng: np.random.Generator, times: Array, candidates: NDArray[np.intp]) -> Array:
    """Let some blocks err by far."""
    return 0.02 * rng.standard_t(3, len(times))


def alike_neighbours(rng: np.random.Generator, times: Array, candidates: NDArray[np.intp]) -> Array:
    """Neighbouring rounds err to the same side: the signs' autocorrelation is 0.5."""
    found = np.zeros(len(times))
    for candidate in (1, 2):
        own = candidates == candidate
        turns = np.where(rng.random(int(own.sum())) < 0.75, 1, -1)
        found[own] = np.cumprod(turns) * np.abs(0.015 * rng.standard_normal(len(turns)))
    return found


MACHINES = (
    Machine("quiet: 1 % noise", noise),
    Machine("drift: a random walk by 10 % a minute", drift),
    Machine("placement: 0.5 % in each process", noise, placement=0.005),
    Machine("bursts: x1.5 in 20 % of blocks", bursts),
    Machine("heavy tails: Student t, 3 degrees", heavy_tails),
    Machine("neighbours alike: signs' autocorrelation 0.5", alike_neighbours),
    Machine("two speeds, 5 s each", two_speeds, math.log(1.30 / 1.25) / 2, required=False),
)


def placed(machine: Machine, rng: np.random.Generator) -> Array:
    """Draw where candidates lie in a process: what that adds to each one's logarithm."""
    return TRUTH + machine.placement * rng.standard_normal(len(TRUTH))


def one_process(machine: Machine, rng: np.random.Generator, protocol: Protocol = FULL) -> Array:
    """Time blocks in rounds until they are enough; return their means, (rounds, candidates)."""
    most = int(protocol.budget_s / (protocol.block_s + OVERHEAD_S))
    order = np.argsort(rng.random((most, len(TRUTH))), axis=1)
    lengths = protocol.block_s * rng.uniform(0.8, 1.2, order.size) + OVERHEAD_S
    candidates = order.ravel()
    logs = placed(machine, rng)[candidates]
    logs = logs + machine.slowdown(rng, np.cumsum(lengths), candidates)
    means = np.empty(order.shape)
    np.put_along_axis(means, order, np.exp(logs).reshape(order.shape), axis=1)
    enough = [protocol.calls] * len(TRUTH)  # blocks of many calls
    for rounds in (*takewhile(lambda look: look < most, protocol.looks), most):
        if rounds_needed(means[:rounds].T.tolist(), enough, 0, protocol) <= rounds:
            break
    return means[:rounds]


def in_one_process(machine: Machine, rng: np.random.Generator) -> tuple[list[Difference], int]:
    """Run a benchmark in rounds; return each candidate's relative latency, and the rounds."""
    means = one_process(machine, rng)
    return [difference(means[:, number], means[:, 0]) for number in (1, 2)], len(means)


def in_processes(machine: Machine, rng: np.random.Generator) -> tuple[list[Difference], int]:
    """Run a benchmark as it is run: its rounds are shared by fresh processes."""
    protocol = FULL.in_each(FULL.processes)
    each = [one_process(machine, rng, protocol) for _ in range(FULL.processes)]
    logs = [np.log(means) for means in each]
    found = [difference_of([one[:, number] - one[:, 0] for one in logs]) for number in (1, 2)]
    return found, sum(len(means) for means in each)


def separate(machine: Machine, rng: np.random.Generator) -> tuple[list[Difference], int]:
    """Measure one after the other, each until its mean is certain; divide the means."""
    block, (least, most) = FULL.block_s, (int(s / 0.02) for s in SEPARATE_S)
    starts = np.arange(len(TRUTH)) * (SEPARATE_S[1] + SEPARATE_GAP_S)
    times = (starts[:, None] + np.arange(most) * block).ravel()
    candidates = np.repeat(np.arange(len(TRUTH)), most)
    logs = placed(machine, rng)[candidates] + machine.slowdown(rng, times, candidates)
    means, widths = [], []
    for samples in np.exp(logs).reshape(len(TRUTH), most):
        for n in range(least, most + 1, 10):
            mean = samples[:n].mean()
            half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * samples[:n].std(ddof=1) / math.sqrt(n)
            if half <= SEPARATE_TOLERANCE * mean:
                break
        means.append(mean)
        widths.append(half / mean)
    found = []
    for i in (1, 2):
        centre, width = math.log(means[i] / means[0]), math.hypot(widths[i], widths[0])
        found.append(Difference(centre, centre - width, centre + width, n, 1.0))
    return found, n


@dataclass(frozen=True)
class Coverage:
    """How often the truth was within the interval, in percent, and the interval's half width."""

    held: float
    half_width: float
    rounds: int

    @classmethod
    def of(
        cls,
        machine: Machine,
        way: Callable[[Machine, np.random.Generator], tuple[list[Difference], int]],
        streams: int,
    ) -> Coverage:
        held, widths, lengths = list[bool](), list[float](), list[int]()
        for seed in range(streams):
            found, rounds = way(machine, np.random.default_rng(seed))
            for one, truth in zip(found, TRUTH[1:] + machine.shift, strict=True):
                held.append(one.low <= truth <= one.high)
                widths.append((one.high - one.low) / 2)
            lengths.append(rounds)
        half = 100 * statistics.median(widths)
        return cls(100 * statistics.fmean(held), half, round(statistics.median(lengths)))


WAYS = {
    "eight processes": (in_processes, "#0072b2"),
    "one process": (in_one_process, "#56b4e9"),
    "one after the other, as before": (separate, "#d55e00"),
}


def plot(rows: dict[str, list[Coverage]], streams: int, path: Path) -> None:
    """Draw each way's coverage of each kind of machine."""
    from matplotlib.figure import Figure

    figure = Figure((8, 4.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    for index, (label, (_, colour)) in enumerate(WAYS.items()):
        held, shift = [row[index].held for row in rows.values()], 0.27 * (1 - index)
        axes.barh(places + shift, held, 0.26, label=label, color=colour)
        for place, value in zip(places + shift, held, strict=True):
            axes.text(value + 0.8, place, f"{value:.1f}", va="center", fontsize=8)
    axes.axvline(92, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(places, list(rows))
    axes.set_xlim(0, 112)
    axes.set_xlabel(f"95 % intervals that hold the truth (%); {streams:,} streams a kind; goal 92")
    figure.legend(loc="outside upper right", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)


def main(streams: int, picture: str | None) -> None:
    """Print the table, and draw it if a file is named."""
    told = "".join(f" {name}: holds the truth | half width | rounds |" for name in WAYS)
    print(f"| machine |{told}")
    print(f"| --- |{' ---: |' * 3 * len(WAYS)}")
    rows = dict[str, list[Coverage]]()
    for machine in MACHINES:
        rows[machine.name] = [Coverage.of(machine, way, streams) for way, _ in WAYS.values()]
        told = "".join(
            f" {one.held:.1f} % | {one.half_width:.2f} % | {one.rounds} |"
            for one in rows[machine.name]
        )
        print(f"| {machine.name} |{told}", flush=True)
    if picture is not None:
        plot(rows, streams, Path(picture))


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(int(given.get("streams", STREAMS)), given.get("plot"))

"""The difference between two candidates' latencies over the rounds in which both were timed.

In each round d = log(block mean of one / block mean of the other). Machines drift, rounds share the
drift: what is left is described by the median of d, with an interval of order statistics that is
widened where neighbouring rounds are alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Self

from cifar_lightning.config.protocols import MIN_ROUNDS, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Means = Sequence[float] | NDArray[np.float64]

RESOLUTION = math.log(1.01)  # below 1 % there are no differences
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """How much slower one candidate is than another, as a logarithm of the ratio.

    Attributes:
        centre: The median over rounds, or the mean of several processes' medians.
        low: Lower end of its interval; minus infinity where it is not bounded.
        high: Upper end; infinity where it is not bounded.
        n: Number of rounds.
        tau: How many rounds say as much as one independent one, at least 1.
    """

    centre: float
    low: float
    high: float
    n: int
    tau: float

    def __neg__(self) -> Self:
        return replace(self, centre=-self.centre, low=-self.high, high=-self.low)

    @property
    def slower(self) -> bool:
        """Whether the first is slower than the second, by the level of the interval."""
        return self.low > 0 and self.centre >= RESOLUTION

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Centre, low and high as ratios of latencies."""
        return math.exp(self.centre), math.exp(self.low), math.exp(self.high)

    def rounds_needed(self, calls: int, protocol: Protocol) -> int:
        """Estimate how many rounds it takes until the protocol is content; `n` if it is.

        Args:
            calls: How many the first one has had in these rounds.
            protocol: What it asks for.
        """
        needed = max(
            self.n,
            MIN_ROUNDS,
            self.n * protocol.calls / calls,
            protocol.independent_rounds * self.tau,
        )
        reach = max(self.high - self.centre, self.centre - self.low)
        if reach > (narrow := math.log1p(protocol.tolerance)):
            more = 2 if math.isinf(reach) else (reach / narrow) ** 2
            needed = max(needed, self.n * more)
        return math.ceil(needed)


def two_sided(level: float = CONFIDENCE) -> float:
    """Take the normal quantile of an interval that holds the truth with a probability."""
    return NormalDist().inv_cdf((1 + level) / 2)


def one_sided(alpha: float) -> float:
    """Take the normal quantile of a bound that is wrong with a probability."""
    return NormalDist().inv_cdf(1 - alpha)


def difference(first_ms: "Means", second_ms: "Means", z: float | None = None) -> Difference:
    """Compare two candidates by their blocks' means, round by round.

    Args:
        first_ms: One a round.
        second_ms: Of the same rounds.
        z: Normal quantile of the interval's ends; None is that of 95 %.

    Raises:
        ValueError: If there is no round.
    """
    import numpy as np  # reading records needs none of it

    logs = np.log(np.asarray(first_ms, float)) - np.log(np.asarray(second_ms, float))
    return difference_of([logs], z)


def difference_of(logs: "Sequence[NDArray[np.float64]]", z: float | None = None) -> Difference:
    """Compare two candidates by the differences of their logarithms.

    Args:
        logs: One a round, (rounds,), of each process.
        z: As for `difference`.
    """
    found = over_processes([one[:, None] for one in logs], z)
    centre, low, high, tau = (float(one[0]) for one in found)
    return Difference(centre, low, high, sum(map(len, logs)), tau)


def over_processes(
    logs: "Sequence[NDArray[np.float64]]", z: float | None = None
) -> "tuple[NDArray[np.float64], ...]":
    """Compute what `intervals` does for the rounds of several processes.

    Where a candidate lies in memory is drawn once a process and moves its latency throughout, and a
    machine's state changes in minutes, which no interval of rounds knows. Two networks that are
    alike are moved alike, so each pair's own differences count, and not what others scatter by: of
    three processes or more it is Student's interval of their medians. Of two it would be tens of
    times as wide as what either says; theirs are taken together.

    Args:
        logs: Differences of logarithms, (rounds, pairs), of each process.
        z: As for `difference`.
    """
    import numpy as np

    if len(logs) < 3:
        centres, lows, highs, taus = zip(*(intervals(one, z) for one in logs), strict=True)
        return np.mean(centres, 0), np.min(lows, 0), np.max(highs, 0), np.max(taus, 0)
    from scipy.special import stdtrit  # heavy, and reading records needs none of it

    medians = np.array([np.median(one, axis=0) for one in logs])
    probability = NormalDist().cdf(two_sided() if z is None else z)
    quantile = float(stdtrit(len(logs) - 1, probability))
    reach = quantile * medians.std(axis=0, ddof=1) / math.sqrt(len(logs))
    centre = medians.mean(axis=0)
    # However alike a process's rounds are: their number is in no interval here.
    return centre, centre - reach, centre + reach, np.ones_like(centre)


def intervals(logs: "NDArray[np.float64]", z: float | None) -> "tuple[NDArray[np.float64], ...]":
    """Compute centres, lower and upper ends, and how many rounds say as much as one.

    A level that asks for more independent rounds than there are gets the least and the greatest
    of all rounds, as many times as far from the centre as its quantile is that of the strictest
    level these rounds allow, as long as 95 % has bounds; with fewer there are none.

    Args:
        logs: Differences of logarithms, (rounds, pairs).
        z: As for `difference`.

    Returns:
        Four arrays, (pairs,).
    """
    import numpy as np

    n = len(logs)
    if n == 0:
        raise ValueError("no rounds")
    ordered = np.sort(logs, axis=0)
    centre = np.median(ordered, axis=0)
    tau = autocorrelation_time(np.sign(logs - centre))
    z = two_sided() if z is None else z
    rank = np.floor(n / 2 - z * np.sqrt(n * tau) / 2)
    # Without bounds what is ten times slower would tie with all others, as soon as it is noisy.
    bounded = np.floor(n / 2 - min(z, two_sided()) * np.sqrt(n * tau) / 2) >= 1
    beyond = np.maximum(1, z * np.sqrt(n * tau) / max(1, n - 2))  # where the rank is below 1
    rank, pair = np.maximum(rank, 1).astype(int), np.arange(logs.shape[1])
    lowest, highest = ordered[rank - 1, pair], ordered[np.minimum(n - rank, n - 1), pair]
    low = np.where(bounded, centre - beyond * (centre - lowest), -math.inf)
    high = np.where(bounded, centre + beyond * (highest - centre), math.inf)
    return centre, low, high, tau


def autocorrelation_time(x: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Tell how many neighbouring values say as much as one independent one, at least 1.

    1 + 2 times the sum of the autocorrelations, summed in pairs of lags until a pair's sum is not
    above 0 (Geyer's initial positive sequence; Statistical Science 7, 1992).

    Args:
        x: Around 0, (values, series).
    """
    import numpy as np

    variance = (x * x).sum(axis=0)
    total, going = np.zeros(x.shape[1]), variance > 0
    for lag in range(1, len(x) - 1, 2):
        several = (x[lag:] * x[:-lag]).sum(axis=0) + (x[lag + 1 :] * x[: -lag - 1]).sum(axis=0)
        pair = several / np.where(variance > 0, variance, 1)
        going &= pair > 0
        if not going.any():
            break
        total += np.where(going, pair, 0)
    return np.maximum(1.0, 1 + 2 * total)

"""How accurate a group of seeds is, how sure that is, and which of two is surely more accurate."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

SURE = 1.64  # standard errors: one-sided 95 %
LEAST_STD = 0.25  # points between seeds: two that agree by chance prove nothing
Right: TypeAlias = NDArray[np.bool_]  # of each test image, whether it was classified correctly


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy of a group of seeds, in percent.

    Attributes:
        values: One a seed.
        images: Number of test images; None where it was not recorded.
        right: Of each seed, which images it classified correctly; empty if that is not known of
            all of them.
    """

    values: Sequence[float]
    images: int | None
    right: Sequence[Right] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def of_images(self) -> float:
        """Variance of the mean because the test images are finite; infinite if unknown."""
        return self.mean * (100 - self.mean) / self.images if self.images else math.inf

    def error(self, pooled: float) -> float:
        """Compute the standard error, by the standard deviation pooled over groups of seeds."""
        return math.sqrt(pooled**2 / len(self.values) + self.of_images)


def pooled_std(groups: Iterable[Accuracy]) -> float:
    """Pool the standard deviation between seeds over groups, in points."""
    squares, freedom = 0.0, 0
    for one in groups:
        if one.std is not None:
            squares += one.std**2 * (len(one.values) - 1)
            freedom += len(one.values) - 1
    return max(math.sqrt(squares / freedom) if freedom else 0.0, LEAST_STD)


def surely_above(first: Accuracy, second: Accuracy, pooled: float) -> bool:
    """Tell whether the first is surely more accurate than the second.

    The variance of a difference on the same images is McNemar's (Psychometrika 12, 1947): what
    exactly one of the two gets right counts.
    """
    gap = first.mean - second.mean
    if first.right and second.right and len(first.right[0]) == len(second.right[0]):
        exactly_one = np.mean([np.mean(i != j) for i in first.right for j in second.right])
        images = (100**2 * float(exactly_one) - gap**2) / len(first.right[0])
    else:
        images = first.of_images + second.of_images
    seeds = pooled**2 * (1 / len(first.values) + 1 / len(second.values))
    return gap > SURE * math.sqrt(seeds + max(images, 0.0))

"""How large a candidate's mean or p95 may truly be: a bootstrap over whole rounds."""

import numpy as np

from cifar_lightning.comparison.relation import Timed
from cifar_lightning.runs.paired import CONFIDENCE

DRAWS = 1000
SEED = 0
AT_ONCE = 50  # draws whose calls are in the memory together


def upper_end_ms(timed: Timed, statistic: str) -> float:
    """Compute the upper end of a 95 % interval of the mean or p95 of all calls.

    Rounds are drawn with replacement, all calls of a round together: those of a block are alike.
    """
    blocks = [np.asarray(one.calls_ms) for one in timed.benchmark.blocks(timed.number)]
    sizes = np.array([len(one) for one in blocks])
    # How often each round was drawn, (draws, rounds).
    rounds = len(blocks)
    drawn = np.random.default_rng(SEED).multinomial(rounds, np.full(rounds, 1 / rounds), DRAWS)
    if statistic == "mean":
        found = drawn @ np.array([one.sum() for one in blocks]) / (drawn @ sizes)
    else:
        found = _p95(np.concatenate(blocks), np.repeat(np.arange(rounds), sizes), drawn)
    return float(np.quantile(found, (1 + CONFIDENCE) / 2))


def _p95(
    calls: np.ndarray[tuple[int], np.dtype[np.float64]],
    rounds: np.ndarray[tuple[int], np.dtype[np.int64]],
    drawn: np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Take the nearest-rank percentile of each draw, whose calls count as often as their round."""
    order = np.argsort(calls)
    found = []
    for some in np.array_split(drawn, DRAWS // AT_ONCE):
        so_far = np.cumsum(some[:, rounds[order]], axis=1)
        ranks = -(-95 * so_far[:, -1:] // 100)
        found.append(calls[order][(so_far >= ranks).argmax(axis=1)])
    return np.concatenate(found)

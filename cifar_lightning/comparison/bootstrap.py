"""How large a candidate's mean or p95 may truly be: a bootstrap over whole rounds."""

from functools import lru_cache
from itertools import islice

import numpy as np

from cifar_lightning.comparison.relation import Timed
from cifar_lightning.runs.paired import CONFIDENCE

DRAWS = 1000
SEED = 0
AT_ONCE = 50  # draws whose calls are in the memory together


def upper_end_ms(timed: Timed, statistic: str) -> float:
    """Compute the upper end of a 95 % interval of the mean or p95 of all calls.

    Rounds are drawn with replacement, all calls of a round together: those of a block are alike. So
    are the rounds of a process, so of several processes all but one are drawn first (Rao and Wu
    1988, Journal of the American Statistical Association 83: what differs by as much as theirs).
    """
    of_each = tuple(map(len, timed.benchmark.counted))
    blocks_counted = islice(timed.benchmark.blocks(timed.number), sum(of_each))
    blocks = [np.asarray(one.calls_ms) for one in blocks_counted]
    sizes = np.array([len(one) for one in blocks])
    rounds, drawn = len(blocks), _drawn(of_each)
    if statistic == "mean":
        found = drawn @ np.array([one.sum() for one in blocks]) / (drawn @ sizes)
    else:
        found = _p95(np.concatenate(blocks), np.repeat(np.arange(rounds), sizes), drawn)
    return float(np.quantile(found, (1 + CONFIDENCE) / 2))


@lru_cache(maxsize=8)
def _drawn(rounds: tuple[int, ...]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Draw rounds of each process; give how often each was drawn, (draws, rounds)."""
    chance, processes = np.random.default_rng(SEED), len(rounds)
    times = chance.multinomial(max(1, processes - 1), np.full(processes, 1 / processes), DRAWS)
    drawn = [
        chance.multinomial(of_one * count, np.full(count, 1 / count))
        for of_one, count in zip(times.T, rounds, strict=True)
    ]
    return np.concatenate(drawn, axis=1)


def _p95(
    calls: np.ndarray[tuple[int], np.dtype[np.float64]],
    rounds: np.ndarray[tuple[int], np.dtype[np.int64]],
    drawn: np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Take the nearest-rank percentile of each draw, whose calls count as often as their round.

    Of the calls as many of the slowest are looked at as hold it in all draws.
    """
    order = np.argsort(calls)
    totals = drawn @ np.bincount(rounds)
    ranks = -(-95 * totals // 100)
    for begin in (len(order) * 9 // 10, len(order) * 3 // 4, 0):
        tail = order[begin:]
        of_round = np.bincount(rounds[tail], minlength=drawn.shape[1])
        faster = totals - drawn @ of_round
        if (faster < ranks).all():
            break
    found = []
    for some in np.array_split(np.arange(DRAWS), DRAWS // AT_ONCE):
        so_far = faster[some, None] + np.cumsum(drawn[some][:, rounds[tail]], axis=1)
        found.append(calls[tail][(so_far >= ranks[some, None]).argmax(axis=1)])
    return np.concatenate(found)

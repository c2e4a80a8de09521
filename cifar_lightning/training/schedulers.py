"""Learning-rate schedules: factors of the optimizer's rate, stepped once per batch.

Each is a function of the fraction of the steps that is done, so a schedule keeps its shape whatever
the number of epochs. All begin with a linear warm-up.
"""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Half a cosine from 1 down to 0 (Loshchilov & Hutter 2017, without restarts).

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimizer steps in the whole training run.
        warmup: Fraction of all steps in which the rate rises linearly to the peak.
    """
    return _schedule(optimizer, total_steps, warmup, lambda t: (1 + math.cos(math.pi * t)) / 2)


def linear(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """A triangle: a line from 1 down to 0 (Smith and Topin 2017; Jordan 2024).

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimizer steps in the whole training run.
        warmup: Fraction of all steps in which the rate rises linearly to the peak.
    """
    return _schedule(optimizer, total_steps, warmup, lambda t: 1 - t)


def step(
    optimizer: Optimizer, total_steps: int, warmup: float, milestones: Sequence[float], gamma: float
) -> LambdaLR:
    """Multiply by ``gamma`` at each milestone.

    Args:
        optimizer: Its learning rate is the first one after the warm-up.
        total_steps: Optimizer steps in the whole training run.
        warmup: Fraction of all steps in which the rate rises linearly.
        milestones: Fractions of the steps after the warm-up.
        gamma: The factor.

    Raises:
        ValueError: If a milestone is not a fraction or ``gamma`` is not in (0, 1].
    """
    if not all(0 < milestone < 1 for milestone in milestones):
        raise ValueError(f"milestones={list(milestones)}: must be fractions between 0 and 1")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma}: must be above 0, at most 1")
    return _schedule(
        optimizer, total_steps, warmup, lambda t: gamma ** sum(t >= one for one in milestones)
    )


def constant(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Keep the rate after the warm-up."""
    return _schedule(optimizer, total_steps, warmup, lambda t: 1.0)


def _schedule(
    optimizer: Optimizer, total_steps: int, warmup: float, shape: Callable[[float], float]
) -> LambdaLR:
    """Put a linear warm-up before ``shape``, a function of the fraction of the rest."""
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup}: must be 0 or more, below 1")
    warm = round(total_steps * warmup)

    def factor(index: int) -> float:
        if index < warm:
            return (index + 1) / (warm + 1)
        return shape((index - warm) / max(1, total_steps - warm))

    return LambdaLR(optimizer, factor)

"""Optuna's samplers: one a trial, of another seed each time.

A search that goes on would draw the same again otherwise.
"""

import warnings
from typing import Any


def of_settings(seed: int, number: int) -> Any:
    """Make the sampler of a trial of settings, by a search's seed and the trial's number."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed + number)


def of_networks(seed: int, number: int) -> Any:
    """Make the same of a trial of networks, whose settings depend on each other."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed + number, multivariate=True, group=True)

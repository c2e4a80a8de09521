"""Whether Optuna's sampler finds better networks than random draws do, in the same time.

    python -m perf.sampler     # half an hour of one core

Replays searches on a model of networks, as training them would take weeks. Regressions on the
networks of docs/results/search that were drawn at random tell a network's latency, training time
and errors by its settings and size. They leave about a sixth of each open: a made-up network gets
what they leave of one of the real ones, which differs from replay to replay.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from optuna.samplers import BaseSampler, RandomSampler
from torch import nn

from cifar_lightning.config.components import construct
from cifar_lightning.config.options import option
from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.errors import UserError
from cifar_lightning.models.complexity import count_macs, count_parameters
from cifar_lightning.sweeps.sampler import of_networks
from cifar_lightning.sweeps.space import flatten_space
from perf.search import LATENCIES, TARGETS, Network, by_halving, compared, described, read

SPACE = flatten_space(yaml.safe_load((CONF_DIR / "space" / "plain.yaml").read_text()))
MODEL = option("model", "cifarnet", {"data": {"num_classes": 10}})
GUESSING = 10.0  # percent
SLOWEST = max(LATENCIES)  # slower networks are not trained
BATCH = 8  # drawn at a time
HOURS = (1.0, 3.0)
REPEATS = 100


class Landscape:
    """Tells of any network of the space what training and timing it would.

    Args:
        networks: It is made after them.
    """

    def __init__(self, networks: list[Network]) -> None:
        rows = np.array([regressors(one.settings) for one in networks])
        known = np.array(
            [
                [math.log(value) for value in (one.relative, one.images_s, *_errors(one))]
                for one in networks
            ]
        )
        self._weights, *_ = np.linalg.lstsq(rows, known)
        left = known - rows @ self._weights
        # A fit of so many numbers leaves less than there is.
        self.left = left * math.sqrt(len(rows) / (len(rows) - rows.shape[1]))

    def network(self, settings: Mapping[str, Any], seed: int) -> Network:
        """Make up a network, the same whichever settings without effect it has.

        Raises:
            UserError: If it can't be built.
        """
        row = regressors(settings)
        logs = np.array(row) @ self._weights + random.Random(f"{seed} {row}").choice(self.left)
        relative, images_s, *errors = np.exp(logs).tolist()
        return Network(
            relative, images_s, tuple(max(GUESSING, 100 - one) for one in errors), settings
        )


def _errors(network: Network) -> list[float]:
    return [100 - accuracy for accuracy in network.accuracies]


def regressors(settings: Mapping[str, Any]) -> list[float]:
    """Describe a network by numbers.

    The last ones are the logarithm of its MACs and the square of that, the logarithm of its
    parameters, and its convolutions.
    """
    # Branches are merged before anything is executed.
    network = construct("model", MODEL | dict(settings) | {"branches": None})
    macs = math.log(count_macs(network))
    convolutions = sum(isinstance(one, nn.Conv2d) for one in network.modules())
    sizes = [macs, macs**2, math.log(count_parameters(network)), convolutions]
    return [float(value) for value in (*described(settings).values(), *sizes)]


def drawn(landscape: Landscape, sampler: str, seed: int) -> Iterator[Network]:
    """Draw networks for ever, as a search does; the next is asked for when one has been trained.

    One that is drawn again is not trained again: the sampler is told what is known of it.
    """
    study = optuna.create_study(directions=["minimize", "maximize"])
    known: dict[tuple[float, ...], list[float] | None] = {}  # None until it has been trained
    numbers = itertools.count()
    while True:
        batch: list[tuple[optuna.Trial, Network]] = []
        while len(batch) < BATCH:
            study.sampler = _sampler(sampler, seed, next(numbers))
            trial = study.ask()
            settings = {
                key.removeprefix("model."): it.draw(trial, key) for key, it in SPACE.items()
            }
            try:
                network = landscape.network(settings, seed)
            except UserError:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            if (which := _made_up(network)) in known:
                values = known[which]
                state = None if values else optuna.trial.TrialState.FAIL
                study.tell(trial, values, state)
            elif network.relative > SLOWEST:
                known[which] = [math.log(network.relative), GUESSING]
                study.tell(trial, known[which])
            else:
                known[which] = None
                batch.append((trial, network))
        for trial, network in batch:
            yield network
            known[_made_up(network)] = values = [math.log(network.relative), network.accuracies[0]]
            study.tell(trial, values)


def _made_up(network: Network) -> tuple[float, ...]:
    """Tell a network by what was made up for it."""
    return network.relative, network.images_s, *network.accuracies


def _sampler(name: str, seed: int, number: int) -> BaseSampler:
    mixed = 10_000 * seed
    return RandomSampler(mixed + number) if name == "random" else of_networks(mixed, number)


def main() -> None:
    """Print what Optuna's sampler gains over random draws."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)  # more would only wait for each other: sizes need one image
    landscape = Landscape(read())
    latency, time, *errors = (f"{left:.0%}" for left in landscape.left.std(axis=0))
    print(f"left open: {latency} of latency, {time} of training time, {errors[-1]} of errors")
    targets = TARGETS[0]
    print("hours | networks: random, TPE | percent faster for", *targets, end="")
    print(" | points more accurate, at most", *LATENCIES)
    found: list[list[tuple[list[Network], list[Network]]]] = [[] for _ in HOURS]
    for seed in range(REPEATS):
        # What is drawn in the first hour is the same, however many follow.
        ways = (
            itertools.tee(drawn(landscape, name, seed), len(HOURS)) for name in ("random", "tpe")
        )
        for hours, pairs, one, other in zip(HOURS, found, *ways, strict=True):
            pairs.append((by_halving(one, hours, targets), by_halving(other, hours, targets)))
    for hours, pairs in zip(HOURS, found, strict=True):
        print(f"{hours:g} | {compared(pairs, targets, LATENCIES)}")


if __name__ == "__main__":
    main()

"""Whether Optuna's sampler finds better networks than random draws do, in the same time.

    python -m perf.sampler

Replays searches on a model of networks, as training them would take weeks. The networks of
docs/results/search that were drawn at random tell how a network's latency, training time and errors
depend on its settings and size; a regression leaves about a sixth of each open, and of that a
network gets what it leaves of one of those, the same whenever it is drawn in one replay.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.samplers import BaseSampler, RandomSampler

from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.sweeps.sampler import of_networks
from cifar_lightning.sweeps.space import flatten_space
from perf.search import (
    LATENCIES,
    TARGETS,
    Network,
    best,
    by_halving,
    described,
    fastest,
    read,
    standard_error,
)

SPACE = flatten_space(yaml.safe_load((CONF_DIR / "space" / "plain.yaml").read_text()))
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
        rows = np.array([_row(one.settings) for one in networks])
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
        """Make up a network; `ValueError` if there is no such one."""
        own = random.Random(f"{seed} {json.dumps(settings, sort_keys=True)}")
        logs = np.array(_row(settings)) @ self._weights + own.choice(self.left)
        relative, images_s, *errors = np.exp(logs).tolist()
        return Network(
            relative, images_s, tuple(max(GUESSING, 100 - one) for one in errors), settings
        )


def _errors(network: Network) -> list[float]:
    return [100 - accuracy for accuracy in network.accuracies]


def _row(settings: Mapping[str, Any]) -> list[float]:
    macs, parameters, convolutions = size(settings)
    sizes = [math.log(macs), math.log(macs) ** 2, math.log(parameters), convolutions]
    return [float(value) for value in described(settings).values()] + sizes


def size(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Count a network's multiply-accumulates, its filters' numbers and its convolutions.

    Building it would take more time than all else.

    Raises:
        ValueError: If there is no such network.
    """
    side, before, stem = settings["resolution"] or 32, 3, settings["stem"]
    if settings["whiten"] and stem is None:
        raise ValueError("nothing to whiten")
    macs, filters = [], []

    def convolution(channels: int, kernel: int) -> None:
        nonlocal before
        filters.append(before * channels * kernel**2)
        macs.append(filters[-1] * side**2)
        before = channels

    if stem is not None:
        kernel = settings["stem_kernel"]
        side = (side + 2 * ((kernel - 1) // 2) - kernel) // settings["stem_stride"] + 1
        convolution(stem, kernel)
    for channels in settings["channels"]:
        if side < 2:
            raise ValueError("too many stages")
        strided = settings["downsample"] == "stride"
        if strided:
            side = (side + 1) // 2
        convolution(channels, 3)
        if not strided:
            side //= 2
        for _ in range(settings["depth"] - 1):
            convolution(channels, 3)
    return sum(macs), sum(filters), len(filters)


def drawn(landscape: Landscape, sampler: str, seed: int) -> Iterator[Network]:
    """Draw networks for ever, as a search does; the next is asked for when one has been trained."""
    study = optuna.create_study(directions=["minimize", "maximize"])
    while True:
        batch: list[tuple[optuna.Trial, Network]] = []
        while len(batch) < BATCH:
            number = len(study.trials)
            study.sampler = _sampler(sampler, seed, number)
            trial = study.ask()
            settings = {
                key.removeprefix("model."): it.draw(trial, key) for key, it in SPACE.items()
            }
            try:
                network = landscape.network(settings, seed)
            except ValueError:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            if network.relative > SLOWEST:
                study.tell(trial, [math.log(network.relative), GUESSING])
                continue
            batch.append((trial, network))
        for trial, network in batch:
            yield network
            study.tell(trial, [math.log(network.relative), network.accuracies[0]])


def _sampler(name: str, seed: int, number: int) -> BaseSampler:
    mixed = 10_000 * seed
    return RandomSampler(mixed + number) if name == "random" else of_networks(mixed, number)


def main() -> None:
    """Print what Optuna's sampler gains over random draws."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape = Landscape(read())
    print("left open, in percent:", (100 * landscape.left.std(axis=0)).round())
    targets = TARGETS[0]
    print("hours | percent faster for", *targets, "| points more accurate, at most", *LATENCIES)
    for hours in HOURS:
        counts, gains = [], []
        for seed in range(REPEATS):
            found = {}
            for name in ("random", "tpe"):
                found[name] = by_halving(drawn(landscape, name, seed), hours, targets)
            first, second = found["random"], found["tpe"]
            counts.append((len(first), len(second)))
            gains.append(
                [100 * math.log(fastest(first, one) / fastest(second, one)) for one in targets]
                + [best(second, one) - best(first, one) for one in LATENCIES]
            )
        cells = [
            f"{statistics.fmean(gain):+.1f} ± {standard_error(gain):.1f}"
            for gain in zip(*gains, strict=True)
        ]
        means = [statistics.fmean(count) for count in zip(*counts, strict=True)]
        print(f"{hours:g} | {means[0]:.0f}, {means[1]:.0f} | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()

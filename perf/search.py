"""What a search for fast and accurate networks has to choose from, and whether it pays.

    python -m perf.search

Reads the networks of docs/results/search, those that were drawn at random. First, which settings
change the errors after 12 epochs at the same latency. Then, whether successive halving finds better
networks than training each as long, in the same time: both are replayed. The networks come in a
random order, a training takes what it would on two cores, and when the time is up, the best
accuracy after 12 epochs within each latency counts.
"""

from __future__ import annotations

import csv
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_lightning.sweeps.ladder import Point, promotion

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "search" / "networks.csv"
RUNGS = (4, 12)  # epochs
KEEP = [RUNGS[0] / RUNGS[1]]
IMAGES = 45_000  # a training epoch's
LATENCIES = (0.1, 0.2, 0.29, 0.5, 0.75)  # relative to ResNet-8's, eager
HOURS = (0.5, 1.0, 2.0, 3.0)
REPEATS = 200


@dataclass(frozen=True)
class Network:
    """What is known of a network.

    Attributes:
        relative: Latency, to ResNet-8's.
        images_s: Trained in a second on two cores.
        accuracies: Of validation, in percent, after each rung's epochs.
        settings: Of ``model``.
    """

    relative: float
    images_s: float
    accuracies: tuple[float, ...]
    settings: dict[str, str]

    def hours(self, epochs: int) -> float:
        return epochs * IMAGES / self.images_s / 3600


def read(path: Path = TABLE) -> list[Network]:
    """Read the networks that were drawn at random and have both accuracies."""
    with path.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["drawn"] == "random"]
    known = [[row[f"val_{epochs}"] for epochs in RUNGS] for row in rows]
    return [
        Network(
            float(row["relative"]),
            float(row["images_s"]),
            tuple(map(float, accuracies)),
            dict(one.removeprefix("model.").split("=", 1) for one in row["settings"].split()),
        )
        for row, accuracies in zip(rows, known, strict=True)
        if all(accuracies)
    ]


def described(network: Network) -> dict[str, float]:
    """Describe a network by numbers, for a regression."""
    of, log = network.settings, math.log(network.relative)
    channels, stem = json.loads(of["channels"]), of["stem"] != "null"
    return {
        "1": 1.0,
        "log latency": log,
        "its square": log**2,
        "stages": len(channels),
        "convolutions a stage": float(of["depth"]),
        "log growth a stage": math.log(channels[-1] / channels[0]) / (len(channels) - 1),
        "stem": stem,
        "stem of stride 2": stem and of["stem_stride"] == "2",
        "stem of 3x3": stem and of["stem_kernel"] == "3",
        "whitened": of["whiten"] == "True",
        "pool instead of stride": of["downsample"] == "pool",
        **{name: of["activation"] == name for name in ("gelu", "silu", "hardswish")},
        "average at the end": of["pool"] == "avg",
        "logits not divided": of["scale"] == "1.0",
        "residual": of["residual"] == "True",
        "branches": of["branches"] == "True",
        "24 pixels": of["resolution"] == "24",
        "16 pixels": of["resolution"] == "16",
    }


def effects(networks: Sequence[Network]) -> tuple[dict[str, tuple[float, float]], float]:
    """Regress the logarithm of the errors on the settings, in percent of the errors.

    Returns:
        By setting how many fewer errors there are and the standard error; and what is left over.
    """
    rows = [described(one) for one in networks]
    design = np.array([[float(value) for value in row.values()] for row in rows])
    errors = np.array([-100 * math.log(100 - one.accuracies[-1]) for one in networks])
    found, *_ = np.linalg.lstsq(design, errors, rcond=None)
    left = errors - design @ found
    variance = left @ left / (len(rows) - design.shape[1])
    reach = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * variance)
    named = dict(zip(rows[0], zip(found.tolist(), reach.tolist(), strict=True), strict=True))
    return named, math.sqrt(variance)


def at_once(networks: Sequence[Network], hours: float) -> list[Network]:
    """Train one network after the other for the last rung's epochs; return those trained."""
    trained = []
    for one in networks:
        hours -= one.hours(RUNGS[-1])
        if hours < 0:
            break
        trained.append(one)
    return trained


def by_halving(networks: Sequence[Network], hours: float) -> list[Network]:
    """Train as a search for a front does; return those that reached the last rung."""
    rungs: list[dict[int, Point]] = [{} for _ in RUNGS]
    waiting = [*range(len(networks))][::-1]
    while True:
        if (chosen := promotion(rungs, KEEP, set(), last=not waiting)) is not None:
            place, number = chosen
        elif waiting:
            place, number = 0, waiting.pop()
        else:
            break
        one = networks[number]
        hours -= one.hours(RUNGS[place])
        if hours < 0:
            break
        rungs[place][number] = Point(one.relative, one.accuracies[place])
    return [networks[number] for number in rungs[-1]]


def best(trained: Sequence[Network], relative: float) -> float:
    """Tell the best accuracy within a latency; 10 %, which is guessing, where there is none."""
    return max((one.accuracies[-1] for one in trained if one.relative <= relative), default=10.0)


def main() -> None:
    """Print what matters; for each time and latency how much more accurate halving's best is."""
    networks = read()
    found, left = effects(networks)
    print(f"fewer errors after {RUNGS[-1]} epochs, in percent ({left:.0f} % are left over)")
    for name, (effect, error) in found.items():
        print(f"{name} | {effect:+.0f} ± {error:.0f}")
    everything = sum(one.hours(RUNGS[-1]) for one in networks)
    print(
        f"{len(networks)} networks, {everything:.1f} hours for {RUNGS[-1]} epochs each; "
        f"{REPEATS} orders; difference of the best in points, mean and standard error"
    )
    print("hours | networks at once, by halving | " + " | ".join(f"≤ {one:g}" for one in LATENCIES))
    for hours in HOURS:
        counts: list[tuple[int, int]] = []
        gains: list[list[float]] = [[] for _ in LATENCIES]
        for seed in range(REPEATS):
            order = random.Random(seed).sample(networks, len(networks))
            first, second = at_once(order, hours), by_halving(order, hours)
            counts.append((len(first), len(second)))
            for gain, relative in zip(gains, LATENCIES, strict=True):
                gain.append(best(second, relative) - best(first, relative))
        seen = ", ".join(f"{statistics.fmean(one):.0f}" for one in zip(*counts, strict=True))
        cells = [
            f"{statistics.fmean(gain):+.2f} ± {statistics.stdev(gain) / REPEATS**0.5:.2f}"
            for gain in gains
        ]
        print(f"{hours:g} | {seen} | " + " | ".join(cells))


if __name__ == "__main__":
    main()

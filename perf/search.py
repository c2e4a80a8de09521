"""What a search for fast and accurate networks has to choose from, and whether it pays.

    python -m perf.search

Reads the networks of docs/results/search, those that were drawn at random. First, which settings
change the errors after 12 epochs at the same latency. Then, whether successive halving finds better
networks than training each as long, in the same time: both are replayed. The networks come in a
random order, a training takes what it would on two cores, and a final run is one of 12 epochs. When
the time is up, what counts is the latency of the fastest network that reaches a target, and in a
search without targets the best accuracy within each latency.
"""

from __future__ import annotations

import csv
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cifar_lightning.sweeps.aims import Guess, in_turns
from cifar_lightning.sweeps.curve import guess
from cifar_lightning.sweeps.ladder import Point, Rung, best_first, dominated, promotion

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "search" / "networks.csv"
RUNGS = (4, 12)  # epochs
KEEP = [RUNGS[0] / RUNGS[1]]
IMAGES, HELD_OUT = 45_000, 5_000  # a training epoch's, and of validation
TARGETS = ((75, 80, 85), (70, 78, 84))  # accuracies after 12 epochs that searches are after
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
        settings: Of ``model``, by key.
    """

    relative: float
    images_s: float
    accuracies: tuple[float, ...]
    settings: Mapping[str, Any]

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
            _values(row["settings"]),
        )
        for row, accuracies in zip(rows, known, strict=True)
        if all(accuracies)
    ]


def _values(overrides: str) -> dict[str, Any]:
    pairs = (one.removeprefix("model.").split("=", 1) for one in overrides.split())
    return {key: yaml.safe_load(value) for key, value in pairs}


def described(settings: Mapping[str, Any]) -> dict[str, float]:
    """Describe a network by numbers, for a regression."""
    of, channels, stem = settings, settings["channels"], settings["stem"] is not None
    return {
        "1": 1.0,
        "stages": len(channels),
        "convolutions a stage": of["depth"],
        "log growth a stage": math.log(channels[-1] / channels[0]) / (len(channels) - 1),
        "stem": stem,
        "stem of stride 2": stem and of["stem_stride"] == 2,
        "stem of 3x3": stem and of["stem_kernel"] == 3,
        "whitened": of["whiten"],
        "pool instead of stride": of["downsample"] == "pool",
        **{name: of["activation"] == name for name in ("gelu", "silu", "hardswish")},
        "average at the end": of["pool"] == "avg",
        "logits not divided": of["scale"] == 1.0,
        "residual": of["residual"] is True,
        "branches": of["branches"] is True,
        "24 pixels": of["resolution"] == 24,
        "16 pixels": of["resolution"] == 16,
    }


def effects(networks: Sequence[Network]) -> tuple[dict[str, tuple[float, float]], float]:
    """Regress the logarithm of the errors on the settings, in percent of the errors.

    Returns:
        By setting how many fewer errors there are and the standard error; and what is left over.
    """
    rows = []
    for one in networks:
        log = math.log(one.relative)
        rows.append(described(one.settings) | {"log latency": log, "its square": log**2})
    design = np.array([[float(value) for value in row.values()] for row in rows])
    errors = np.array([-100 * math.log(100 - one.accuracies[-1]) for one in networks])
    found, *_ = np.linalg.lstsq(design, errors, rcond=None)
    left = errors - design @ found
    variance = left @ left / (len(rows) - design.shape[1])
    reach = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * variance)
    named = dict(zip(rows[0], zip(found.tolist(), reach.tolist(), strict=True), strict=True))
    return named, math.sqrt(variance)


def at_once(networks: Iterable[Network], hours: float) -> list[Network]:
    """Train one network after the other for the last rung's epochs; return those trained."""
    trained = []
    for one in networks:
        hours -= one.hours(RUNGS[-1])
        if hours < 0:
            break
        trained.append(one)
    return trained


def by_halving(
    networks: Iterable[Network], hours: float, targets: Sequence[float] = ()
) -> list[Network]:
    """Train as a search for a front does; return those that reached the last rung.

    Another network is asked for when the one before has been trained for the first rung.
    """
    rungs: list[dict[int, Point]] = [{} for _ in RUNGS]
    coming, tried = iter(networks), list[Network]()
    waiting = next(coming, None)

    def order(rung: Rung) -> list[int]:
        worse = dominated(rung)
        left = {number: point for number, point in rung.items() if number not in worse}
        if not targets:
            return best_first(left)
        return in_turns(guesses(rungs, left), targets)

    while True:
        if (chosen := promotion(rungs, KEEP, order, set(), last=waiting is None)) is not None:
            place, number = chosen
        elif waiting is not None:
            place, number = 0, len(tried)
            tried.append(waiting)
        else:
            break
        one = tried[number]
        hours -= one.hours(RUNGS[place])
        if hours < 0:
            break
        rungs[place][number] = Point(one.relative, one.accuracies[place], HELD_OUT)
        if place == 0:
            waiting = next(coming, None)
    return [tried[number] for number in rungs[-1]]


def guesses(rungs: Sequence[Rung], left: Rung) -> dict[int, Guess]:
    """Guess what networks have after the last rung's epochs; some are known to."""
    errors = guess(RUNGS, rungs, dict.fromkeys(left, RUNGS[-1]))
    found = {}
    for number, point in left.items():
        guessed, fewest = errors[number]
        known = rungs[-1][number].accuracy if number in rungs[-1] else None
        found[number] = Guess(
            point.latency, 100 - guessed, 100 - fewest, RUNGS[-1], known, known is not None
        )
    return found


def fastest(trained: Sequence[Network], target: float) -> float:
    """Tell the latency of the fastest that reaches a target; ResNet-8's where none does."""
    return min((one.relative for one in trained if one.accuracies[-1] >= target), default=1.0)


def best(trained: Sequence[Network], relative: float) -> float:
    """Tell the best accuracy within a latency; 10 %, which is guessing, where there is none."""
    return max((one.accuracies[-1] for one in trained if one.relative <= relative), default=10.0)


def main() -> None:
    """Print what matters; for each time what halving gains."""
    networks = read()
    found, left = effects(networks)
    print(f"fewer errors after {RUNGS[-1]} epochs, in percent ({left:.0f} % are left over)")
    for name, (effect, error) in found.items():
        print(f"{name} | {effect:+.0f} ± {error:.0f}")
    everything = sum(one.hours(RUNGS[-1]) for one in networks)
    print(
        f"{len(networks)} networks, {everything:.1f} hours for {RUNGS[-1]} epochs each; "
        f"{REPEATS} orders; by halving instead of at once, mean and standard error"
    )
    for targets in ((), *TARGETS):
        what = "percent faster for" if targets else "points more accurate, no targets: at most"
        print(f"{what}\nhours | networks | " + " | ".join(map(str, targets or LATENCIES)))
        for hours in HOURS:
            pairs = []
            for seed in range(REPEATS):
                order = random.Random(seed).sample(networks, len(networks))
                pairs.append((at_once(order, hours), by_halving(order, hours, targets)))
            print(f"{hours:g} | {compared(pairs, targets, () if targets else LATENCIES)}")


def compared(
    pairs: Sequence[tuple[Sequence[Network], Sequence[Network]]],
    targets: Sequence[float],
    latencies: Sequence[float],
) -> str:
    """Draw what the second of two searches gains, in a table's cells: mean and standard error.

    Args:
        pairs: The networks that each of the two has trained, by replay.
        targets: For each: how many percent faster its fastest network that reaches it is.
        latencies: For each: how many points more accurate its best network within it is.
    """
    counts = [statistics.fmean(len(one) for one in way) for way in zip(*pairs, strict=True)]
    gains = [
        [100 * math.log(fastest(first, one) / fastest(second, one)) for first, second in pairs]
        for one in targets
    ] + [[best(second, one) - best(first, one) for first, second in pairs] for one in latencies]
    cells = [
        f"{statistics.fmean(one):+.2f} ± {statistics.stdev(one) / math.sqrt(len(one)):.2f}"
        for one in gains
    ]
    return " | ".join([", ".join(f"{count:.0f}" for count in counts), *cells])


if __name__ == "__main__":
    main()

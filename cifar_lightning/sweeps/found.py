"""What a search for a front has found: latencies and accuracies, kept in its study."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps.ladder import Point
from cifar_lightning.sweeps.study import Study

LATENCY, OVERRIDES = "latency", "overrides"  # attributes of a trial
TRAINED, FINAL = "trained", "final"  # and of the study


@dataclass(frozen=True)
class Timed:
    """The latency of an untrained network.

    Attributes:
        relative: To the reference's, with the ends of its 95 % interval.
        mean_ms: On average.
        benchmark: In which it was measured.
        floor_ms: What a call takes by itself in the same variant; None where it was not measured.
    """

    relative: float
    low: float | None
    high: float | None
    mean_ms: float
    benchmark: str
    floor_ms: float | None = None


@dataclass(frozen=True)
class Trained:
    """A training run of one rung.

    Attributes:
        run: Its name.
        val_acc: In percent.
        val_images: How many it was found on.
        seconds: Of training.
    """

    run: str
    val_acc: float
    val_images: int
    seconds: float

    @classmethod
    def of(cls, run: Run) -> "Trained":
        assert run.val_acc is not None
        assert run.val_images is not None
        return cls(run.name, run.val_acc, run.val_images, run.train_seconds or 0.0)


@dataclass(frozen=True)
class Rungs:
    """What is known of each rung at one moment, by the trials' numbers.

    Attributes:
        trained: The training runs.
        points: Their latencies and accuracies.
        failed: Places of rungs and numbers of trials that can't be trained for them, with the
            seconds that trying took.
        quiet_ms: Latencies in milliseconds, as if all were measured when the machine was quietest:
            another process may have trained meanwhile, which relative latency hardly sees.
        floor_ms: What a call takes by itself then; None where it was not measured.
        finals: Validation accuracies by seed, by the trial and its epochs; one that can't be
            trained has minus infinity.
        final_runs: Their names.
    """

    trained: list[dict[int, Trained]]
    points: list[dict[int, Point]]
    failed: dict[tuple[int, int], float] = field(default_factory=dict)
    quiet_ms: dict[int, float] = field(default_factory=dict)
    floor_ms: float | None = None
    finals: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)
    final_runs: set[str] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        """How long all training runs took, in all processes together, and those that failed."""
        trained = (one.seconds for of_rung in self.trained for one in of_rung.values())
        return sum([*trained, *self.failed.values()])

    def too_slow(self, max_ms: float | None) -> set[int]:
        """Tell which networks take longer than they may."""
        if max_ms is None:
            return set()
        return {number for number, ms in self.quiet_ms.items() if ms > max_ms}

    @property
    def final_points(self) -> dict[int, Point]:
        """The networks that were trained to the end, by the mean over their seeds."""
        points = {}
        for (number, _), by_seed in sorted(self.finals.items()):  # of two lengths the longer one
            if math.isfinite(accuracy := statistics.fmean(by_seed.values())):
                first = self.points[0][number]
                points[number] = Point(first.latency, accuracy, first.images)
        return points


class Found:
    """Reads and writes what is known of each trial.

    Args:
        study: Where it is kept.
        rungs: The epochs of each.
    """

    def __init__(self, study: Study, rungs: Sequence[int]) -> None:
        self.study, self.rungs = study, rungs

    def note_latency(self, trial: Any, overrides: Sequence[str], timed: Timed) -> None:
        """Keep the latency of a trial that was measured."""
        trial.set_user_attr(OVERRIDES, [*overrides])
        trial.set_user_attr(LATENCY, asdict(timed))

    def note_trained(self, number: int, place: int, run: Run) -> None:
        """Keep a trial's training run for a rung, by the rung's place."""
        self._set(number, place, asdict(Trained.of(run)))

    def note_failed(self, number: int, place: int, reason: str, seconds: float = 0.0) -> None:
        """Keep that a trial can't be trained for a rung, and how long trying took."""
        self._set(number, place, {"failed": reason, "seconds": seconds})

    def note_final(self, number: int, epochs: int, seed: int, run: Run | None) -> None:
        """Keep a trial's final run; None if it can't be trained."""
        said = None if run is None else asdict(Trained.of(run))
        self.study.optuna.set_user_attr(f"{FINAL} {number} {epochs} {seed}", said)

    def _set(self, number: int, place: int, said: dict[str, Any]) -> None:
        # NOTE: not on the trial: Optuna lets no trial change that has ended.
        self.study.optuna.set_user_attr(f"{TRAINED} {number} {self.rungs[place]}", said)

    def latency(self, number: int) -> Timed:
        """Tell the latency of a trial that was measured."""
        return Timed(**self.study.trials[number].user_attrs[LATENCY])

    def overrides(self, number: int) -> list[str]:
        """Tell the overrides that a trial drew."""
        drawn: list[str] = self.study.trials[number].user_attrs[OVERRIDES]
        return drawn

    def latencies(self) -> dict[int, Timed]:
        """Tell the latencies of all trials that were measured, by their numbers."""
        return {
            trial.number: Timed(**trial.user_attrs[LATENCY])
            for trial in self.study.trials
            if LATENCY in trial.user_attrs
        }

    def read(self) -> Rungs:
        """Read what is known of each rung by now."""
        timed = self.latencies()
        by_benchmark: dict[str, list[float]] = defaultdict(list)
        for one in timed.values():
            by_benchmark[one.benchmark].append(one.mean_ms / one.relative)
        # A single network's figures err by a few percent.
        reference_ms = min(map(statistics.median, by_benchmark.values()), default=0.0)
        quiet_ms = {number: one.relative * reference_ms for number, one in timed.items()}
        floors_ms = [
            one.floor_ms * quiet_ms[number] / one.mean_ms
            for number, one in timed.items()
            if one.floor_ms is not None
        ]
        now = Rungs(
            [{} for _ in self.rungs],
            [{} for _ in self.rungs],
            quiet_ms=quiet_ms,
            floor_ms=min(floors_ms, default=None),
        )
        for key, said in self.study.optuna.user_attrs.items():
            kind, *numbers = key.split()
            if kind == FINAL:
                number, epochs, seed = map(int, numbers)
                by_seed = now.finals.setdefault((number, epochs), {})
                by_seed[seed] = -math.inf if said is None else said["val_acc"]
                now.final_runs.update([] if said is None else [said["run"]])
            elif kind == TRAINED:
                number, epochs = map(int, numbers)
                place = self.rungs.index(epochs)
                if "failed" in said:
                    now.failed[place, number] = said["seconds"]
                    continue
                run = now.trained[place][number] = Trained(**said)
                latency = timed[number].relative
                now.points[place][number] = Point(latency, run.val_acc, run.val_images)
        return now

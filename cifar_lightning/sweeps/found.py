"""What a search for a front has found: latencies and accuracies, kept in its study."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps.ladder import Point
from cifar_lightning.sweeps.study import Study

LATENCY, TRAINED, OVERRIDES = "latency", "trained", "overrides"  # attributes of a trial


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
        seconds: Of training.
    """

    run: str
    val_acc: float
    seconds: float

    @classmethod
    def of(cls, run: Run) -> "Trained":
        assert run.val_acc is not None
        return cls(run.name, run.val_acc, run.train_seconds or 0.0)


@dataclass(frozen=True)
class Rungs:
    """What is known of each rung at one moment, by the trials' numbers.

    Attributes:
        trained: The training runs.
        points: Their latencies and accuracies.
        failed: Places of rungs and numbers of trials that can't be trained for them.
    """

    trained: list[dict[int, Trained]]
    points: list[dict[int, Point]]
    failed: set[tuple[int, int]]

    @property
    def seconds(self) -> float:
        """How long all training runs took, in all processes together."""
        return sum(one.seconds for of_rung in self.trained for one in of_rung.values())


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

    def note_failed(self, number: int, place: int, reason: str) -> None:
        """Keep that a trial can't be trained for a rung."""
        self._set(number, place, {"failed": reason})

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

    def read(self) -> Rungs:
        """Read what is known of each rung by now."""
        now = Rungs([{} for _ in self.rungs], [{} for _ in self.rungs], set())
        trials = self.study.trials
        for key, said in self.study.optuna.user_attrs.items():
            kind, _, rest = key.partition(" ")
            if kind != TRAINED:
                continue
            number, epochs = map(int, rest.split())
            place = self.rungs.index(epochs)
            if "failed" in said:
                now.failed.add((place, number))
                continue
            one = now.trained[place][number] = Trained(
                said["run"], said["val_acc"], said["seconds"]
            )
            relative = trials[number].user_attrs[LATENCY]["relative"]
            now.points[place][number] = Point(relative, one.val_acc)
        return now

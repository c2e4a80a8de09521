"""Accuracies that were not evaluated where a latency was measured."""

from dataclasses import dataclass

from cifar_lightning.runs.run import Name, Versions


@dataclass(frozen=True)
class CarriedOver:
    """Where an accuracy was evaluated, if not on this device by these versions.

    Attributes:
        device: Its name for people.
        engines: Versions of what executed it.
        benchmark: Of the measurement that it was taken from; None if it is the run's own test after
            training.
    """

    device: str
    engines: Versions
    benchmark: Name | None = None

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.engines.items())
        source = f"benchmark {self.benchmark}" if self.benchmark else "test after training"
        return f"{source} on {self.device}, {versions}"

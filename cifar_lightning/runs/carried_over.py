"""Accuracies that were not evaluated where a latency was measured, or on a run's own data."""

from dataclasses import dataclass

from cifar_lightning.runs.run import Fingerprint, Name, Versions


@dataclass(frozen=True)
class CarriedOver:
    """Where an accuracy was evaluated, if not on the run's data, this device, by these versions.

    Attributes:
        device: Its name for people.
        engines: Versions of what executed it.
        benchmark: Of the measurement that it was taken from; None if it is the run's own test after
            training, or was evaluated here on other data.
        data: The fingerprint of those other data.
    """

    device: str
    engines: Versions
    benchmark: Name | None = None
    data: Fingerprint | None = None

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.engines.items())
        source = f"benchmark {self.benchmark}" if self.benchmark else "test after training"
        if self.data:
            source = f"other data than the run's ({self.data[:8]})"
        return f"{source} on {self.device}, {versions}"

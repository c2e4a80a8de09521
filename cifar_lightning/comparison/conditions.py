"""What rows must share to be ranked together."""

from dataclasses import dataclass
from typing import Self

from cifar_lightning.runs.interleaved import BenchmarkHead
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Run

TOYS = ("digits",)  # data that no answer is about


@dataclass(frozen=True, order=True)
class Conditions:
    """What has to be the same for two rows to be ranked together.

    Attributes:
        hardware: What the device is, more exactly than its name.
        torch: The version that executed it.
    """

    dataset: str
    fingerprint: str
    device: str
    clock: str
    protocol: str
    protocol_version: int
    hardware: str
    torch: str

    @classmethod
    def of(cls, run: Run, measurement: Measurement) -> Self:
        return cls(
            dataset=run.config["data"]["name"],
            fingerprint=run.data_fingerprint,
            device=measurement.device,
            clock=measurement.clock,
            protocol=measurement.protocol,
            protocol_version=measurement.protocol_version,
            hardware=measurement.hardware,
            torch=measurement.environment.versions["torch"],
        )

    def hold(self, benchmark: BenchmarkHead) -> bool:
        """Tell whether a benchmark was of this machine, torch and protocol."""
        there = benchmark.hardware, benchmark.clock, benchmark.environment.versions.get("torch")
        here = self.hardware, self.clock, self.torch
        protocol = benchmark.protocol, benchmark.protocol_version
        return there == here and protocol == (self.protocol, self.protocol_version)

    @property
    def name(self) -> str:
        return f"{self.device}{self._rest}"

    @property
    def _rest(self) -> str:
        return f" on {self.dataset}, {self.protocol} protocol"

    @property
    def slug(self) -> str:
        """Name its files, each condition another one."""
        version = f"{self.protocol_version} {self.clock}"
        text = f"{self.hardware} torch {self.torch}{self._rest} {version}"
        kept = "".join(c if c.isalnum() else "-" for c in text.lower())
        return f"{'-'.join(filter(None, kept.split('-')))}-{self.fingerprint[:8]}"

"""What a GPU did while it was measured on, and how it multiplies."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from cifar_lightning.runs.latency import Fraction
from cifar_lightning.system.environment import DeviceState

# Why a GPU's clock is below its highest, though nothing holds it back.
NO_THROTTLING = {
    "GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks", "DisplayClockSetting",
}  # fmt: skip
LOAD_KNOWN_ABOVE = 0.5  # of the time
SHARED_ABOVE = 0.01  # of a GPU's time


@dataclass(frozen=True)
class Fp32Precision:
    """How a GPU multiplies fp32 numbers: in fp32 (``ieee``), or rounded to TF32."""

    convolution: Literal["ieee", "tf32"]
    matmul: Literal["ieee", "tf32"]


@dataclass(frozen=True)
class GPUActivity:
    """What a GPU did in a benchmark's rounds, as far as its driver told; None on a CPU.

    Attributes:
        throttled: Fraction of the rounds in which heat or power held back its clock, of those in
            which somebody looked; None if it was not told at all.
        others: Fraction of its time that other processes used, where it is known.
        coverage: For which fraction of the time it is known.
        sm_mhz: Mean clock.
        temperature_c: Mean temperature.
        power_w: Mean power.
    """

    throttled: Fraction | None = None
    others: Fraction | None = None
    coverage: Fraction | None = None
    sm_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None

    @classmethod
    def of(cls, rounds: Sequence[Sequence[DeviceState]]) -> Self:
        """Sum up what was seen of a GPU in each round."""
        states = [state for seen in rounds for state in seen]
        told = [(one.get("others"), one.get("others_s", 0.0)) for one in states]
        known_s = sum(seconds for _, seconds in told)
        used_s = sum((others or 0.0) * seconds for others, seconds in told)
        all_s = sum(one.get("since_s", 0.0) for one in states)
        return cls(
            throttled=_mean(_throttled(seen) for seen in rounds),
            others=used_s / known_s if known_s else None,
            coverage=min(1.0, known_s / all_s) if all_s else 0.0,
            sm_mhz=_mean(one.get("sm_mhz") for one in states),
            temperature_c=_mean(one.get("temperature_c") for one in states),
            power_w=_mean(one.get("power_w") for one in states),
        )

    @property
    def marks(self) -> list[str]:
        """What to know before trusting latencies."""
        unknown = self.coverage is not None and self.coverage < LOAD_KNOWN_ABOVE
        marks = ["load unknown"] if unknown else []
        for what, fraction in (("shared", self.others), ("throttled", self.throttled)):
            if fraction is not None and fraction > SHARED_ABOVE:
                marks.append(f"{what} {100 * fraction:.0f} %")
        return marks

    def __str__(self) -> str:
        told = [
            f"{value:.0f} {unit}"
            for value, unit in (
                (self.sm_mhz, "MHz"), (self.temperature_c, "°C"), (self.power_w, "W"),
            )
            if value is not None
        ]  # fmt: skip
        if self.throttled is not None:
            told.append(f"throttled in {100 * self.throttled:.0f} % of the rounds")
        if self.others is None or self.coverage is None:
            told.append("use by other processes unknown")
        else:
            told.append(f"other processes used {100 * self.others:.0f} % of it")
            told.append(f"which is known for {100 * self.coverage:.0f} % of the time")
        return ", ".join(told)


def _throttled(seen: Sequence[DeviceState]) -> bool | None:
    """Tell whether heat or power held back the clock in a round; None if nobody could see."""
    told = [one.get("throttle_reasons") for one in seen]
    known = [reasons for reasons in told if reasons is not None]
    return any({*reasons} - NO_THROTTLING for reasons in known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    """Take the mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None

"""Where and how something was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cifar_lightning.runs.run import Versions
from cifar_lightning.system import environment


@dataclass(frozen=True)
class Environment:
    """Where and how something was measured.

    Attributes:
        flags: Every switch that was set.
        convolution_error: See `precision.convolution_error`.
        contradiction: In which precision it ran, where that is not its own.
        cuda: torch's version of it.
        cudnn: Its version.
        device: See `devices.device_key`.
    """

    versions: Versions
    machine: environment.Machine
    flags: Mapping[str, str | bool | int] = field(default_factory=dict)
    convolution_error: float | None = None
    contradiction: str | None = None
    cuda: str | None = None
    cudnn: int | None = None
    device: str | None = None

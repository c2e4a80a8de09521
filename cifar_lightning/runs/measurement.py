"""The record of one variant of one run, measured on one device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from msgspec import Meta

from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.latency import LatencyStats, Milliseconds
from cifar_lightning.runs.run import (
    ROUNDING,
    Count,
    Digest,
    Name,
    Percent,
    Record,
    Run,
    Seconds,
    Versions,
    left_out,
)
from cifar_lightning.system import environment
from cifar_lightning.system.environment import DeviceState
from cifar_lightning.system.files import write_atomically

LAUNCH_BOUND_ABOVE = 1.3  # eager over replayed
# How each part of `registry.PARTS` is made, as a version: results of two recipes are no one
# candidate. Raised when what a part does changes; 1 where it is not listed.
RECIPE_VERSIONS = {
    "int8": 2,  # since the first two convolutions stay in fp32
}


def recipe(variant: str) -> dict[str, int]:
    """Tell the versions of a variant's parts, in whatever order they are written."""
    parts = [part for part in variant.split("+") if part != "fp32"] or ["fp32"]
    return {part: RECIPE_VERSIONS.get(part, 1) for part in parts}


@dataclass(frozen=True)
class Load:
    """What other processes used of the device; None where it is unknown. See `contention.Load`."""

    mean: Annotated[float, Meta(ge=0)] | None = None
    peak: Annotated[float, Meta(ge=0)] | None = None


@dataclass(frozen=True)
class Environment:
    """Where and how something was measured.

    Attributes:
        flags: Every switch that was set.
        convolution_error: See `precision.convolution_error`.
        cuda: torch's version of it.
        cudnn: Its version.
        device: See `devices.device_key`.
    """

    versions: Versions
    machine: environment.Machine
    flags: Mapping[str, str | bool | int] = field(default_factory=dict)
    convolution_error: float | None = None
    cuda: str | None = None
    cudnn: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class Measurement(Record):
    """One variant of one run on one device.

    Attributes:
        reason: Why it is not ``ok``.
        device: The hardware's name for people.
        hardware: Its identity as part of a file name.
        test_acc: In percent, evaluated under this variant on the whole test split.
        size_bytes: Of the file that this variant ships.
        samples_ms: Every sample, in the order taken.
        weights: SHA-256 of the file of weights that was measured.
        recipe: Versions of the variant's parts; see `RECIPE_VERSIONS`.
        engines: Versions of what executed it.
        latency: None if it was not timed.
        preparation_s: What happens once: compiling, capturing, exporting, calibrating.
        notes: What else the variant has to say.
        state: Of the device ``before`` and ``after``; see `environment.DeviceState`.
        wall: On CUDA, the same calls by the wall clock.
        graph_ms: On CUDA, the mean of replaying the same call as a CUDA graph.
        confusion: Counts of test images, a row for each true class and a column for each predicted
            one.
    """

    run: Name
    variant: Annotated[str, Meta(pattern=r"^[a-z0-9_]+(\+[a-z0-9_]+)*\Z", max_length=120)]
    status: Literal["ok", "disturbed", "unsupported", "failed"]
    reason: str | None
    device: Annotated[str, Meta(min_length=1, max_length=250)]
    hardware: Annotated[str, Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*\Z", max_length=150)]
    threads: Annotated[int, Meta(ge=1, le=2**20)]
    clock: Literal["cuda_event", "perf_counter"]
    protocol: Annotated[str, Meta(pattern=r"^(full|quick)\Z")]
    protocol_version: Annotated[int, Meta(ge=1, le=2**20)]
    test_acc: Percent | None
    size_bytes: Count | None
    code: environment.Code
    environment: Environment
    samples_ms: list[Milliseconds] = field(repr=False)
    recipe: dict[str, int]
    engines: Versions
    weights: Digest | None = None
    latency: LatencyStats | None = None
    preparation_s: Seconds | None = None
    notes: Mapping[str, float | str | None] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    state: Mapping[Literal["before", "after"], DeviceState] = field(default_factory=dict)
    wall: LatencyStats | None = None
    graph_ms: Milliseconds | None = None
    confusion: list[list[Count]] | None = None

    FREE: ClassVar[frozenset[str]] = frozenset({"reason", "samples_ms", "confusion"})

    def check(self) -> None:
        if "torch" not in self.environment.versions:
            raise ValueError("environment.versions.torch: missing")
        if self.recipe.keys() != {*self.variant.split("+")}:
            raise ValueError(f"recipe: not of {self.variant}")
        if self.status in ("ok", "disturbed"):
            missing = [key for key in ("latency", "test_acc") if getattr(self, key) is None]
            if missing or not self.samples_ms:
                raise ValueError(f"{missing[0] if missing else 'samples_ms'}: missing")
        if self.latency is not None and not self.latency.mean_ms:
            raise ValueError("latency.mean_ms: 0")
        if self.confusion is not None:
            self._check_confusion(self.confusion)

    def _check_confusion(self, confusion: list[list[int]]) -> None:
        images = sum(map(sum, confusion))
        if any(len(row) != len(confusion) for row in confusion) or not 0 < images <= 2**53:
            raise ValueError("confusion: not a square of counts")
        right = 100 * sum(row[index] for index, row in enumerate(confusion)) / images
        if self.test_acc is None or abs(self.test_acc - right) > ROUNDING:
            raise ValueError(f"test_acc: {self.test_acc}, by the confusion matrix {right:g}")

    def check_place(self, path: Path, run: Run) -> Self:
        """Return it if it is what its file's name says, and was taken of this run.

        Raises:
            ValueError: If not.
        """
        if path.name != self.path(path.parent.parent).name:
            raise ValueError("not the measurement that its name says")
        if self.run != run.name:
            raise ValueError(f"of the run {self.run}")
        if self.weights != run.weights:
            raise ValueError("of other weights than the run's")
        if self.confusion is not None and len(self.confusion) != run.config["data"]["num_classes"]:
            raise ValueError(f"confusion: of {len(self.confusion)} classes")
        return self

    @classmethod
    def read_all(cls, folder: Path, run: Run) -> tuple[list[Self], list[str]]:
        """Read all of a run; what is damaged or another's is left out, with a line that says so."""
        found, damaged = [], []
        for path in sorted(RunFolder(folder).measurements.glob("*.json")):
            try:
                found.append(cls.read(path).check_place(path, run))
            except FileNotFoundError:
                continue  # another process has replaced or removed it
            except ValueError as error:
                damaged.append(left_out(path, error))
        return found, damaged

    @classmethod
    def exists(cls, folder: Path, variant: str, threads: int, protocol: str) -> bool:
        """Tell whether a run has it, on any hardware and by this or the full protocol.

        One that failed, or is of a part's earlier recipe, is none; parts may come in any order.
        """
        try:
            found, _ = cls.read_all(folder, Run.load(folder))
        except (OSError, ValueError):
            return False
        return any(
            one.threads == threads
            and one.protocol in (protocol, "full")
            and one.recipe == recipe(variant)
            and not one.failed
            for one in found
        )

    @property
    def making(self) -> str:
        """Tell the versions of its parts, and of what executed it beside torch."""
        engines = {name: one for name, one in self.engines.items() if name != "torch"}
        return ", ".join(f"{name} {version}" for name, version in (self.recipe | engines).items())

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def has_figures(self) -> bool:
        return self.status in ("ok", "disturbed")

    def path(self, folder: Path) -> Path:
        """Tell where its file is in its run's folder."""
        return RunFolder(folder).measurement(*self.configuration, self.protocol)

    @property
    def launch_bound(self) -> bool | None:
        """Whether the device mostly waits for kernels to be launched."""
        if self.graph_ms is None or self.latency is None:
            return None
        return self.latency.mean_ms > LAUNCH_BOUND_ABOVE * self.graph_ms

    @property
    def configuration(self) -> tuple[str, str, int]:
        """What was measured, whatever the protocol."""
        return self.variant, self.hardware, self.threads

    def save(self, folder: Path) -> Path:
        """Write it into its run's folder, in place of an earlier one of the same kind."""
        path = self.path(folder)
        write_atomically(path, self.to_json())
        return path

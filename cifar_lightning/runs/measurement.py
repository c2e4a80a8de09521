"""The record of one variant of one run, measured on one device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from msgspec import Meta

from cifar_lightning.config.protocols import BENCH, PROTOCOL_VERSION
from cifar_lightning.runs.candidate import delegation_marks, recipe
from cifar_lightning.runs.carried_over import CarriedOver
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.gpu import GPUActivity
from cifar_lightning.runs.latency import (
    LESS,
    Count,
    Ended,
    Fraction,
    LatencyStats,
    Launches,
    Milliseconds,
    Relative,
    Seconds,
)
from cifar_lightning.runs.run import (
    ROUNDING,
    Digest,
    Name,
    Percent,
    Record,
    Run,
    Versions,
    left_out,
)
from cifar_lightning.system import environment
from cifar_lightning.system.files import finished_files, write_atomically

# What every timed measurement has.
TIMED = ("latency", "relative", "rounds", "ended", "preempted")


@dataclass(frozen=True)
class Measurement(Record):
    """One variant of one run on one device.

    Attributes:
        reason: Why it is not ``ok``, or has no accuracy.
        device: The hardware's name for people.
        hardware: Its identity as part of a file name.
        test_acc: In percent, under this variant on the whole test split; None if it is not known.
        carried_over: Where it was evaluated; None where that was here.
        size_bytes: Of the files that this variant ships.
        files: SHA-256 of each file whose accuracy was evaluated, by its name; none where the
            weights are what is shipped.
        delegated: The fraction of operations that the engine's delegate takes, where it has one.
        weights: SHA-256 of the file of weights that was measured.
        candidate: What executes; see `benchmark.candidate_key`.
        benchmark: Names the record of the benchmark that timed it; None if it was not timed.
        recipe: Versions of the variant's parts; see `RECIPE_VERSIONS`.
        engines: Versions of what executed it.
        latency: None if it was not timed.
        relative: The latency over the reference's.
        floor_ms: How long a call takes by itself in this engine, with hardly any network.
        rounds: Number of the benchmark's rounds.
        ended: Why the benchmark stopped.
        converged: Whether its own interval became as narrow as the protocol asks; None if it was
            not timed.
        preempted: Fraction of the candidate's blocks in whose place something else ran.
        preparation_s: What happens once: compiling, capturing, exporting, calibrating.
        first_call_ms: Of the first call after that.
        peak_bytes: How far memory grew from before the network was built to its calls' peak.
        subnormals: Number of weights so small that some processors are slow with them.
        notes: What else the variant has to say.
        wall: On CUDA, the same calls by the wall clock.
        gpu: What the GPU did meanwhile.
        launches: On a GPU, what tells the device's work from the launching of it.
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
    protocol: Annotated[str, Meta(pattern=rf"^(full|quick|{BENCH})\Z")]
    protocol_version: Annotated[int, Meta(ge=1, le=2**20)]
    test_acc: Percent | None
    size_bytes: Count | None
    code: environment.Code
    environment: Environment
    recipe: dict[str, int]
    engines: Versions
    candidate: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    weights: Digest | None = None
    files: dict[Name, Digest] = field(default_factory=dict)
    delegated: Fraction | None = None
    benchmark: Name | None = None
    latency: LatencyStats | None = None
    relative: Relative | None = None
    floor_ms: Milliseconds | None = None
    rounds: Annotated[int, Meta(ge=1)] | None = None
    ended: Ended | None = None
    converged: bool | None = None
    preempted: Fraction | None = None
    preparation_s: Seconds | None = None
    first_call_ms: Milliseconds | None = None
    peak_bytes: Count | None = None
    subnormals: Count | None = None
    notes: Mapping[str, float | str | None] = field(default_factory=dict)
    wall: LatencyStats | None = None
    gpu: GPUActivity = field(default_factory=GPUActivity)
    launches: Launches = field(default_factory=Launches)
    confusion: list[list[Count]] | None = None
    carried_over: CarriedOver | None = None

    FREE: ClassVar[frozenset[str]] = frozenset({"reason", "confusion"})

    def check(self) -> None:
        if "torch" not in self.environment.versions and self.protocol != BENCH:
            raise ValueError("environment.versions.torch: missing")
        if self.recipe.keys() != {*self.variant.split("+")}:
            raise ValueError(f"recipe: not of {self.variant}")
        told = () if self.reason else ("test_acc",)
        named = () if self.protocol == BENCH else ("benchmark",)
        for key in (*told, *named, *TIMED) if self.has_figures else ():
            if getattr(self, key) is None:
                raise ValueError(f"{key}: missing")
        if self.carried_over is not None and self.test_acc is None:
            raise ValueError("carried_over: without an accuracy")
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
        for path in finished_files(RunFolder(folder).measurements, ".json"):
            try:
                found.append(cls.read(path).check_place(path, run))
            except FileNotFoundError:
                continue  # another process has replaced or removed it
            except ValueError as error:
                damaged.append(left_out(path, error))
        return found, damaged

    @classmethod
    def exists(
        cls, folder: Path, variant: str, threads: int, protocol: str, *, on_gpu: bool = False
    ) -> bool:
        """Tell whether a run has it, on any CPU or any GPU and by this or the full protocol.

        One that failed, was stopped by a signal, was a look, or is of an earlier recipe or
        protocol, is none;
        parts may come in any order.
        """
        try:
            found, _ = cls.read_all(folder, Run.load(folder))
        except (OSError, ValueError):
            return False
        asked = threads, recipe(variant), on_gpu
        alike = [o for o in found if (o.threads, o.recipe, o.clock == "cuda_event") == asked]
        return any(one.counts_for(protocol) for one in alike)

    def counts_for(self, protocol: str) -> bool:
        """Tell whether it need not be taken again for a protocol."""
        version, done = self.protocol_version == PROTOCOL_VERSION, self.ended not in LESS
        return version and done and not self.failed and self.protocol in (protocol, "full")

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def has_figures(self) -> bool:
        return self.status in ("ok", "disturbed")

    @property
    def can_be_ranked(self) -> bool:
        """Whether it has an accuracy, and a latency that others' can be compared with."""
        return self.has_figures and self.test_acc is not None and self.protocol != BENCH

    def path(self, folder: Path) -> Path:
        """Tell where its file is in its run's folder."""
        return RunFolder(folder).measurement(*self.configuration, self.protocol)

    @property
    def launch_bound(self) -> bool | None:
        """Whether the device mostly waits for kernels to be launched."""
        return None if self.latency is None else self.launches.bind(self.latency.mean_ms)

    @property
    def configuration(self) -> tuple[str, str, int]:
        """What was measured, whatever the protocol."""
        return self.variant, self.hardware, self.threads

    @property
    def marks(self) -> list[str]:
        """What to know before trusting its latency."""
        found = {
            "disturbed": self.status == "disturbed",
            "quick": self.protocol == "quick",
            "bench.py": self.protocol == BENCH,
            "not converged": self.converged is False,
            "few processes": self.ended == "few",
            "no int8 instructions": "no_int8_instructions" in self.notes,
            "accuracy not checked": self.has_figures and self.test_acc is None,
        }
        marks = [mark for mark, holds in found.items() if holds]
        return [
            *marks,
            *delegation_marks(self.delegated),
            *filter(None, [self.environment.contradiction]),
            *self.gpu.marks,
        ]

    def save(self, folder: Path) -> Path:
        """Write it into its run's folder, in place of an earlier one of the same kind."""
        path = self.path(folder)
        write_atomically(path, self.to_json())
        return path

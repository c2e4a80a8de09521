"""The record of one training run, and of the network that its weights hold."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import Meta

from cifar_lightning.config.recorded import Colours, Deviations, check_recorded
from cifar_lightning.config.rules import REINSTANTIATED_GROUPS
from cifar_lightning.config.schema import NAMING_GROUPS
from cifar_lightning.runs.data import DataSummary
from cifar_lightning.runs.folder import RUNS, RunFolder, run_folders
from cifar_lightning.runs.gpu import Fp32Precision
from cifar_lightning.runs.latency import Count, Seconds
from cifar_lightning.system import environment, untrusted
from cifar_lightning.system.files import write_atomically

MEGA = 1e6  # MB, M parameters and M MACs are decimal
ROUNDING = 0.001  # of an accuracy in percent
Percent = Annotated[float, Meta(ge=0, le=100)]
# What stands in names of files and in rows. `\Z`, as `$` allows a line's end behind it.
Name = Annotated[str, Meta(pattern=r"^\w[\w.+-]*\Z", max_length=250)]
Option = Annotated[str, Meta(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)*\Z", max_length=250)]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}\Z")]
Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT[\d:.+-]{8,40}\Z")]
Versions = dict[str, str]


@dataclass(frozen=True)
class Record:
    """What has a JSON form."""

    FREE: ClassVar[frozenset[str]] = frozenset()  # text for people, which nothing interprets
    MAX_BYTES: ClassVar[int] = untrusted.MAX_BYTES

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record.

        Raises:
            ValueError: If the file is not a record of this kind; the text says why, in one line.
            FileNotFoundError: If there is none.
        """
        return cls.decoded(untrusted.read(path, cls.MAX_BYTES))

    @classmethod
    def decoded(cls, content: bytes | str) -> Self:
        """Make the record of its JSON form; errors as `read`."""
        record = untrusted.decode(content, cls)
        untrusted.check_plain(
            {key: one for key, one in vars(record).items() if key not in cls.FREE}
        )
        try:
            record.check()
        except ValueError as error:
            raise untrusted.Unreadable(error) from error
        return record

    def check(self) -> None:
        """See that its fields go together.

        Raises:
            ValueError: If not.
        """

    def to_json(self) -> str:
        return untrusted.encode(self)


@dataclass(frozen=True)
class Run(Record):
    """One training: what was asked for, where it ran, and what came out.

    Attributes:
        name: Its identity, a function of the training configuration.
        choices: The option chosen in each configuration group.
        config: The resolved configuration.
        data_fingerprint: Of the images it was trained on.
        data: What else is known of them.
        val_acc: Best validation accuracy in percent.
        val_images: How many it was found on.
        test_acc: Test accuracy of that checkpoint in percent.
        train_seconds: Time in training and validation, over all continuations.
        classes: Their names, in the order of the network's outputs.
        weights: SHA-256 of the file of the best weights.
        fp32_precision: What was on while a GPU trained; None for other devices.
    """

    name: Name
    id: Label | None
    choices: dict[str, Option]
    config: dict[str, Any]
    status: Literal["running", "interrupted", "failed", "finished"]
    started: Moment
    data_fingerprint: Fingerprint
    code: environment.Code
    versions: Versions
    machine: environment.Machine
    params: Count
    macs: Count
    error: str | None = None
    val_acc: Percent | None = None
    val_images: Count | None = None
    test_acc: Percent | None = None
    train_seconds: Seconds | None = None
    classes: list[str] = field(default_factory=list)
    weights: Digest | None = None
    data: DataSummary | None = None
    fp32_precision: Fp32Precision | None = None

    FREE: ClassVar[frozenset[str]] = frozenset({"error", "classes"})

    def check(self) -> None:
        for group in NAMING_GROUPS:
            if group not in self.choices:
                raise ValueError(f"choices.{group}: missing")
        check_recorded(self.config)
        if len(self.classes) not in (0, count := self.config["data"]["num_classes"]):
            raise ValueError(f"classes: {len(self.classes)} of {count}")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the run of a folder; errors as `read`."""
        return cls.read(RunFolder(folder).record)

    def save(self, folder: Path) -> Self:
        write_atomically(RunFolder(folder).record, self.to_json())
        return self

    def class_names(self, count: int) -> list[str]:
        """Name the classes; by number where they are not recorded."""
        return self.classes or [str(number) for number in range(count)]

    @property
    def label(self) -> str:
        """The ID in the table: the user's, else the eight hex digits of the name."""
        return self.id or self.name.rpartition("-")[2]


@dataclass(frozen=True)
class Network(Record):
    """How to build and use a network: the metadata of a file of weights.

    Attributes:
        run: The name of the run that trained it.
        model: Its node of the configuration.
        classes: Their names, in the order of the outputs.
        mean: Of each colour, which inputs are normalised with.
        std: The same.
    """

    run: Name
    model: dict[str, Any]
    classes: list[str]
    mean: Colours
    std: Deviations

    KEY: ClassVar[str] = "network"  # in the file's metadata
    FREE: ClassVar[frozenset[str]] = frozenset({"classes"})

    @classmethod
    def of(cls, run: Run) -> Self:
        data = run.config["data"]
        classes = run.class_names(data["num_classes"])
        return cls(run.name, run.config["model"], classes, data["mean"], data["std"])

    @classmethod
    def from_weights(cls, content: bytes) -> Self:
        """Read it out of a file of weights; errors as `read`."""
        try:
            return cls.decoded(untrusted.metadata(content)[cls.KEY])
        except KeyError as error:
            raise ValueError("it does not say of which network") from error

    def check(self) -> None:
        untrusted.check_plain({"model": self.model}, REINSTANTIATED_GROUPS)
        if len(self.classes) != (count := self.model.get("num_classes", len(self.classes))):
            raise ValueError(f"classes: {len(self.classes)} of {count}")

    @property
    def description(self) -> dict[str, str]:
        """What a file that another engine executes says of itself."""
        told = {"classes": self.classes, "mean": self.mean, "std": self.std}
        return {
            "run": self.run,
            "input": "float32, NCHW, RGB from 0 to 1, minus mean, divided by std",
            **{key: json.dumps(value, ensure_ascii=False) for key, value in told.items()},
        }

    @property
    def metadata(self) -> dict[str, str]:
        """What to write into the file of weights."""
        return {"format": "pt", self.KEY: self.to_json()}


def left_out(path: Path, reason: object) -> str:
    """Name a file that can't be used."""
    return f"{path} is damaged and left out ({reason})"


def listed_run(folder: Path) -> Run | str | None:
    """Read the run of a folder of the outputs, or why it is left out; None if there is none."""
    record = RunFolder(folder).record
    try:
        run = Run.read(record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        return left_out(record, error)
    copy = f"{folder} is left out: it holds a copy of the run {run.name}"
    return run if run.name == folder.name else copy


def runs_of(outputs: Path) -> Iterator[tuple[Path, Run | str]]:
    """Yield each run's folder of the outputs with its record, or with why it is left out."""
    for name in run_folders(outputs):
        folder = outputs / RUNS / name
        if (found := listed_run(folder)) is not None:
            yield folder, found

"""Runs and measurements, their JSON files, and the results table that is derived from them.

The JSON files are the truth; the table is a view, rebuilt whole each time, so a lost or damaged
table costs nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import logging
import operator
import os
import statistics
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import Meta

from cifar_lightning import escaping, gate, provenance
from cifar_lightning.config import (
    NAMING_GROUPS,
    REBUILT,
    Colours,
    Deviations,
    check_recorded,
    group_name,
)
from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.files import (
    check_lock,
    check_replaceable,
    locked,
    remove_unfinished,
    write_atomically,
)
from cifar_lightning.latency_stats import LatencyStats, Milliseconds
from cifar_lightning.recipes import recipe

log = logging.getLogger(__name__)

RUNS = "runs"  # the folder of the runs in the outputs
MEGA = 1e6  # MB, M parameters and M MACs are decimal
LAUNCH_BOUND_ABOVE = 1.3  # eager over replayed
ROUNDING = 0.001  # of an accuracy in percent


Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0)]
# What stands in names of files and in rows. `\Z`, as `$` allows a line's end behind it.
Name = Annotated[str, Meta(pattern=r"^\w[\w.+-]*\Z", max_length=250)]
Option = Annotated[str, Meta(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)*\Z", max_length=250)]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT[\d:.+-]{8,40}\Z")]
Versions = dict[str, str]


@dataclass(frozen=True)
class _Record:
    """What has a JSON form."""

    FILE: ClassVar[str]
    FREE: ClassVar[frozenset[str]] = frozenset()  # text for people, which nothing interprets

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record.

        Raises:
            ValueError: If the file is not a record of this kind; the text says why, in one line.
            FileNotFoundError: If there is none.
        """
        return cls.decoded(gate.read(path))

    @classmethod
    def decoded(cls, content: bytes | str) -> Self:
        """Make the record of its JSON form; errors as `read`."""
        record = gate.decode(content, cls)
        gate.check_plain({key: one for key, one in vars(record).items() if key not in cls.FREE})
        try:
            record.check()
        except ValueError as error:
            raise gate.Unreadable(error) from error
        return record

    def check(self) -> None:
        """See that its fields go together.

        Raises:
            ValueError: If not.
        """

    def to_json(self) -> str:
        return gate.encode(self)


@dataclass(frozen=True)
class Run(_Record):
    """One training: what was asked for, where it ran, and what came out.

    Attributes:
        name: Its identity, a function of the training configuration.
        choices: The option chosen in each configuration group.
        config: The resolved configuration.
        data_fingerprint: Of the images it was trained on.
        val_acc: Best validation accuracy in percent.
        test_acc: Test accuracy of that checkpoint in percent.
        train_seconds: Time in training and validation, over all continuations.
        classes: Their names, in the order of the network's outputs.
        weights: SHA-256 of the file of the best weights.
    """

    name: Name
    id: Label | None
    choices: dict[str, Option]
    config: dict[str, Any]
    status: Literal["running", "interrupted", "failed", "finished"]
    started: Moment
    data_fingerprint: Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}\Z")]
    code: provenance.Code
    versions: Versions
    machine: provenance.Machine
    params: Count
    macs: Count
    error: str | None = None
    val_acc: Percent | None = None
    test_acc: Percent | None = None
    train_seconds: Seconds | None = None
    classes: list[str] = field(default_factory=list)
    weights: Digest | None = None

    FILE: ClassVar[str] = "run.json"
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
        return cls.read(folder / cls.FILE)

    def save(self, folder: Path) -> Self:
        write_atomically(folder / self.FILE, self.to_json())
        return self

    def class_names(self, count: int) -> list[str]:
        """Name the classes; by number where they are not recorded."""
        return self.classes or [str(number) for number in range(count)]

    @property
    def label(self) -> str:
        """The ID in the table: the user's, else the eight hex digits of the name."""
        return self.id or self.name.rpartition("-")[2]


@dataclass(frozen=True)
class Load:
    """What other processes used of the device; None where it is unknown. See `company.Load`."""

    mean: Annotated[float, Meta(ge=0)] | None = None
    peak: Annotated[float, Meta(ge=0)] | None = None


@dataclass(frozen=True)
class Repeat:
    """The figures of one of several fresh processes."""

    mean_ms: Milliseconds
    p50_ms: Milliseconds
    p95_ms: Milliseconds | None = None


@dataclass(frozen=True)
class Environment:
    """Where and how something was measured.

    Attributes:
        flags: Every switch that was set.
        convolution_error: See `variants.convolution_error`.
        cuda: torch's version of it.
        cudnn: Its version.
        device: See `company.device_key`.
    """

    versions: Versions
    machine: provenance.Machine
    flags: dict[str, Any] = field(default_factory=dict)
    convolution_error: float | None = None
    cuda: str | None = None
    cudnn: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class Measurement(_Record):
    """One variant of one run on one device.

    Attributes:
        reason: Why it is not ``ok``.
        device: The hardware's name for people.
        hardware: Its identity as part of a file name.
        test_acc: In percent, evaluated under this variant on the whole test split.
        size_bytes: Of the file that this variant ships.
        samples_ms: Every sample, in the order taken.
        weights: SHA-256 of the file of weights that was measured.
        recipe: Versions of the variant's parts; see `recipes`.
        engines: Versions of what executed it.
        latency: None if it was not timed.
        preparation_s: What happens once: compiling, capturing, exporting, calibrating.
        notes: What else the variant has to say.
        state: Of the device ``before`` and ``after``; see `company.device_state`.
        wall: On CUDA, the same calls by the wall clock.
        graph_ms: On CUDA, the mean of replaying the same call as a CUDA graph.
        repeats: Figures of several fresh processes, of which this is the median one.
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
    code: provenance.Code
    environment: Environment
    samples_ms: list[Milliseconds] = field(repr=False)
    recipe: dict[str, int]
    engines: Versions
    weights: Digest | None = None
    latency: LatencyStats | None = None
    preparation_s: Seconds | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    load: Load = field(default_factory=Load)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    wall: LatencyStats | None = None
    graph_ms: Milliseconds | None = None
    repeats: list[Repeat] = field(default_factory=list)
    confusion: list[list[Count]] | None = None

    FOLDER: ClassVar[str] = "measurements"
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
        if path.name != Path(self.file_name(*self.configuration, self.protocol)).name:
            raise ValueError("not the measurement that its name says")
        if self.run != run.name:
            raise ValueError(f"of the run {self.run}")
        if self.weights != run.weights:
            raise ValueError("of other weights than the run's")
        if self.confusion is not None and len(self.confusion) != run.config["data"]["num_classes"]:
            raise ValueError(f"confusion: of {len(self.confusion)} classes")
        return self

    @classmethod
    def file_name(cls, variant: str, hardware: str, threads: int, protocol: str) -> str:
        """Name a measurement's file in its run's folder."""
        return f"{cls.FOLDER}/{variant}@{hardware}-t{threads}-{protocol}.json"

    @classmethod
    def read_all(cls, folder: Path, run: Run) -> tuple[list[Self], list[str]]:
        """Read all of a run; what is damaged or another's is left out, with a line that says so."""
        found, damaged = [], []
        for path in sorted((folder / cls.FOLDER).glob("*.json")):
            try:
                found.append(cls.read(path).check_place(path, run))
            except FileNotFoundError:
                continue  # another process has replaced or removed it
            except ValueError as error:
                damaged.append(_left_out(path, error))
        return found, damaged

    @classmethod
    def exists(cls, folder: Path, variant: str, threads: int, protocol: str) -> bool:
        """Tell whether a run has it, on any hardware and by this or the full protocol.

        One that failed, or is of a part's earlier recipe, is none.
        """
        try:
            found, _ = cls.read_all(folder, Run.load(folder))
        except (OSError, ValueError):
            return False
        return any(
            (one.variant, one.threads) == (variant, threads)
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

    @property
    def name(self) -> str:
        """Its file's, in its run's folder."""
        return self.file_name(*self.configuration, self.protocol)

    @property
    def launch_bound(self) -> bool | None:
        """Whether the device mostly waits for kernels to be launched."""
        if self.graph_ms is None or self.latency is None:
            return None
        return self.latency.mean_ms > LAUNCH_BOUND_ABOVE * self.graph_ms

    @property
    def spread(self) -> float | None:
        """Largest minus smallest p95 of the fresh processes, over their median, in percent."""
        p95 = sorted(repeat.p95_ms for repeat in self.repeats if repeat.p95_ms is not None)
        if len(p95) < 2 or not p95[len(p95) // 2]:
            return None
        return 100 * (p95[-1] - p95[0]) / p95[len(p95) // 2]

    @property
    def configuration(self) -> tuple[str, str, int]:
        """What was measured, whatever the protocol."""
        return self.variant, self.hardware, self.threads

    def save(self, run_folder: Path) -> Path:
        """Write it into its run's folder, in place of an earlier one of the same kind."""
        path = run_folder / self.name
        write_atomically(path, self.to_json())
        return path


@dataclass(frozen=True)
class Network(_Record):
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
            return cls.decoded(gate.metadata(content)[cls.KEY])
        except KeyError as error:
            raise ValueError("it does not say of which network") from error

    def check(self) -> None:
        gate.check_plain({"model": self.model}, REBUILT)

    @property
    def metadata(self) -> dict[str, str]:
        """What to write into the file of weights."""
        return {"format": "pt", self.KEY: self.to_json()}


# --- The table ------------------------------------------------------------------------------

CSV_COLUMNS = (
    "id",
    "run",
    "group",
    "model",
    "optim",
    "scheduler",
    "epochs",
    "seed",
    "teacher",
    "dataset",
    "variant",
    "val_acc",
    "test_acc",
    "lat_mean_ms",
    "lat_p50_ms",
    "lat_p95_ms",
    "lat_std_ms",
    "lat_n",
    "lat_ci_ms",
    "lat_converged",
    "lat_processes",
    "lat_spread_pct",
    "launch_bound",
    "speedup",
    "prep_s",
    "size_mb",
    "params",
    "macs",
    "device",
    "hardware",
    "threads",
    "clock",
    "protocol",
    "torch",
    "recipe",
    "status",
    "error",
    "started",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """A run with what the table shows of it.

    Attributes:
        lines: Rows of the table, each with the measurement it was made of.
        damaged: One line for each file that could not be read and is left out.
    """

    folder: Path
    run: Run | None
    lines: list[tuple[Row, Measurement | None]]
    damaged: list[str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a run's files; what is damaged or another run's is left out.

        A run that is still under way gives no rows, and of two protocols on the same hardware only
        ``full`` is shown.
        """
        try:
            run = Run.load(folder)
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder, None, [], [])
        except ValueError as error:
            return cls(folder, None, [], [_left_out(folder / Run.FILE, error)])
        measurements, damaged = Measurement.read_all(folder, run)
        return cls(folder, run, _lines(run, measurements), damaged)

    @classmethod
    def read_all(cls, outputs: Path) -> list[Self]:
        """Read every run below an outputs folder; what is damaged or a copy is left out."""
        found = []
        for folder in sorted((outputs / RUNS).iterdir()):
            one = cls.read(folder)
            if one.run is not None and one.run.name != folder.name:
                one = cls(folder, None, [], [_copied(folder, one.run)])
            found.append(one)
        return found


def _left_out(path: Path, reason: object) -> str:
    return f"{path} is damaged and left out ({reason})"


def _copied(folder: Path, run: Run) -> str:
    return f"{folder} is left out: it holds a copy of the run {run.name}"


def rows_of(folder: Path) -> list[Row]:
    """Make the table's rows of one run: one a measurement, and one if it ended without any."""
    return _warned([Recorded.read(folder)])


def _warned(recorded: Iterable[Recorded]) -> list[Row]:
    """Take the rows, and say what is left out."""
    rows = []
    for one in recorded:
        for line in one.damaged:
            log.warning("%s", line)
        rows += [row for row, _ in one.lines]
    return rows


def _lines(run: Run, measurements: list[Measurement]) -> list[tuple[Row, Measurement | None]]:
    fully = [(m.configuration, m.recipe) for m in measurements if m.protocol == "full"]
    shown = [
        m for m in measurements if m.protocol == "full" or (m.configuration, m.recipe) not in fully
    ]
    if run.status in ("running", "interrupted"):
        return []
    if not shown or run.status == "failed":
        return [(_row(run, None), None)]
    rows = [_row(run, measurement) for measurement in shown]
    _add_speedups(rows)
    return list(zip(rows, shown, strict=True))


def _add_speedups(rows: list[Row]) -> None:
    """Divide fp32's mean latency by each row's, on the same device with the same protocol.

    Disturbed measurements have no say and no share in it.
    """
    like = operator.itemgetter("device", "hardware", "threads", "protocol", "torch")
    good = [row for row in rows if row["status"] == "ok"]
    baselines = {like(row): row["lat_mean_ms"] for row in good if row["variant"] == "fp32"}
    for row in good:
        if row["lat_mean_ms"] and baselines.get(like(row)):
            row["speedup"] = baselines[like(row)] / row["lat_mean_ms"]


def find_run(outputs: Path, query: str, key: str = "run") -> Path:
    """Find the folder of one finished run.

    Args:
        outputs: Where to look.
        query: An ID, the beginning of a run's name, or a folder.
        key: What the query was given for, to name it in errors.

    Raises:
        UserError: If there is none, more than one, or it is not finished.
    """
    if os.path.isfile(Path(query) / Run.FILE):  # noqa: PTH113  # also of what can't be a path
        folder, run = Path(query), load_run(Path(query))
    else:
        runs = dict(_whole_runs(outputs))
        found = [folder for folder, run in runs.items() if query in (run.label, run.name)]
        found = found or [f for f, run in runs.items() if query and run.name.startswith(query)]
        if not found:
            names = {name for run in runs.values() for name in (run.label, run.name)}
            raise unknown_name(f"{key}={query}", f"run in {outputs}", query, names)
        if len(found) > 1:
            names = {runs[folder].name for folder in found}
            raise bad_value(key, query, f"one of {', '.join(sorted(names))}: it means them all")
        folder, run = found[0], runs[found[0]]
    if run.status != "finished":
        raise UserError(f"{key}={query}: {run.name} is {run.status}, needed is a finished run")
    return folder


def _whole_runs(outputs: Path) -> Iterator[tuple[Path, Run]]:
    folders = sorted((outputs / RUNS).iterdir()) if (outputs / RUNS).is_dir() else []
    for folder in folders:
        try:
            run = Run.load(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            log.warning("%s", _left_out(folder / Run.FILE, error))
            continue
        if run.name == folder.name:
            yield folder, run
        else:
            log.warning("%s", _copied(folder, run))


def load_run(folder: Path) -> Run:
    """Read the run of a folder that the user, or a record, has named.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return Run.load(folder)
    except FileNotFoundError as error:
        raise UserError(f"{folder / Run.FILE}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / Run.FILE}: damaged ({error})") from error


def _row(run: Run, measurement: Measurement | None) -> Row:
    row: Row = dict.fromkeys(CSV_COLUMNS)
    row |= {key: run.choices.get(key) for key in ("model", "optim", "scheduler")}
    row |= {
        "id": run.label,
        "run": run.name,
        "group": group_name(run.config, run.choices),
        "epochs": run.config["epochs"],
        "seed": run.config["seed"],
        "teacher": (run.config.get("distill") or {}).get("teacher"),
        "dataset": run.config["data"]["name"],
        "val_acc": run.val_acc,
        "test_acc": run.test_acc,
        "params": run.params,
        "macs": run.macs,
        "status": run.status,
        "error": run.error,
        "started": run.started,
    }
    if measurement is not None:
        latency = measurement.latency
        if latency is not None:
            shown = ("mean_ms", "p50_ms", "p95_ms", "std_ms", "n", "converged")
            row |= {f"lat_{key}": getattr(latency, key) for key in shown}
            row["lat_ci_ms"] = latency.mean_ci_ms
        row |= {
            "lat_processes": len(measurement.repeats) or None,
            "lat_spread_pct": measurement.spread,
            "launch_bound": measurement.launch_bound,
            "prep_s": measurement.preparation_s,
        }
        row |= {
            "variant": measurement.variant,
            "test_acc": measurement.test_acc,
            "size_mb": measurement.size_bytes and measurement.size_bytes / MEGA,
            "device": measurement.device,
            "hardware": measurement.hardware,
            "recipe": measurement.making,
            "threads": measurement.threads,
            "clock": measurement.clock,
            "protocol": measurement.protocol,
            "torch": measurement.environment.versions["torch"],
            "status": measurement.status,
            "error": measurement.reason,
        }
    return row


def write_table(outputs: Path) -> list[Row]:
    """Rebuild ``results.csv`` and ``results.md`` from every run under ``outputs``.

    Listing, building and replacing happen under one file lock, so of several writers the last one
    has seen what all the others wrote. A table that somebody changed by hand is kept beside the
    new one.

    Returns:
        The rows, runs in the order in which they were started.
    """
    with locked(outputs / TABLE_LOCK, "waiting for another process that writes the table"):
        remove_unfinished(outputs)
        rows = _warned(Recorded.read_all(outputs))
        rows.sort(key=lambda row: (row["started"], row["run"], str(row["variant"])))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: csv_value(value) for key, value in row.items()} for row in rows)
        _replace_views(outputs, {TABLE_CSV: text.getvalue(), TABLE_MD: markdown(rows)})
    return rows


TABLE_CSV, TABLE_MD = "results.csv", "results.md"
TABLE_LOCK = ".results.lock"
WRITTEN = ".results.sha256"  # of the tables written last; others were changed by hand


def check_table(outputs: Path) -> None:
    """See that this user can write the table in the end.

    Raises:
        UserError: If not.
    """
    check_lock(outputs / TABLE_LOCK)
    for name in (TABLE_CSV, TABLE_MD, WRITTEN):
        check_replaceable(outputs / name)


def _replace_views(outputs: Path, views: Mapping[str, str]) -> None:
    digests = {name: _sha256(text.encode()) for name, text in views.items()}
    written = outputs / WRITTEN
    ours = set(written.read_text().split()) if written.is_file() else set()
    for name, digest in digests.items():
        path = outputs / name
        if path.is_file() and _sha256(path.read_bytes()) not in {*ours, digest}:
            kept = _free_name(path)
            path.rename(kept)
            log.warning("%s was changed by hand; kept as %s", path, kept.name)
    # Old and new ones count until both views are in place: a kill in between is no change by hand.
    write_atomically(written, "\n".join(sorted(ours | set(digests.values()))) + "\n")
    for name, text in views.items():
        write_atomically(outputs / name, text)
    write_atomically(written, "\n".join(sorted(digests.values())) + "\n")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.stem}.kept-{n}{path.suffix}") for n in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())


def csv_value(value: object) -> object:
    """Make a cell of a CSV file: floats rounded, texts escaped."""
    return round(value, 6) if isinstance(value, float) else escaping.csv_cell(value)


def markdown(rows: list[Row]) -> str:
    """Draw the table for people. What is not there is a dash."""
    header = (
        "ID",
        "Variant",
        "Acc. (%)",
        "Lat. mean (ms)",
        "Lat. p95 (ms)",
        "Size (MB)",
        "Params (M)",
        "MACs (M)",
        "Device",
    )
    lines = [header] + [_cells(row) for row in rows]
    return draw_table(lines, range(2, 8))


def group_means(rows: list[Row]) -> str:
    """Draw mean ± standard deviation over the runs that differ only in the seed.

    Returns:
        The table, a line for each of those groups on each device; empty if there is no group. A
        group has no latency where one of its measurements was disturbed.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["test_acc"] is not None:
            like = operator.itemgetter(
                "group", "variant", "recipe", "device", "hardware", "threads", "protocol", "torch"
            )(row)
            groups.setdefault(like, []).append(row)
    lines: list[tuple[str, ...]] = [
        ("Group", "Variant", "Seeds", "Acc. (%)", "Lat. mean (ms)", "Lat. p95 (ms)")
    ]
    for (group, variant, *_), alike in groups.items():
        if len(alike) > 1:
            accuracy = _mean_and_deviation([row["test_acc"] for row in alike], 2)
            latencies = [
                _mean_and_deviation(
                    [row[key] if row["status"] != "disturbed" else None for row in alike], 3
                )
                for key in ("lat_mean_ms", "lat_p95_ms")
            ]
            lines.append((group, variant or "-", str(len(alike)), accuracy, *latencies))
    return draw_table(lines, range(2, 6)) if len(lines) > 1 else ""


def _mean_and_deviation(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{statistics.fmean(known):.{digits}f} ± {statistics.stdev(known):.{digits}f}"


def draw_table(lines: Sequence[tuple[str, ...]], numeric: Container[int]) -> str:
    """Draw a Markdown table.

    Args:
        lines: The header, then the rows; what Markdown would interpret in them is escaped.
        numeric: Columns of numbers, which stand to the right.
    """
    lines = [tuple(map(escaping.markdown_cell, line)) for line in lines]
    header = lines[0]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = [
        "-" * (width - 1) + ":" if column in numeric else "-" * width
        for column, width in enumerate(widths)
    ]
    drawn = [
        "| "
        + " | ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (header, tuple(rule), *lines[1:])
    ]
    return "\n".join(drawn) + "\n"


def _taught(row: Mapping[str, Any]) -> str:
    """Name a row, and its teacher if it had one."""
    teacher = row["teacher"]
    return f"{row['id']} (taught by {teacher.rpartition('-')[2]})" if teacher else str(row["id"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def millions(value: int | None) -> float | None:
        return None if value is None else value / MEGA

    device = row["device"] or "-"
    if row["device"] and row["clock"] == "perf_counter":
        device += f", {row['threads']} thread" + ("s" if row["threads"] != 1 else "")
    if row["protocol"] == "quick":
        device += " (quick)"
    if row["lat_converged"] is False:
        device += " (not converged)"
    variant = row["variant"] or "-"
    if row["status"] not in ("ok", "finished"):
        variant += f" ({row['status']})"
    return (
        _taught(row),
        variant,
        number(row["test_acc"], 2),
        number(row["lat_mean_ms"], 3),
        number(row["lat_p95_ms"], 3),
        number(row["size_mb"], 2),
        number(millions(row["params"]), 2),
        number(millions(row["macs"]), 2),
        device,
    )

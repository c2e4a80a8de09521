"""Runs and measurements, their JSON files, and the results table that is derived from them.

The JSON files are the truth; the table is a view, rebuilt whole each time, so a lost or damaged
table costs nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import io
import itertools
import json
import logging
import operator
import statistics
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from cifar_lightning import escaping
from cifar_lightning.config import group_name
from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.files import (
    check_lock,
    check_replaceable,
    locked,
    remove_unfinished,
    write_atomically,
)

log = logging.getLogger(__name__)

RUNS = "runs"  # the folder of the runs in the outputs
MEGA = 1e6  # MB, M parameters and M MACs are decimal
LAUNCH_BOUND_ABOVE = 1.3  # eager over replayed


@dataclass(frozen=True)
class _Record:
    """What has a JSON form."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record.

        Raises:
            ValueError: If the file is not a record of this kind.
            FileNotFoundError: If there is none.
        """
        content = json.loads(path.read_text())
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path}: not a {cls.__name__.lower()} ({error})") from error

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Run(_Record):
    """One training: what was asked for, where it ran, and what came out.

    Attributes:
        name: Its identity, a function of the training configuration.
        choices: The option chosen in each configuration group.
        config: The resolved configuration.
        status: ``running``, ``interrupted``, ``failed`` or ``finished``.
        data_fingerprint: Of the images it was trained on.
        code: Git commit and whether the tree had changes.
        val_acc: Best validation accuracy in percent.
        test_acc: Test accuracy of that checkpoint in percent.
        train_seconds: Time in training and validation, over all continuations.
        classes: Their names, in the order of the network's outputs.
    """

    name: str
    id: str | None
    choices: dict[str, str]
    config: dict[str, Any]
    status: str
    started: str
    data_fingerprint: str
    code: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    params: int
    macs: int
    error: str | None = None
    val_acc: float | None = None
    test_acc: float | None = None
    train_seconds: float | None = None
    classes: list[str] = field(default_factory=list)

    FILE: ClassVar[str] = "run.json"

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the run of a folder; errors as `read`."""
        return cls.read(folder / cls.FILE)

    def save(self, folder: Path) -> Self:
        write_atomically(folder / self.FILE, self.to_json())
        return self

    def class_names(self, count: int) -> list[str]:
        """Name the classes; by number where an earlier version did not record them."""
        return self.classes or [str(number) for number in range(count)]

    @property
    def label(self) -> str:
        """The ID in the table: the user's, else the eight hex digits of the name."""
        return self.id or self.name.rpartition("-")[2]


@dataclass(frozen=True)
class Measurement(_Record):
    """One variant of one run on one device.

    Attributes:
        status: ``ok``, ``disturbed``, ``unsupported`` or ``failed``.
        reason: Why it is not ``ok``.
        device: The hardware's name for people.
        hardware: The same as part of a file name.
        clock: ``cuda_event`` or ``perf_counter``.
        protocol: ``full`` or ``quick``.
        test_acc: In percent, evaluated under this variant on the whole test split.
        confusion: Counts of test images, a row for each true class and a column for each predicted
            one.
        latency: Fields of `latency.LatencyStats`.
        size_bytes: Of the file that this variant ships.
        environment: Versions, machine and every flag that was set.
        samples_ms: Every sample, in the order taken.
        preparation_s: What happens once: compiling, capturing, exporting, calibrating.
        notes: What else the variant has to say.
        load: ``mean`` and ``peak`` of what other processes used, None if unknown; see
            `company.Load`.
        state: Of the device ``before`` and ``after``; see `company.device_state`.
        wall: On CUDA, `latency.LatencyStats` of the same calls by the wall clock.
        graph_ms: On CUDA, the mean of replaying the same call as a CUDA graph.
        repeats: ``mean_ms``, ``p50_ms``, ``p95_ms`` of each of several fresh processes.
    """

    run: str
    variant: str
    status: str
    reason: str | None
    device: str
    hardware: str
    threads: int
    clock: str
    protocol: str
    protocol_version: int
    test_acc: float | None
    latency: dict[str, Any]
    size_bytes: int | None
    code: dict[str, Any]
    environment: dict[str, Any]
    samples_ms: list[float] = field(repr=False)
    preparation_s: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    load: dict[str, float | None] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    wall: dict[str, Any] | None = None
    graph_ms: float | None = None
    repeats: list[dict[str, float | None]] = field(default_factory=list)
    confusion: list[list[int]] | None = None

    FOLDER: ClassVar[str] = "measurements"

    @classmethod
    def file_name(cls, variant: str, hardware: str, threads: int, protocol: str) -> str:
        """Name a measurement's file in its run's folder."""
        return f"{cls.FOLDER}/{variant}@{hardware}-t{threads}-{protocol}.json"

    @classmethod
    def exists(cls, folder: Path, variant: str, threads: int, protocol: str) -> bool:
        """Tell whether a run has it, on any hardware and by this or the full protocol."""
        return any(
            next(folder.glob(cls.file_name(glob.escape(variant), "*", threads, name)), None)
            for name in {protocol, "full"}
        )

    def checked(self) -> Self:
        """Return it if what a ranked measurement needs is there.

        Raises:
            ValueError: If not.
        """
        if self.status == "ok" and not isinstance(self.latency.get("mean_ms"), int | float):
            raise ValueError("no latency.mean_ms")
        return self

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def launch_bound(self) -> bool | None:
        """Whether the device mostly waits for kernels to be launched."""
        if self.graph_ms is None:
            return None
        return bool(self.latency["mean_ms"] > LAUNCH_BOUND_ABOVE * self.graph_ms)

    @property
    def spread(self) -> float | None:
        """Largest minus smallest p95 of the fresh processes, over their median, in percent."""
        p95 = sorted(repeat["p95_ms"] for repeat in self.repeats if repeat["p95_ms"] is not None)
        return 100 * (p95[-1] - p95[0]) / p95[len(p95) // 2] if len(p95) > 1 else None

    @property
    def configuration(self) -> tuple[str, str, int]:
        """What was measured, whatever the protocol."""
        return self.variant, self.hardware, self.threads

    def save(self, run_folder: Path) -> Path:
        """Write it into its run's folder, in place of an earlier one of the same kind."""
        path = run_folder / self.file_name(self.variant, self.hardware, self.threads, self.protocol)
        write_atomically(path, self.to_json())
        return path


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
    "threads",
    "clock",
    "protocol",
    "torch",
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
        """Read a run's files; what is damaged is left out.

        A run that is still under way gives no rows, and of two protocols on the same hardware only
        ``full`` is shown.
        """
        try:
            run = Run.load(folder)
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder, None, [], [])
        except ValueError as error:
            return cls(folder, None, [], [_left_out(folder / Run.FILE, error)])
        measurements, damaged = [], []
        for path in sorted((folder / Measurement.FOLDER).glob("*.json")):
            try:
                measurements.append(Measurement.read(path).checked())
            except ValueError as error:
                damaged.append(_left_out(path, error))
        try:
            return cls(folder, run, _lines(run, measurements), damaged)
        except (KeyError, TypeError, AttributeError) as error:
            return cls(folder, None, [], [*damaged, _left_out(folder, f"no {error}")])


def _left_out(path: Path, reason: object) -> str:
    return f"{path} is damaged and left out ({reason})"


def rows_of(folder: Path) -> list[Row]:
    """Make the table's rows of one run: one a measurement, and one if it ended without any."""
    recorded = Recorded.read(folder)
    for line in recorded.damaged:
        log.warning("%s", line)
    return [row for row, _ in recorded.lines]


def _lines(run: Run, measurements: list[Measurement]) -> list[tuple[Row, Measurement | None]]:
    fully = {m.configuration for m in measurements if m.protocol == "full"}
    shown = [m for m in measurements if m.protocol == "full" or m.configuration not in fully]
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
    like = operator.itemgetter("device", "threads", "protocol")
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
    if (Path(query) / Run.FILE).is_file():
        folder, run = Path(query), _load_or_refuse(Path(query))
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
    for path in sorted((outputs / RUNS).glob(f"*/{Run.FILE}")):
        try:
            yield path.parent, Run.load(path.parent)
        except ValueError as error:
            log.warning("%s is damaged and left out (%s)", path, error)


def _load_or_refuse(folder: Path) -> Run:
    try:
        return Run.load(folder)
    except ValueError as error:
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
        row |= {f"lat_{key}": latency.get(key) for key in ("mean_ms", "p50_ms", "p95_ms")}
        row |= {f"lat_{key}": latency.get(key) for key in ("std_ms", "n", "converged")}
        row |= {
            "lat_ci_ms": latency.get("mean_ci_ms"),
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
            "threads": measurement.threads,
            "clock": measurement.clock,
            "protocol": measurement.protocol,
            "torch": measurement.environment["versions"]["torch"],
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
        rows = [row for folder in (outputs / RUNS).iterdir() for row in rows_of(folder)]
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
    ours = set(written.read_text().split()) if written.exists() else set()
    for name, digest in digests.items():
        path = outputs / name
        if path.exists() and _sha256(path.read_bytes()) not in {*ours, digest}:
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
            like = operator.itemgetter("group", "variant", "device", "threads", "protocol")(row)
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

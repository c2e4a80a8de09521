"""A run with its measurements, and the rows of the table they make."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.identity import group_name
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import MEGA, Run, copied, left_out

log = logging.getLogger(__name__)

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
class RunResults:
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
            return cls(folder, None, [], [left_out(RunFolder(folder).record, error)])
        measurements, damaged = Measurement.read_all(folder, run)
        return cls(folder, run, _lines(run, measurements), damaged)

    @classmethod
    def read_all(cls, outputs: Path) -> list[Self]:
        """Read every run below an outputs folder; what is damaged or a copy is left out."""
        found = []
        for folder in (one.path for one in RunFolder.all(outputs)):
            one = cls.read(folder)
            if one.run is not None and one.run.name != folder.name:
                one = cls(folder, None, [], [copied(folder, one.run)])
            found.append(one)
        return found


def rows_of(folder: Path) -> list[Row]:
    """Make the table's rows of one run: one a measurement, and one if it ended without any."""
    return warned([RunResults.read(folder)])


def warned(recorded: Iterable[RunResults]) -> list[Row]:
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

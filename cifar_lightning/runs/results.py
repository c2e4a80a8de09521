"""A run with its measurements, and the rows of the table they make."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.identity import group_name
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import MEGA, Run, left_out, listed_run, runs_of
from cifar_lightning.runs.shown import shown

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the results table; its fields are the columns of ``results.csv``.

    What was not measured is None. Accuracies are percent, MACs multiply-accumulates, ``size_mb`` is
    in 10^6 bytes.
    """

    id: str
    run: str
    group: str
    model: str
    optim: str
    scheduler: str
    epochs: int
    seed: int
    teacher: str | None
    init: str | None
    dataset: str
    variant: str | None = None
    val_acc: float | None
    test_acc: float | None
    lat_mean_ms: float | None = None
    lat_rel: float | None = None
    lat_rel_low: float | None = None
    lat_rel_high: float | None = None
    lat_min_ms: float | None = None
    lat_p50_ms: float | None = None
    lat_p90_ms: float | None = None
    lat_p95_ms: float | None = None
    lat_std_ms: float | None = None
    floor_ms: float | None = None
    lat_n: int | None = None
    lat_converged: bool | None = None
    first_call_ms: float | None = None
    peak_mb: float | None = None
    wall_ms: float | None = None
    enqueue_ms: float | None = None
    device_ms: float | None = None
    graph_ms: float | None = None
    launch_bound: bool | None = None
    throttled: float | None = None
    gpu_shared: float | None = None
    speedup: float | None = None
    prep_s: float | None = None
    size_mb: float | None = None
    delegated: float | None = None
    params: int
    macs: int
    device: str | None = None
    hardware: str | None = None
    threads: int | None = None
    clock: str | None = None
    protocol: str | None = None
    benchmark: str | None = None
    acc_from: str | None = None
    torch: str | None = None
    recipe: str | None = None
    status: str
    marks: str | None = None
    error: str | None
    started: str

    @property
    def timed_like(self) -> tuple[str | int | None, ...]:
        """What is the same in rows whose latencies can be divided by each other."""
        return self.device, self.hardware, self.threads, self.protocol, self.torch


CSV_COLUMNS = tuple(column.name for column in fields(Row))


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

        A run that is still under way gives no rows; see `shown` for what others give.
        """
        try:
            return cls._of(folder, Run.load(folder))
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder, None, [], [])
        except ValueError as error:
            return cls._of(folder, left_out(RunFolder(folder).record, error))

    @classmethod
    def listed(cls, folder: Path) -> Self:
        """Read a run in its place in the outputs; a copy of another one is left out, too."""
        run = listed_run(folder)
        return cls(folder, None, [], []) if run is None else cls._of(folder, run)

    @classmethod
    def read_all(cls, outputs: Path) -> list[Self]:
        """Read every run below an outputs folder; what is damaged or a copy is left out."""
        return [cls._of(folder, run) for folder, run in runs_of(outputs)]

    @classmethod
    def _of(cls, folder: Path, run: Run | str) -> Self:
        if isinstance(run, str):
            return cls(folder, None, [], [run])
        measurements, damaged = Measurement.read_all(folder, run)
        seen = shown(measurements, RunFolder(folder).outputs)
        return cls(folder, run, _lines(run, seen), damaged)


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
    if run.status in ("running", "interrupted"):
        return []
    if not measurements or run.status == "failed":
        return [(_run_row(run), None)]
    rows = [_row(run, measurement) for measurement in measurements]
    return list(zip(_with_speedups(rows), measurements, strict=True))


def _with_speedups(rows: list[Row]) -> Iterator[Row]:
    """Divide fp32's relative latency by each row's, on the same device with the same protocol."""
    baselines = {row.timed_like: row.lat_rel for row in rows if row.variant == "fp32"}
    for row in rows:
        baseline = baselines.get(row.timed_like)
        yield replace(row, speedup=baseline / row.lat_rel) if baseline and row.lat_rel else row


def _run_row(run: Run) -> Row:
    return Row(
        id=run.label,
        run=run.name,
        group=group_name(run.config, run.choices),
        model=run.choices["model"],
        optim=run.choices["optim"],
        scheduler=run.choices["scheduler"],
        epochs=run.config["epochs"],
        seed=run.config["seed"],
        teacher=(run.config["distill"] or {}).get("teacher"),
        init=(run.config.get("init") or {}).get("run"),
        dataset=run.config["data"]["name"],
        val_acc=run.val_acc,
        test_acc=run.test_acc,
        params=run.params,
        macs=run.macs,
        status=run.status,
        error=run.error,
        started=run.started,
    )


def _making(measurement: Measurement) -> str:
    """Tell the versions of a variant's parts, and of what executed it beside torch."""
    engines = {name: one for name, one in measurement.engines.items() if name != "torch"}
    made = measurement.recipe | engines
    return ", ".join(f"{name} {version}" for name, version in made.items())


def _row(run: Run, measurement: Measurement) -> Row:
    row = replace(
        _run_row(run),
        variant=measurement.variant,
        test_acc=measurement.test_acc,
        lat_converged=measurement.converged,
        first_call_ms=measurement.first_call_ms,
        peak_mb=measurement.peak_bytes and measurement.peak_bytes / MEGA,
        wall_ms=None if measurement.wall is None else measurement.wall.mean_ms,
        enqueue_ms=measurement.launches.enqueue_ms,
        device_ms=measurement.launches.device_ms,
        graph_ms=measurement.launches.graph_ms,
        launch_bound=measurement.launch_bound,
        throttled=measurement.gpu.throttled,
        gpu_shared=measurement.gpu.others,
        prep_s=measurement.preparation_s,
        size_mb=measurement.size_bytes and measurement.size_bytes / MEGA,
        delegated=measurement.delegated,
        floor_ms=measurement.floor_ms,
        device=measurement.device,
        hardware=measurement.hardware,
        threads=measurement.threads,
        clock=measurement.clock,
        protocol=measurement.protocol,
        benchmark=measurement.benchmark,
        acc_from=str(measurement.carried_over) if measurement.carried_over else None,
        torch=measurement.environment.versions.get("torch"),
        recipe=_making(measurement),
        status=measurement.status,
        marks=", ".join(measurement.marks) or None,
        error=measurement.reason,
    )
    latency, relative = measurement.latency, measurement.relative
    if latency is None or relative is None:
        return row
    return replace(
        row,
        lat_mean_ms=latency.mean_ms,
        lat_rel=relative.centre,
        lat_rel_low=relative.low,
        lat_rel_high=relative.high,
        lat_min_ms=latency.min_ms,
        lat_p50_ms=latency.p50_ms,
        lat_p90_ms=latency.p90_ms,
        lat_p95_ms=latency.p95_ms,
        lat_std_ms=latency.std_ms,
        lat_n=latency.n,
    )

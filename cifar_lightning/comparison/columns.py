"""The columns of a leaderboard: what they hold, and how people read them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from cifar_lightning.comparison.accuracy import SURE
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.reproduce import Reproduction
from cifar_lightning.runs.layout import Value, number
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.paired import Difference
from cifar_lightning.runs.run import MEGA


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Attributes:
        value: What ``table.csv`` holds.
        header: In the table for people; None leaves it out there.
        text: How people read it; None is the value as it is.
        highest: Whether a high value is the better one.
        numeric: Whether it is a number.
    """

    value: Callable[[Leaderboard, Entry], Value]
    header: str | None = None
    text: Callable[[Leaderboard, Entry], str] | None = None
    highest: bool = False
    numeric: bool = True

    def shown(self, leaderboard: Leaderboard, entry: Entry) -> str:
        if self.text is not None:
            return self.text(leaderboard, entry)
        value = self.value(leaderboard, entry)
        return "-" if value is None else str(value)


def _rank(found: tuple[int, bool]) -> str:
    return f"{found[0]}{'=' * found[1]}"


def _accuracy(leaderboard: Leaderboard, entry: Entry) -> str:
    """Write the mean, and how far it is sure, as the verdict does."""
    reach = SURE * leaderboard.error(entry)
    return f"{entry.accuracy.mean:.2f}{f' ± {reach:.2f}' if math.isfinite(reach) else ''}"


def _relative(leaderboard: Leaderboard, entry: Entry) -> str:
    centre, low, high = entry.timings.relative.ratio
    bounds = f"{low:.3f} to {high:.3f}" if math.isfinite(high) else "not bounded"
    return f"{centre:.3f} ({bounds})"


def _taken(leaderboard: Leaderboard, entry: Entry) -> Entry:
    choice = leaderboard.choices.get(entry.threads)
    return entry if choice is None else choice.entry


def _slower(
    leaderboard: Leaderboard, entry: Entry, of: Callable[[Difference], float]
) -> float | None:
    """Compare with the entry to take, in percent."""
    taken = _taken(leaderboard, entry)
    if entry is taken:
        return 0.0
    found = leaderboard.difference(entry, taken)
    return None if found is None else _finite(100 * math.expm1(of(found)))


def _slower_text(leaderboard: Leaderboard, entry: Entry) -> str:
    taken = _taken(leaderboard, entry)
    if entry is taken:
        return "taken"
    found = leaderboard.difference(entry, taken)
    if found is None:
        return "not related"
    centre, low, high = (100 * (ratio - 1) for ratio in found.ratio)
    bounds = f"{low:+.1f} to {high:+.1f}" if math.isfinite(high) else "not bounded"
    return f"{centre:+.1f} ({bounds})"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _speedup(leaderboard: Leaderboard, entry: Entry) -> float | None:
    found = leaderboard.difference(leaderboard.baseline[0], entry)
    return None if found is None else found.ratio[0]


def _peak_mb(leaderboard: Leaderboard, entry: Entry) -> float | None:
    peak = entry.measurement.peak_bytes
    return None if peak is None else peak / MEGA


def _preempted(leaderboard: Leaderboard, entry: Entry) -> float:
    return 100 * (entry.measurement.preempted or 0.0)


def _percent(header: str, of: Callable[[Measurement], float | None]) -> Column:
    def value(leaderboard: Leaderboard, entry: Entry) -> float | None:
        fraction = of(entry.measurement)
        return None if fraction is None else 100 * fraction

    return Column(value, header, lambda a, e: number(value(a, e), 0))


def _wall_ms(entry: Entry) -> float | None:
    wall = entry.measurement.wall
    return None if wall is None else wall.mean_ms


def _milliseconds(header: str, of: Callable[[Entry], float | None]) -> Column:
    return Column(lambda a, e: of(e), header, lambda a, e: number(of(e), 3))


def _pareto(leaderboard: Leaderboard, entry: Entry) -> str:
    better = leaderboard.dominated_by.get(entry)
    return "front" if better is None else f"dominated by {better.name}"


def marks(leaderboard: Leaderboard, entry: Entry) -> list[str]:
    """List what to know of a row: first that it is on the front, if it is."""
    front = [] if entry in leaderboard.dominated_by else ["front"]
    return front + [mark for mark in entry.marks if mark != "quick"]  # the heading says that


def rank_and_marks(leaderboard: Leaderboard, entry: Entry) -> str:
    """Write what there is to say of a row's latency in one cell."""
    return ", ".join([_rank(leaderboard.latency_rank(entry)), *marks(leaderboard, entry)])


COLUMNS: dict[str, Column] = {
    "id": Column(lambda a, e: e.label, "ID", numeric=False),
    "model": Column(lambda a, e: e.network, "Network", numeric=False),
    "variant": Column(lambda a, e: e.variant, "Variant", numeric=False),
    "threads": Column(lambda a, e: e.threads or None, "Threads"),
    "seeds": Column(lambda a, e: len(e.group.runs), "Seeds", highest=True),
    "test_acc": Column(lambda a, e: e.accuracy.mean, "Acc. (%)", _accuracy, highest=True),
    "test_acc_se": Column(lambda a, e: _finite(a.error(e))),
    "test_acc_std": Column(
        lambda a, e: e.accuracy.std, "Std over seeds", lambda a, e: number(e.accuracy.std, 2)
    ),
    "acc_rank": Column(
        lambda a, e: a.accuracy_rank(e)[0], "Acc. rank", lambda a, e: _rank(a.accuracy_rank(e))
    ),
    "lat_rel": Column(lambda a, e: e.relative, "Rel. latency (95 %)", _relative),
    "lat_rel_low": Column(lambda a, e: e.timings.relative.ratio[1]),
    "lat_rel_high": Column(lambda a, e: _finite(e.timings.relative.ratio[2])),
    "lat_rank": Column(
        lambda a, e: a.latency_rank(e)[0], "Lat. rank", lambda a, e: _rank(a.latency_rank(e))
    ),
    "slower_pct": Column(
        lambda a, e: _slower(a, e, lambda one: one.centre),
        "Slower than taken (%)",
        _slower_text,
    ),
    "slower_low_pct": Column(lambda a, e: _slower(a, e, lambda one: one.low)),
    "slower_high_pct": Column(lambda a, e: _slower(a, e, lambda one: one.high)),
    "lat_mean_ms": _milliseconds("Lat. mean (ms)", lambda e: e.latency.mean_ms),
    "lat_min_ms": _milliseconds("Lat. min (ms)", lambda e: e.latency.min_ms),
    "lat_p90_ms": _milliseconds("Lat. p90 (ms)", lambda e: e.latency.p90_ms),
    "lat_p95_ms": _milliseconds("Lat. p95 (ms)", lambda e: e.latency.p95_ms),
    "floor_ms": _milliseconds("Floor (ms)", lambda e: e.measurement.floor_ms),
    "first_call_ms": _milliseconds("First call (ms)", lambda e: e.measurement.first_call_ms),
    "wall_ms": _milliseconds("Wall (ms)", _wall_ms),
    "enqueue_ms": _milliseconds("Enqueue (ms)", lambda e: e.measurement.launches.enqueue_ms),
    "device_ms": _milliseconds("Device alone (ms)", lambda e: e.measurement.launches.device_ms),
    "graph_ms": _milliseconds("Graph replay (ms)", lambda e: e.measurement.launches.graph_ms),
    "throttled_pct": _percent("Throttled (%)", lambda one: one.gpu.throttled),
    "gpu_shared_pct": _percent("GPU shared (%)", lambda one: one.gpu.others),
    "peak_mb": Column(_peak_mb, "Peak (MB)", lambda a, e: number(_peak_mb(a, e), 1)),
    "preempted_pct": Column(_preempted, "Preempted (%)", lambda a, e: number(_preempted(a, e), 0)),
    "baseline_speedup": Column(
        _speedup, "Speed-up over baseline", lambda a, e: number(_speedup(a, e), 2), highest=True
    ),
    "size_mb": Column(lambda a, e: e.size_mb, "Size (MB)", lambda a, e: number(e.size_mb, 2)),
    "delegated_pct": _percent("Delegated (%)", lambda one: one.delegated),
    "params": Column(lambda a, e: e.params, "Params (M)", lambda a, e: f"{e.params / MEGA:.2f}"),
    "macs": Column(lambda a, e: e.macs, "MACs (M)", lambda a, e: f"{e.macs / MEGA:.2f}"),
    "marks": Column(
        lambda a, e: ", ".join(e.marks),
        "Marks",
        lambda a, e: ", ".join(marks(a, e)),
        numeric=False,
    ),
    "pareto": Column(_pareto, "Pareto", numeric=False),
    "acc_from": Column(lambda a, e: e.group.acc_from or "", numeric=False),
    "val_acc": Column(lambda a, e: e.group.val_acc, highest=True),
    "optim": Column(lambda a, e: e.group.runs[0].choices["optim"], numeric=False),
    "scheduler": Column(lambda a, e: e.group.runs[0].choices["scheduler"], numeric=False),
    "epochs": Column(lambda a, e: e.group.runs[0].config["epochs"]),
    "converged": Column(lambda a, e: e.measurement.converged, numeric=False),
    "dataset": Column(lambda a, e: a.conditions.dataset, numeric=False),
    "fingerprint": Column(lambda a, e: a.conditions.fingerprint, numeric=False),
    "device": Column(lambda a, e: a.conditions.device, numeric=False),
    "protocol": Column(lambda a, e: a.conditions.protocol, numeric=False),
    "benchmark": Column(lambda a, e: e.measurement.benchmark, numeric=False),
    "runs": Column(lambda a, e: " ".join(run.name for run in e.group.runs), numeric=False),
    "trained_with": Column(lambda a, e: Reproduction.of(e).trained_with, numeric=False),
    "measured_with": Column(lambda a, e: Reproduction.of(e).measured_with, numeric=False),
}

"""What TensorBoard shows of a finished run beside its curves: settings with results, confusions.

A view like the results table: derived from the run's files, and replaced whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard.summary import hparams

from cifar_lightning.comparison import fonts, plots
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.changes import settings
from cifar_lightning.runs.folder import DRAWN, RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.run import MEGA, Run
from cifar_lightning.system.event_files import Writer

# Of the chosen weights' figures. TensorBoard sorts its groups by name and opens on the first ones,
# which are the curves then.
GROUP = "weights"


def draw(folder: Path) -> None:
    """Write a finished run's settings and results into its TensorBoard folder.

    The hparams tab gets every setting that changes the weights, and the figures of the chosen
    weights; each measurement gets its size, named by its variant, and if it was not disturbed its
    latency and a histogram of its calls; the first one gets its confusion matrix.

    Args:
        folder: The run's.
    """
    if not RunFolder(folder).tensorboard.is_dir():
        return  # the run has other loggers
    recorded = RunResults.read(folder)
    if recorded.run is None or recorded.run.status != "finished":
        return
    RunFolder(folder).link_board(recorded.run.label)
    shown = [one for _, one in recorded.lines if one is not None]
    shown.sort(key=lambda one: (one.variant != "fp32", one.threads))
    # Of those that share a name an undisturbed one counts, and of these the first.
    known = sorted(shown, key=lambda one: one.status != "ok")
    measured = {_name(one, shown[0]): one for one in reversed(known) if one.has_figures}
    confusion = next((one.confusion for one in shown if one.confusion is not None), None)
    for earlier in RunFolder(folder).drawings():
        earlier.unlink(missing_ok=True)  # another process may be drawing, too
    with Writer(str(RunFolder(folder).tensorboard), filename_suffix=DRAWN) as writer:
        figures = _figures(recorded.run, measured)
        settings = dict(_flat(recorded.run))
        for main in shown[:1]:
            settings |= {"device": main.device, "threads": main.threads, "protocol": main.protocol}
        # Not the summary of the experiment: TensorBoard takes one run's for all, and settings that
        # this run does not have would be hidden.
        _, *sessions = hparams(settings, figures)
        for summary in sessions:
            writer._get_file_writer().add_summary(summary)
        for name, value in figures.items():
            writer.add_scalar(name, value, 0)
        for name, one in measured.items():
            if one.status == "ok" and (calls := _calls_ms(folder, one)) is not None:
                writer.add_histogram(f"{GROUP}/calls_ms.{name}", np.array(calls), 0)
        if confusion is not None:
            figure = plots.confusion_matrix(confusion, recorded.run.class_names(len(confusion)))
            figure.set_facecolor("white")
            fonts.draw_pixels(figure)
            writer.add_figure(f"{GROUP}/confusion", figure, 0)


def _calls_ms(folder: Path, measurement: Measurement) -> list[float] | None:
    """Read all calls out of the benchmark; None if it is missing, or not as it should be."""
    name = measurement.benchmark
    try:
        record = _benchmark(BenchmarkRecord.path(RunFolder(folder).outputs, str(name)))
    except (OSError, ValueError):
        return None
    numbers = [one for one in record.ranked if record.candidates[one].key == measurement.candidate]
    calls = [ms for one in numbers[:1] for block in record.blocks(one) for ms in block.calls_ms]
    return calls or None


@lru_cache(maxsize=1)
def _benchmark(path: Path) -> BenchmarkRecord:
    """Read a record; runs that were measured together are drawn one after the other."""
    return BenchmarkRecord.read(path)


def _name(measurement: Measurement, main: Measurement) -> str:
    """Name what a latency is of: the variant, and what is not as in the main measurement."""
    threads = f"-t{measurement.threads}" if measurement.threads > 1 else ""
    hardware = f"@{measurement.hardware}" if measurement.hardware != main.hardware else ""
    return f"{measurement.variant}{threads}{hardware}"


def _figures(run: Run, measured: Mapping[str, Measurement]) -> dict[str, float]:
    figures = {
        "acc": run.test_acc,
        "val_acc": run.val_acc,
        "params_m": run.params / MEGA,
        "macs_m": run.macs / MEGA,
    }
    for name, one in measured.items():
        if one.status == "ok" and one.latency is not None:
            figures[f"lat_mean_ms.{name}"] = one.latency.mean_ms
            figures[f"lat_p95_ms.{name}"] = one.latency.p95_ms
        figures[f"size_mb.{name}"] = one.size_bytes and one.size_bytes / MEGA
    return {f"{GROUP}/{name}": value for name, value in figures.items() if value is not None}


def _flat(run: Run) -> Iterator[tuple[str, str | float]]:
    """Yield a run's settings, as TensorBoard takes them; lists, such as channels, as texts."""
    yield from run.choices.items()
    yield "seed", run.config["seed"]

    def nodes(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str | float]]:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from nodes(value, f"{prefix}{key}.")
            elif key.startswith("_"):
                continue
            elif isinstance(value, int | float | str):
                yield prefix + key, value
            elif isinstance(value, Sequence):
                yield prefix + key, ", ".join(map(str, value))

    shown = settings(run)
    yield "augment", ", ".join(shown["augment"]) or "none"
    yield from nodes(shown, "")

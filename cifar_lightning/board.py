"""What TensorBoard shows of a finished run beside its curves: settings with results, confusions.

A view like the results table: derived from the run's files, and replaced whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cifar_lightning import plots
from cifar_lightning.comparison import settings
from cifar_lightning.results import MEGA, Measurement, Recorded, Run

TENSORBOARD = "tensorboard"
SUFFIX = ".results"  # of the file that is replaced; the curves are in others


def draw(folder: Path) -> None:
    """Write a finished run's settings and results into its TensorBoard folder.

    The hparams tab gets every setting that changes the weights and the final figures, the first
    measurement's latency among them; each measured variant a histogram of its samples, and the
    first one its confusion matrix.

    Args:
        folder: The run's.
    """
    recorded = Recorded.read(folder)
    if recorded.run is None or recorded.run.status != "finished":
        return
    measured = [one for _, one in recorded.lines if one is not None and one.latency]
    measured.sort(key=lambda one: (one.variant != "fp32", one.threads))
    target = folder / TENSORBOARD
    for earlier in target.glob(f"*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(target), filename_suffix=SUFFIX) as writer:
        figures = _figures(recorded.run, measured[0] if measured else None)
        for summary in hparams(dict(_flat(recorded.run)), figures):
            writer._get_file_writer().add_summary(summary)
        for name, value in figures.items():
            writer.add_scalar(name, value, 0)
        for one in measured:
            samples = np.array(one.samples_ms)
            writer.add_histogram(f"latency/{one.variant}-t{one.threads}", samples, 0)
        if measured and measured[0].confusion is not None:
            confusion = measured[0].confusion
            classes = recorded.run.classes or [str(number) for number in range(len(confusion))]
            figure = plots.confusion_matrix(confusion, classes)
            figure.patch.set_alpha(1)
            writer.add_figure("test/confusion", figure, 0)


def _figures(run: Run, measurement: Measurement | None) -> dict[str, float]:
    latency: Mapping[str, Any] = measurement.latency if measurement else {}
    size = measurement.size_bytes if measurement else None
    figures = {
        "val_acc": run.val_acc,
        "test_acc": run.test_acc,
        "lat_mean_ms": latency.get("mean_ms"),
        "lat_p95_ms": latency.get("p95_ms"),
        "size_mb": size and size / MEGA,
        "params_m": run.params / MEGA,
        "macs_m": run.macs / MEGA,
    }
    return {f"final/{name}": value for name, value in figures.items() if value is not None}


def _flat(run: Run) -> Iterator[tuple[str, str | float]]:
    """Yield a run's settings, as TensorBoard takes them; lists, such as pixel means, it can't."""
    yield from run.choices.items()
    yield "seed", run.config["seed"]

    def nodes(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str | float]]:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from nodes(value, f"{prefix}{key}.")
            elif isinstance(value, int | float | str) and not key.startswith("_"):
                yield prefix + key, value

    shown = settings(run)
    yield "augment", ", ".join(shown["augment"]) or "none"
    yield from nodes(shown, "")

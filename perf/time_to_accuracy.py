"""Training time until 80 % and 85 % of the test images are right: ours against the baseline recipe.

    python -m perf.time_to_accuracy experiment=b1_progressive epochs=18 [group=option key=value]

What follows the name is `train.py`'s. Both sides train the same network from the same weights, with
the same split, crop, flip, optimizer and schedule; `perf/baseline.py` says what the baseline
recipe is. Its images have their full size from the first epoch on.
They train an epoch each in turns, and only that is timed, neither validation nor testing. The test
images are looked at after every epoch, so their accuracy is a measure of progress here, not a
result.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from cifar_lightning.benchmark.evaluate import evaluate
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.runs import resolve
from perf.baseline import Baseline, baseline_loader, prepare
from perf.interleaved import conditions

GOALS = (80, 85)  # percent
BASELINE, OURS = "baseline recipe", "ours"


class Progress(Callback):
    """Notes, after each epoch, the seconds of training and the accuracy; takes turns with another.

    Args:
        name: The side's.
        epochs_end: Where both sides meet, twice an epoch: when the first one has trained, and when
            the second one has.
        first: Whether this side trains first.
        tested: Gives a network's accuracy in percent.
    """

    def __init__(
        self,
        name: str,
        epochs_end: threading.Barrier,
        first: bool,
        tested: Callable[[nn.Module], float],
    ) -> None:
        self.name, self.epochs_end, self.first, self.tested = name, epochs_end, first, tested
        self.seconds = 0.0
        self.curve: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.first:
            self.epochs_end.wait()
        self.begin = self.end = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.end = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = self.end - self.begin
        self.seconds += epoch
        percent = self.tested(pl_module.get_submodule("backbone"))
        self.curve.append((self.seconds, percent))
        print(
            f"{self.name}, epoch {len(self.curve)}: {epoch:.1f} s, {percent:.2f} %", file=sys.stderr
        )
        self.epochs_end.wait()
        if self.first:
            self.epochs_end.wait()

    def on_exception(self, *_: Any) -> None:
        self.epochs_end.abort()  # the other side fails, too, instead of waiting

    def seconds_to(self, goal: float) -> float | None:
        """Find the seconds of training after which an epoch first ended so well."""
        return next((seconds for seconds, percent in self.curve if percent >= goal), None)


def tester(data: ImageDataModule) -> Callable[[nn.Module], float]:
    """Make a function that gives a network's accuracy on the test images, in percent."""

    @torch.inference_mode()
    def tested(network: nn.Module) -> float:
        network.eval()
        percent = evaluate(network, data, torch.device("cpu")).accuracy
        network.train()
        return percent

    return tested


def report(sides: list[Progress]) -> str:
    """Draw the table; the first side is the baseline."""
    lines = [
        "| | " + " | ".join(f"minutes to {goal} % | ratio" for goal in GOALS) + " | at the end |",
        "| --- |" + " ---: |" * (2 * len(GOALS) + 1),
    ]
    for side in sides:
        cells = []
        for goal in GOALS:
            seconds, base = side.seconds_to(goal), sides[0].seconds_to(goal)
            cells.append("not reached" if seconds is None else f"{seconds / 60:.1f}")
            cells.append(f"{base / seconds:.2f}" if base and seconds else "")
        end, percent = side.curve[-1]
        cells.append(f"{percent:.2f} % after {end / 60:.1f} minutes")
        lines.append(f"| {side.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train both sides and print the table."""
    resolve.register()
    overrides = [*sys.argv[1:], "trainer.accelerator=cpu", "benchmark.variants=[]"]
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = prepare(overrides, folder)
        data = experiment.data
        split, indices = data.images.train, data.indices["train"]
        loader = baseline_loader(
            split.images[indices],
            split.labels[indices],
            data.batch_size,
            mean=config["data"]["mean"],
            std=config["data"]["std"],
        )
        backbone = copy.deepcopy(experiment.classifier.backbone)
        epochs_end = threading.Barrier(2)
        baseline, ours = (
            Progress(name, epochs_end, name == BASELINE, tester(data)) for name in (BASELINE, OURS)
        )
        trainer = Trainer(
            max_epochs=config["epochs"],
            accelerator="cpu",
            callbacks=[baseline],
            default_root_dir=folder,
            enable_model_summary=False,
        )
        experiment.trainer.callbacks.insert(0, ours)  # type: ignore[attr-defined]
        # Ours has the main thread, where Ctrl-C arrives; the other one ends with it.
        beside = threading.Thread(
            target=trainer.fit,
            args=(Baseline(backbone, config, len(loader) * config["epochs"]), loader),
            daemon=True,
        )
        # The usual progress bar costs what it costs, but is not shown.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            beside.start()
            experiment.trainer.fit(experiment.classifier, datamodule=data)
            beside.join()
    print(f"## Time to accuracy: {' '.join(sys.argv[1:])}\n")
    print(report([baseline, ours]))
    print(conditions(config["epochs"]))


if __name__ == "__main__":
    main()

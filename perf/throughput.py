"""Images a second of training: our command's parts against the baseline recipe, the same network.

    python -m perf.throughput [mobilenetv3:8 mobilenetv3:16 shufflenetv2:8]

`perf/baseline.py` says what the baseline recipe is. Whole epochs, of fewer images than CIFAR-10's.
Ours trains in one process with all threads, and in two with half of them each
(`trainer.devices=2 trainer.strategy=ddp`), with the same number of images a step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from cifar_lightning.runs import resolve
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.training.build import Experiment
from perf.baseline import Baseline, baseline_loader, prepare, random_images
from perf.input import Images
from perf.interleaved import conditions, interleave, table
from perf.overhead import Stopwatch

IMAGES, BATCH, ROUNDS = 5_120, 256, 5
NETWORKS = ("mobilenetv3:8", "mobilenetv3:16", "shufflenetv2:8")
CORES = usable_cores()
ONE_OF_TWO = "--one-of-two"  # what `ours_in_two` tells the processes it starts


def prepared(
    model: str, stride: str, folder: str, processes: int = 1
) -> tuple[Experiment, dict[str, Any]]:
    """Build what `train.py` builds for one epoch on all images."""
    return prepare(
        [
            f"model={model}",
            f"model.output_stride={stride}",
            f"batch_size={BATCH // processes}",
            "epochs=1",
            "data.val_fraction=0",
            "trainer.accelerator=cpu",
            *([f"trainer.devices={processes}", "trainer.strategy=ddp"] if processes > 1 else []),
        ],
        folder,
    )


def ours(model: str, stride: str, processes: int = 1) -> float:
    """Train an epoch as our command does; return images per second of all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = prepared(model, stride, folder, processes)
        names = ("_target_", "root", "mirrors", "md5", "connect_timeout")
        shared = {key: value for key, value in config["data"].items() if key not in names}
        data = Images(**shared, count=IMAGES)
        data.augment = experiment.data.augment
        return _speed(experiment.trainer, experiment.classifier, datamodule=data)


def ours_in_two(model: str, stride: str) -> float:
    """Train an epoch as our command does in two processes; return their images per second."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, "-m", "perf.throughput", ONE_OF_TWO, model, stride]
    threads = {"OMP_NUM_THREADS": str(CORES // 2)}  # as Lightning's own launcher does
    done = subprocess.run(
        command, env=os.environ | threads, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


def baseline(model: str, stride: str) -> float:
    """Train an epoch of the baseline recipe; return images per second."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = prepared(model, stride, folder)
        loader = baseline_loader(*random_images(IMAGES), BATCH)
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=folder, enable_model_summary=False
        )
        module = Baseline(experiment.classifier.backbone, config, len(loader))
        # Its progress bar costs what it costs, but is not shown.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return _speed(trainer, module, train_dataloaders=loader)


def _speed(trainer: Trainer, module: LightningModule, **data: Any) -> float:
    watch = Stopwatch()
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(module, **data)
    return 1000 * BATCH / watch.ms


def main() -> None:
    """Print a table for each network."""
    resolve.register()
    if sys.argv[1:2] == [ONE_OF_TWO]:
        model, stride = sys.argv[2:]
        ours(model, stride, processes=2)  # warms up, as the other sides are after a round
        speed = ours(model, stride, processes=2)
        if os.environ["RANK"] == "0":
            print(speed)
        return
    for name in sys.argv[1:] or NETWORKS:
        model, _, stride = name.partition(":")
        sides = {
            "baseline recipe": partial(baseline, model, stride),
            "ours": partial(ours, model, stride),
        }
        if CORES > 1:
            sides["ours, 2 processes"] = partial(ours_in_two, model, stride)
        figures = interleave(sides, ROUNDS)
        print(f"## Training throughput: {model}, output stride {stride}\n")
        print(table(figures, "images/s", 0, "baseline recipe"))
        print(conditions(ROUNDS), flush=True)


if __name__ == "__main__":
    main()

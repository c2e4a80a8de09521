"""Images a second of training: our command's parts against the baseline recipe, the same network.

    python -m perf.throughput ["model=resnet8" "model=mobilenetv3 model.output_stride=8" ...]
    python -m perf.throughput device=gpu ["experiment=best" ...]

Each argument is a network, as `train.py` is told it. `perf/baseline.py` says what the baseline
recipe is. Whole epochs, of fewer images than CIFAR-10's. Ours trains in one process with all
threads, and in two with half of them each (`trainer.devices=2 trainer.strategy=ddp`), with the same
number of images a step. Beside them, in the same rounds, a product of large matrices shows what the
machine can do: a training step takes 6 floating-point operations a multiply-accumulate of the
network, 2 forward and 4 backward.

On a GPU: steps a second of whole presets, executed in several ways, interleaved, after an epoch of
each that compiles and warms up.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from cifar_lightning.models.complexity import count_macs
from cifar_lightning.runs import resolve
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.devices import device_name
from cifar_lightning.training.build import Experiment
from perf.baseline import Baseline, baseline_loader, prepare, random_images
from perf.input import Images
from perf.interleaved import conditions, interleave, table, warmed_up
from perf.overhead import Stopwatch

IMAGES, BATCH, ROUNDS = 5_120, 256, 5
NETWORKS = (
    "model=mobilenetv3",
    "model=mobilenetv3 model.output_stride=16",
    "model=shufflenetv2",
    "model=resnet8",
    "model=cifarnet",
    "model=cifarnet model.channels=[32,128,128]",
)
MATRIX, PRODUCTS = 2048, 20  # their size both ways, and how many a round
CORES = usable_cores()
PRESETS = ("experiment=[fast94,gpu]", "experiment=best")
WARM, STEPS, GPU_ROUNDS = 10, 60, 3  # of an epoch on a GPU, in which graphs are recorded anew
EXECUTIONS = {
    "eager": ("compile=false", "channels_last=true"),
    "eager, contiguous": ("compile=false", "channels_last=false"),
    "CUDA graphs": ("compile=reduce-overhead", "channels_last=true"),
    "compiled": ("compile=default", "channels_last=true"),
    "CUDA graphs, contiguous": ("compile=reduce-overhead", "channels_last=false"),
}
MATRIX_PRODUCT = f"product of {MATRIX}x{MATRIX} matrices"
ONE_OF_TWO = "--one-of-two"  # what `ours_in_two` tells the processes it starts


def prepared(
    network: str, folder: str, batch_size: int = BATCH, processes: int = 1
) -> tuple[Experiment, dict[str, Any]]:
    """Build what `train.py` builds for one epoch on all images."""
    return prepare(
        [
            *network.split(),
            f"batch_size={batch_size // processes}",
            "epochs=1",
            "data.val_fraction=0",
            "trainer.accelerator=cpu",
            *([f"trainer.devices={processes}", "trainer.strategy=ddp"] if processes > 1 else []),
        ],
        folder,
    )


def ours(network: str, batch_size: int = BATCH, processes: int = 1) -> float:
    """Train an epoch as our command does; return images per second of all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = prepared(network, folder, batch_size, processes)
        data = images_for(experiment, config, IMAGES)
        return _speed(experiment.trainer, experiment.classifier, batch_size, datamodule=data)


def images_for(experiment: Experiment, config: dict[str, Any], count: int) -> Images:
    """Make random images that are batched and augmented as the experiment's."""
    names = ("_target_", "root", "mirrors", "md5", "connect_timeout")
    shared = {key: value for key, value in config["data"].items() if key not in names}
    data = Images(**shared, count=count)
    data.augment = experiment.data.augment
    return data


def ours_in_two(network: str) -> float:
    """Train an epoch as our command does in two processes; return their images per second."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, "-m", "perf.throughput", ONE_OF_TWO, network]
    threads = {"OMP_NUM_THREADS": str(CORES // 2)}  # as Lightning's own launcher does
    done = subprocess.run(
        command, env=os.environ | threads, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


def baseline(network: str, batch_size: int = BATCH) -> float:
    """Train an epoch of the baseline recipe, in fp32; return images per second."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = prepared(network, folder, batch_size)
        loader = baseline_loader(*random_images(IMAGES), batch_size)
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=folder, enable_model_summary=False
        )
        module = Baseline(experiment.classifier.backbone, config, len(loader))
        # Its progress bar costs what it costs, but is not shown.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return _speed(trainer, module, batch_size, train_dataloaders=loader)


def matrix_product() -> float:
    """Multiply large matrices; return GFLOP/s."""
    one = torch.randn(MATRIX, MATRIX)
    begin = time.perf_counter()
    for _ in range(PRODUCTS):
        one @ one
    return 2 * MATRIX**3 * PRODUCTS / (time.perf_counter() - begin) / 1e9


def multiply_accumulates(network: str) -> float:
    """Count a network's multiply-accumulates for one image."""
    with tempfile.TemporaryDirectory() as folder:
        return count_macs(prepared(network, folder)[0].classifier.backbone)


def _speed(trainer: Trainer, module: LightningModule, batch_size: int, **data: Any) -> float:
    watch = Stopwatch()
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(module, **data)
    return 1000 * batch_size / watch.ms


class WarmSteps(Callback):
    """Times an epoch's steps but for the first ones; comes after all other callbacks."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == WARM:
            self._begin = self._now()
        elif batch_idx + 1 == STEPS:
            self.rate = (STEPS - WARM) / (self._now() - self._begin)

    @staticmethod
    def _now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()


class OnGpu:
    """Trains one epoch a call, on random images, as `train.py` would with these settings."""

    def __init__(self, preset: str, execution: tuple[str, ...], folder: str) -> None:
        # There is nothing to learn in random images; a high rate would only end in NaN.
        given = [*preset.split(), "data.val_fraction=0", *execution, "epochs=1", "optim.lr=1e-3"]
        self.experiment, config = prepare(given, folder)
        self.data = images_for(self.experiment, config, STEPS * config["batch_size"])
        self.watch = WarmSteps()
        self.experiment.trainer.callbacks.append(self.watch)  # type: ignore[attr-defined]

    def __call__(self) -> float:
        """Return steps per second."""
        trainer = self.experiment.trainer
        trainer.fit(self.experiment.classifier, datamodule=self.data)
        trainer.fit_loop.max_epochs = trainer.current_epoch + 1
        return self.watch.rate


def on_gpu(presets: list[str]) -> None:
    """Print a table for each preset."""
    for preset in presets:
        print(f"## Training on {device_name(torch.device('cuda'))}: {preset}\n", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            builders = {
                name: partial(OnGpu, preset, execution, f"{folder}/{name}")
                for name, execution in EXECUTIONS.items()
            }
            if sides := warmed_up(builders, "steps/s"):
                figures = interleave(sides, GPU_ROUNDS)
                print(f"\n{table(figures, 'steps/s', 0, next(iter(sides)))}")
            print(conditions(GPU_ROUNDS), flush=True)


def main() -> None:
    """Print a table for each network."""
    resolve.register()
    if sys.argv[1:2] == ["device=gpu"]:
        if not torch.cuda.is_available():
            print("error: device=gpu: there is no GPU that torch can use here", file=sys.stderr)
            sys.exit(2)
        on_gpu(sys.argv[2:] or [*PRESETS])
        return
    if sys.argv[1:2] == [ONE_OF_TWO]:
        ours(sys.argv[2], processes=2)  # warms up, as the other sides are after a round
        speed = ours(sys.argv[2], processes=2)
        if os.environ["RANK"] == "0":
            print(speed)
        return
    for network in sys.argv[1:] or NETWORKS:
        sides: dict[str, Callable[[], float]] = {
            "baseline recipe": partial(baseline, network),
            "ours": partial(ours, network),
            MATRIX_PRODUCT: matrix_product,
        }
        if CORES > 1:
            sides["ours, 2 processes"] = partial(ours_in_two, network)
        figures = interleave(sides, ROUNDS)
        products = figures.pop(MATRIX_PRODUCT)
        print(f"## Training throughput: {network}\n")
        print(table(figures, "images/s", 0, "baseline recipe"))
        operations = 6 * multiply_accumulates(network) / 1e9
        print(f"{operations:.4f} GFLOP an image; {MATRIX_PRODUCT}: ", end="")
        print(f"{statistics.median(products):.0f} GFLOP/s.\n")
        for name, speeds in figures.items():
            fractions = [
                speed * operations / product
                for speed, product in zip(speeds, products, strict=True)
            ]
            print(
                f"- {name}: {statistics.median(speeds) * operations:.0f} GFLOP/s, "
                f"{statistics.median(fractions):.2f} of it "
                f"({min(fractions):.2f} to {max(fractions):.2f})"
            )
        print()
        print(conditions(ROUNDS), flush=True)


if __name__ == "__main__":
    main()

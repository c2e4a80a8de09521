"""Training time until 80 % and 85 % of the test images are right: ours against the usual recipe.

    python -m bench.time_to_accuracy experiment=b1 epochs=18 batch_size=128 [group=option key=value]

What follows the name is `train.py`'s. Both sides train the same network with the same split, crop,
flip, optimizer and schedule; the usual recipe does so with torchvision's transforms image by image
in 2 workers, default memory format, the loss and the accuracy logged at every step. They train an
epoch each in turns, and only that is timed, neither validation nor testing. The test images are
looked at after every epoch, so their accuracy is a measure of progress here, not a result.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.input import UsualImages
from bench.throughput import Usual
from bench.turns import conditions
from cifar_lightning import config as configuration
from cifar_lightning import identity
from cifar_lightning.classifier import parameter_groups
from cifar_lightning.data import Batch
from cifar_lightning.experiment import Experiment, build

ACCURACIES = (0.80, 0.85)
USUAL, OURS = "usual recipe", "ours"


class Turns:
    """Lets one thread after another work, in a fixed order.

    Args:
        names: Whose turn it is, one after the other.
    """

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.changed = threading.Condition()

    def wait(self, name: str) -> None:
        """Return when it is this one's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.names[0] == name)

    def over(self) -> None:
        """Let the next one work."""
        with self.changed:
            self.names.append(self.names.pop(0))
            self.changed.notify_all()

    def leave(self, name: str) -> None:
        """Take no more turns."""
        with self.changed:
            self.names.remove(name)
            self.changed.notify_all()


class Progress(Callback):
    """Trains in turns and notes, after each epoch, the seconds of training and the accuracy.

    Args:
        name: The side's.
        turns: Shared by the sides.
        accuracy: Of the network on the test images.
    """

    def __init__(self, name: str, turns: Turns, accuracy: Callable[[nn.Module], float]) -> None:
        self.name, self.turns, self.accuracy = name, turns, accuracy
        self.seconds = 0.0
        self.curve: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.turns.wait(self.name)
        self.begin = self.end = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.end = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = self.end - self.begin
        self.seconds += epoch
        accuracy = self.accuracy(pl_module.get_submodule("backbone"))
        self.curve.append((self.seconds, accuracy))
        print(
            f"{time.strftime('%H:%M:%S')} {self.name}, epoch {len(self.curve)}: "
            f"{epoch:.1f} s, {accuracy:.2%}",
            file=sys.stderr,
            flush=True,
        )
        self.turns.over()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.turns.leave(self.name)

    def seconds_to(self, accuracy: float) -> float | None:
        """Find the seconds of training after which an epoch first ended so well."""
        return next((seconds for seconds, each in self.curve if each >= accuracy), None)


class Twin(Usual):
    """The usual recipe with the network, optimizer and schedule that ours has."""

    def __init__(self, experiment: Experiment, config: dict[str, Any], steps: int) -> None:
        backbone: nn.Module = instantiate(config["model"])
        backbone.load_state_dict(experiment.classifier.backbone.state_dict())
        super().__init__(backbone, steps)
        self.config = config

    def configure_optimizers(self) -> Any:
        optimizer = instantiate(self.config["optim"])(parameter_groups(self.backbone))
        schedule = instantiate(self.config["scheduler"])(optimizer, total_steps=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def accuracy_on(batches: list[Batch], network: nn.Module) -> float:
    """Return the share of the images that the network puts into the right class."""
    network.eval()
    with torch.inference_mode():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
    network.train()
    return right / sum(len(labels) for _, labels in batches)


def prepared(overrides: list[str], folder: str) -> tuple[Experiment, dict[str, Any]]:
    """Build what `train.py` builds."""
    with initialize_config_dir(str(configuration.CONF_DIR), version_base="1.3"):
        config = identity.resolve(compose("train", overrides, return_hydra_config=True))
    experiment = build(config, Path(folder))
    experiment.trainer.logger = TensorBoardLogger(folder, name="")
    return experiment, config


def usual_loader(experiment: Experiment) -> DataLoader[tuple[Tensor, int]]:
    """Make the usual loader of our training images."""
    data = experiment.data
    split, indices = data.images.train, data.indices["train"]
    return DataLoader(
        UsualImages(split.images[indices], split.labels[indices]),
        batch_size=data.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=2,
    )


def report(sides: dict[str, Progress]) -> str:
    """Draw the table."""
    head = [f"{accuracy:.0%}" for accuracy in ACCURACIES]
    lines = [
        "| | " + " | ".join(f"minutes to {each} | ratio" for each in head) + " | at the end |",
        "| --- |" + " ---: |" * (2 * len(head) + 1),
    ]
    for name, side in sides.items():
        cells = []
        for accuracy in ACCURACIES:
            seconds, base = side.seconds_to(accuracy), sides[USUAL].seconds_to(accuracy)
            cells.append("not reached" if seconds is None else f"{seconds / 60:.1f}")
            cells.append(f"{base / seconds:.2f}" if base and seconds else "")
        end, last = side.curve[-1]
        cells.append(f"{last:.2%} after {end / 60:.1f} minutes")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train both sides and print the table."""
    identity.register()
    overrides = [*sys.argv[1:], "trainer.accelerator=cpu", "benchmark.variants=[]"]
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = prepared(overrides, folder)
        loader = usual_loader(experiment)
        twin = Twin(experiment, config, steps=len(loader) * config["epochs"])
        data = experiment.data
        test = [(data.normalize(images), labels) for images, labels in data.loader("test")]
        turns = Turns(USUAL, OURS)
        sides = {name: Progress(name, turns, partial(accuracy_on, test)) for name in (USUAL, OURS)}
        trainer = Trainer(
            max_epochs=config["epochs"],
            accelerator="cpu",
            callbacks=[sides[USUAL]],
            default_root_dir=folder,
            enable_model_summary=False,
        )
        experiment.trainer.callbacks.insert(0, sides[OURS])  # type: ignore[attr-defined]
        # The usual progress bar costs what it costs, but is not shown.
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            ThreadPoolExecutor(len(sides)) as pool,
        ):
            fits = [
                pool.submit(trainer.fit, twin, train_dataloaders=loader),
                pool.submit(experiment.trainer.fit, experiment.classifier, datamodule=data),
            ]
        for fit in fits:
            fit.result()
    print(f"## Time to accuracy: {' '.join(sys.argv[1:])}\n")
    print(report(sides))
    print(conditions(config["epochs"]))


if __name__ == "__main__":
    main()

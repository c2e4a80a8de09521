"""Time a step takes beyond the network's: a bare loop, Lightning with nothing on, our whole `fit`.

    python -m perf.overhead

The network is one small linear layer, and the batches are made beforehand.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from cifar_lightning.data.images import Batch, ImageData
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.runs import resolve
from perf.baseline import prepare
from perf.interleaved import conditions, interleave, table

STEPS, ROUNDS = 1000, 7


def network() -> nn.Module:
    """Make a network of almost no cost."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10))


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    """Make the same optimizer for every side."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True)


BATCHES: DataLoader[Batch] = DataLoader(
    [(torch.rand(16, 3, 2, 2), torch.randint(10, (16,))) for _ in range(STEPS)],  # type: ignore[arg-type]
    batch_size=None,
)


class PreparedData(ImageDataModule):
    """Gives the same batches to our own training."""

    def read(self) -> ImageData:
        raise AssertionError("the batches are there already")

    def loader(self, split: str) -> Any:
        return BATCHES

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch


class Plain(LightningModule):
    """The least that Lightning needs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer(self.parameters())


class Stopwatch(Callback):
    """Times from the first step to the end of the training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ms = 1000 * (time.perf_counter() - self.begin) / trainer.global_step


def bare() -> float:
    """Train in a loop of our own; return milliseconds a step."""
    model = network()
    updates = optimizer(model.parameters())
    begin = time.perf_counter()
    for images, labels in BATCHES:
        updates.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        updates.step()
    return 1000 * (time.perf_counter() - begin) / STEPS


def lightning() -> float:
    """Train with Lightning alone; return milliseconds a step."""
    watch = Stopwatch()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Plain(), BATCHES)
    return watch.ms


def ours() -> float:
    """Train with everything that `train.py` has on; return milliseconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["data=digits", "epochs=1", "trainer.accelerator=cpu", "data.val_fraction=0"]
        experiment, config = prepare(overrides, folder)
        settings = {key: value for key, value in config["data"].items() if key != "_target_"}
        experiment.classifier.backbone = network()
        watch = Stopwatch()
        experiment.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        experiment.trainer.fit(experiment.classifier, datamodule=PreparedData(**settings))
        return watch.ms


def main() -> None:
    """Print the table."""
    resolve.register()
    sides = {"bare loop": bare, "Lightning, nothing on": lightning, "ours, everything on": ours}
    figures = interleave(sides, ROUNDS)
    beyond = [
        a - b
        for a, b in zip(
            figures["ours, everything on"], figures["Lightning, nothing on"], strict=True
        )
    ]
    print("## Overhead\n")
    print(table(figures, "ms a step", 2, "bare loop"))
    print(f"Ours beyond Lightning: {sorted(beyond)[len(beyond) // 2]:.2f} ms, median.\n")
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main()

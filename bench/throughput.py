"""Images a second of training: our command's parts against the usual recipe, the same network.

    python -m bench.throughput [mobilenetv3:8 mobilenetv3:16 shufflenetv2:8]

The usual recipe: torchvision's transforms image by image in 2 workers, default memory format, the
loss and the accuracy logged at every step. Whole epochs, of fewer images than CIFAR-10's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from bench.input import Images, UsualImages, random_images
from bench.overhead import Stopwatch
from bench.turns import conditions, table, take_turns
from cifar_lightning import config as configuration
from cifar_lightning import identity
from cifar_lightning.experiment import Experiment, build

IMAGES, BATCH, ROUNDS = 5_120, 256, 5
NETWORKS = ("mobilenetv3:8", "mobilenetv3:16", "shufflenetv2:8")


class Usual(LightningModule):
    """What most scripts do."""

    def __init__(self, backbone: nn.Module, steps: int) -> None:
        super().__init__()
        self.backbone, self.steps = backbone, steps
        self.accuracy = MulticlassAccuracy(10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.backbone(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=0.1)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.accuracy(logits, labels)
        self.log("train/acc", self.accuracy, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def prepared(model: str, stride: str, folder: str) -> tuple[Experiment, Images]:
    """Build what `train.py` builds, with random images of the right size for its data."""
    overrides = [
        f"model={model}",
        f"model.output_stride={stride}",
        f"batch_size={BATCH}",
        "epochs=1",
        "data.val_fraction=0",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(str(configuration.CONF_DIR), version_base="1.3"):
        config = identity.resolve(compose("train", overrides, return_hydra_config=True))
    experiment = build(config, Path(folder))
    names = ("_target_", "root", "mirrors", "md5", "connect_timeout")
    shared = {key: value for key, value in config["data"].items() if key not in names}
    data = Images(**shared, count=IMAGES)
    data.augment = experiment.data.augment
    return experiment, data


def ours(model: str, stride: str) -> float:
    """Train an epoch as our command does; return images per second."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, data = prepared(model, stride, folder)
        experiment.trainer.logger = TensorBoardLogger(folder, name="")
        return _speed(experiment.trainer, experiment.classifier, datamodule=data)


def usual(model: str, stride: str) -> float:
    """Train an epoch of the usual recipe; return images per second."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, _ = prepared(model, stride, folder)
        network = experiment.classifier.backbone.to(memory_format=torch.contiguous_format)
        loader = DataLoader(
            UsualImages(*random_images(IMAGES)),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=2,
        )
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=folder, enable_model_summary=False
        )
        # Its progress bar costs what it costs, but is not shown.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return _speed(trainer, Usual(network, len(loader)), train_dataloaders=loader)


def _speed(trainer: Trainer, module: LightningModule, **data: Any) -> float:
    watch = Stopwatch()
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(module, **data)
    return 1000 * BATCH / watch.ms


def main() -> None:
    """Print a table for each network."""
    identity.register()
    for name in sys.argv[1:] or NETWORKS:
        model, _, stride = name.partition(":")
        sides = {
            "usual recipe": lambda model=model, stride=stride: usual(model, stride),
            "ours": lambda model=model, stride=stride: ours(model, stride),
        }
        figures = take_turns(sides, ROUNDS)
        print(f"## Training throughput: {model}, output stride {stride}\n")
        print(table(figures, "images/s", 0, "usual recipe"))
        print(conditions(ROUNDS), flush=True)


if __name__ == "__main__":
    main()

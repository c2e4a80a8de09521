"""The baseline recipe, and what `train.py` would build beside it.

Torchvision's transforms image by image in worker processes, default memory format, the loss and the
accuracy logged at every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from cifar_lightning.config import schema
from cifar_lightning.runs import resolve
from cifar_lightning.training.build import Experiment, build
from cifar_lightning.training.module import parameter_groups

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def prepare(overrides: list[str], folder: str) -> tuple[Experiment, dict[str, Any]]:
    """Build what `train.py` builds from these overrides; return its configuration with it."""
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        config = resolve.resolve(compose("train", overrides, return_hydra_config=True))
    experiment = build(config, Path(folder))
    experiment.trainer.logger = TensorBoardLogger(folder, name="")
    return experiment, config


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Draw pixels of shape (count, 3, 32, 32), uint8, with labels."""
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % 10


class BaselineImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's data sets give them: PIL images made of arrays.

    Args:
        images: Shape (N, 3, 32, 32), uint8.
        labels: Shape (N,).
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: list[float], std: list[float]) -> None:
        self.pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def baseline_loader(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    workers: int = 2,
    mean: list[float] = MEAN,
    std: list[float] = STD,
) -> DataLoader[tuple[Tensor, int]]:
    """Make the baseline training loader of images of shape (N, 3, 32, 32), uint8."""
    return DataLoader(
        BaselineImages(images, labels, mean, std),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )


class Baseline(LightningModule):
    """What most scripts do, with our network, optimizer, schedule and label smoothing.

    Args:
        backbone: The network.
        config: Resolved: of the other three.
        steps: Of the whole training.
    """

    def __init__(self, backbone: nn.Module, config: dict[str, Any], steps: int) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.contiguous_format)
        self.config, self.steps = config, steps
        self.accuracy = MulticlassAccuracy(config["data"]["num_classes"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.backbone(images)
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=self.config["label_smoothing"]
        )
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.accuracy(logits, labels)
        self.log("train/acc", self.accuracy, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = instantiate(self.config["optim"])(parameter_groups(self.backbone))
        schedule = instantiate(self.config["scheduler"])(optimizer, total_steps=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

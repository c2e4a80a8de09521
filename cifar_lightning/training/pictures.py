"""Images that a training run shows in TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid

from cifar_lightning.comparison import plots
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.system.escaping import visible

log = logging.getLogger(__name__)


@contextmanager
def _only_a_view(what: str) -> Iterator[None]:
    """Go on without a picture that can't be drawn."""
    try:
        yield
    except Exception as error:
        log.warning("%s are not drawn: %s: %s", what, type(error).__name__, error)
        log.debug("not drawn", exc_info=True)


class TrainingImages(Callback):
    """Draws the first images that the training sees, augmented as they are, in TensorBoard."""

    COUNT = 32

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > 0 or batch_idx > 0:
            return
        normalize = trainer.datamodule.normalize  # type: ignore[attr-defined]
        with _only_a_view("the training images"):
            grid = make_grid(normalize.inverse(batch[0][: self.COUNT]).cpu())
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image("train/images", grid)


class MisclassifiedImages(Callback):
    """Draws the first test images that are taken for another class (→) in TensorBoard."""

    COUNT = 32

    def __init__(self) -> None:
        self._images: list[Any] = []
        self._names: list[str] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._names = [], []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        room = self.COUNT - len(self._images)
        if room == 0 or not trainer.is_global_zero:
            return
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        images, labels = batch
        predicted = outputs["logits"].argmax(1)
        wrong = (predicted != labels).nonzero().flatten()[:room]
        names = [visible(name) for name in data.images.classes]
        pixels = data.normalize.inverse(images[wrong]).permute(0, 2, 3, 1)
        self._images += list(pixels.cpu().numpy())
        self._names += [
            f"{names[true]}\n→ {names[taken]}"
            for true, taken in zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)
        ]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._images:
            return
        with _only_a_view("the misclassified images"):
            figure = plots.named_images(self._images, self._names)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure("test/misclassified", figure, trainer.global_step)

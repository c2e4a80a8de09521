"""Images that a training run shows in TensorBoard."""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from cifar_lightning.comparison import plots
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.system.escaping import visible

log = logging.getLogger(__name__)

COUNT = 32  # images in a picture


def _draw(trainer: Trainer, what: str, draw: Callable[[SummaryWriter], None]) -> None:
    """Draw in TensorBoard, if there is one; the run goes on without what can't be drawn."""
    try:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                draw(logger.experiment)
    except Exception as error:
        log.warning("%s are not drawn: %s: %s", what, type(error).__name__, error)
        log.debug("not drawn", exc_info=True)


class TrainingImages(Callback):
    """Draws the first images that the training run sees, augmented as they are, in TensorBoard."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > 0 or batch_idx > 0:
            return
        normalize = trainer.datamodule.normalize  # type: ignore[attr-defined]

        def draw(board: SummaryWriter) -> None:
            images = normalize.inverse(batch[0][:COUNT]).cpu()
            board.add_image("train/images", make_grid(images))

        _draw(trainer, "the training images", draw)


class MisclassifiedImages(Callback):
    """Draws test images of each class that are taken for another one (→) in TensorBoard."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found: dict[int, list[tuple[Any, str]]] = defaultdict(list)  # by the true class

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if not trainer.is_global_zero:
            return
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        images, labels = batch
        predicted = outputs["logits"].argmax(1)
        names = [visible(name) for name in data.images.classes]
        each = max(1, COUNT // len(names))
        for index in (predicted != labels).nonzero().flatten().tolist():
            true, taken = int(labels[index]), int(predicted[index])
            if len(self._found[true]) < each:
                pixels = data.normalize.inverse(images[index]).permute(1, 2, 0)
                name = f"{names[true]}\n→ {names[taken]}"
                self._found[true].append((pixels.cpu().numpy(), name))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [one for _, several in sorted(self._found.items()) for one in several]
        if not found:
            return
        images, names = zip(*found[:: -(-len(found) // COUNT)], strict=True)

        def draw(board: SummaryWriter) -> None:
            figure = plots.named_images(images, names)
            board.add_figure("weights/misclassified", figure, trainer.global_step)

        _draw(trainer, "the misclassified images", draw)

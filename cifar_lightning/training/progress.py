"""How far a training run is: a bar on a terminal, a line an epoch, the time left."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer, TQDMProgressBar

from cifar_lightning.data.augmentation import Kind
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.system.formatting import duration
from cifar_lightning.system.progress import Progress

log = logging.getLogger(__name__)


def bar_wanted() -> bool:
    """Tell whether somebody sees a progress bar; ``TQDM_DISABLE=1`` is how others ask for none."""
    return sys.stdout.isatty() and not os.environ.get("TQDM_DISABLE")


class Bar(TQDMProgressBar):
    """Lightning's bar of each epoch, counted from 1, without the folder of the logger."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        epoch = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(epoch)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}


class Estimate(Callback):
    """Says after the first steps how long the training run will take, and why it ends early.

    Where there is no bar, it also says now and then how far a long epoch is.
    """

    WARM_STEPS = 5  # the first ones are slower and don't count
    STEP = 20
    FIRST_S = 60.0  # an epoch that takes longer is a long one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = 0
        self._warm_since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        what = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        batches = int(trainer.num_training_batches)
        self._epoch = Progress(what, batches, "batches", bar=False, first_s=self.FIRST_S)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        if trainer.is_global_zero and not trainer.progress_bar_callback:
            self._epoch.at(batch_idx + 1)
        if self._steps in (self.WARM_STEPS, self.STEP) and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # what was launched until then counts
        if self._steps == self.WARM_STEPS:
            self._warm_since = time.perf_counter()
        if self._steps == self.STEP:
            per_batch = (time.perf_counter() - self._warm_since) / (self.STEP - self.WARM_STEPS)
            data = _data(trainer)
            steps = data.length.steps - trainer.global_step
            left = duration(steps * trainer.accumulate_grad_batches * per_batch)
            grows = data.transforms(Kind.PROGRESSIVE)
            log.info("%s %s for the training", "at least" if grows else "about", left)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, steps = trainer.global_step, _data(trainer).length.steps
        if step < steps:
            epoch = trainer.current_epoch
            log.info("ended early, after step %d of %d in epoch %d", step, steps, epoch)


def log_epoch(trainer: Trainer, values: Mapping[str, Any], seconds: float) -> None:
    """Say in one line what an epoch has brought; beside a bar it is for ``train.log`` alone.

    Args:
        trainer: At the end of an epoch.
        values: The training's metrics in this epoch, with the learning rate at its end.
        seconds: How long it took, with its validation.
    """
    if not trainer.is_global_zero:
        return
    metrics = {k: float(v) for k, v in (trainer.callback_metrics | dict(values)).items()}
    figures = [
        f"{split} loss {metrics[f'{split}/loss']:.3f}, acc {100 * metrics[f'{split}/acc']:.2f} %"
        for split in ("train", "val")
        if f"{split}/loss" in metrics
    ]
    (timer,) = (one for one in trainer.callbacks if isinstance(one, Timer))  # type: ignore[attr-defined]
    done, steps = trainer.global_step, _data(trainer).length.steps
    log.log(
        logging.DEBUG if trainer.progress_bar_callback else logging.INFO,
        "epoch %d of %d: %s; lr %.3g; %.3g s, %s left",
        trainer.current_epoch + 1,
        trainer.max_epochs,
        "; ".join(figures),
        metrics["lr"],
        seconds,
        duration(timer.time_elapsed() * (steps - done) / done),
    )


def _data(trainer: Trainer) -> ImageDataModule:
    return cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]

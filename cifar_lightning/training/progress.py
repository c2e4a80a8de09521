"""The progress bar."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from cifar_lightning.data.augmentation import Kind
from cifar_lightning.system.formatting import duration

log = logging.getLogger(__name__)


class RunProgressBar(ProgressBar):
    """One bar over the whole training: loss, validation accuracy, time left.

    The loss is fetched from the device only when the bar is drawn. After the first steps the whole
    duration is estimated in a line of its own.
    """

    WARM_STEPS = 5  # the first ones are slower and don't count for the estimate
    ESTIMATE_STEP = 20

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._accuracy = ""
        self._steps = 0
        self._warm_since = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.num_training_batches) * int(trainer.max_epochs or 0)
        self._bar = tqdm(
            total=total,
            initial=trainer.global_step,
            desc="train",
            unit="step",
            smoothing=0,  # the mean speed includes validation
            mininterval=0.5 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
            disable=not self._enabled,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert self._bar is not None
        self._steps += 1
        if self._steps == self.WARM_STEPS:
            self._warm_since = time.perf_counter()
        if self._steps == self.ESTIMATE_STEP:
            self._estimate(trainer)
        if self._bar.update():
            self._bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}{self._accuracy}")

    def _estimate(self, trainer: Trainer) -> None:
        assert self._bar is not None
        per_step = (time.perf_counter() - self._warm_since) / (self.ESTIMATE_STEP - self.WARM_STEPS)
        remaining = ((self._bar.total or 0) - trainer.global_step) * per_step
        grows = trainer.datamodule.augment[Kind.PROGRESSIVE]  # type: ignore[attr-defined]
        if self._enabled:
            log.info(
                "%s %s for the training", "at least" if grows else "about", duration(remaining)
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None and "val/acc" in trainer.callback_metrics:
            self._accuracy = f", val acc {100 * float(trainer.callback_metrics['val/acc']):.2f} %"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

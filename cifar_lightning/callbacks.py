"""What a training needs beside the LightningModule: seeds, a progress bar, the benchmark."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from cifar_lightning.data import epoch_seed
from cifar_lightning.measure import Request, measure

log = logging.getLogger(__name__)


class EpochSeed(Callback):
    """Seeds every generator at the start of each epoch, so a continued run draws the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Rank + 1: rank 0 of this stream is the training order's.
        seed = epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank + 1)
        seed_everything(seed, verbose=False)


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
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
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
        if self._enabled:
            log.info("about %s for the training", duration(remaining))

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


class Benchmark(Callback):
    """After testing, measures the tested run.

    Args:
        variants: Ways to execute the backbone, as `variants.check` knows them.
        threads: Numbers of CPU threads to measure with.
        protocol: ``full`` or ``quick``.

    Raises:
        UserError: If a variant or the protocol does not exist or a thread number is below 1.
    """

    def __init__(self, variants: list[str], threads: list[int], protocol: str) -> None:
        self.request = Request(variants, threads, protocol).checked("benchmark.")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        log.info("measuring latency (%s protocol)", self.request.protocol)
        measurements = measure(
            Path(trainer.default_root_dir), data, self.request, trainer.strategy.root_device
        )
        scalars = {
            f"latency/{m.variant}-t{m.threads}/{key}": m.latency[key]
            for m in measurements
            for key in ("mean_ms", "p95_ms")
            if m.latency.get(key) is not None
        }
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)


def duration(seconds: float) -> str:
    """Write seconds as people say them: ``45 s``, ``12 min``, ``1 h 40 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

"""What a training needs beside the LightningModule: seeds, looking out, progress, the benchmark."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.utils import make_grid
from tqdm import tqdm

from cifar_lightning import interruption, plots
from cifar_lightning.augment import Kind
from cifar_lightning.data import ImageDataModule, epoch_seed
from cifar_lightning.errors import NotFinite
from cifar_lightning.escaping import visible
from cifar_lightning.files import write_atomically
from cifar_lightning.finished import duration
from cifar_lightning.measure import Request, measure
from cifar_lightning.results import Measurement

log = logging.getLogger(__name__)


class EpochSeed(Callback):
    """Seeds every generator at the start of each epoch, so a continued run draws the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Rank + 1: rank 0 of this stream is the training order's.
        seed = epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank + 1)
        seed_everything(seed, verbose=False)


class NameInCheckpoints(Callback):
    """Writes into each checkpoint which run it is of."""

    KEY = "run"

    def __init__(self, name: str) -> None:
        self.name = name

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[self.KEY] = self.name


class StopWhenAsked(Callback):
    """Ends the work after the current batch when a signal has come.

    Nothing is saved then: the end of the last finished epoch is where it goes on.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interruption.take_over()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interruption.take_over()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if _any_process(trainer, interruption.received() is not None):
            raise interruption.error()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Several processes have different numbers of these batches, and could not agree.
        if trainer.world_size == 1:
            interruption.check()

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.on_validation_batch_end(trainer)


class FiniteLoss(Callback):
    """Ends a training whose loss is no number any more.

    The losses are looked at together, so the device is waited for only now and then.
    """

    EVERY = 50  # steps

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        if len(self._losses) == self.EVERY:
            self._look(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, int(trainer.num_training_batches))

    def _look(self, trainer: Trainer, batches: int) -> None:
        if not self._losses:
            return
        bad = ~torch.stack(self._losses).isfinite().cpu()
        index = int(bad.long().argmax()) if bad.any() else len(bad) - 1
        step, loss = batches - len(bad) + index + 1, float(self._losses[index])
        self._losses = []
        if _any_process(trainer, bool(bad.any())):
            raise NotFinite(
                f"the training loss is {loss if bad.any() else 'not finite in another process'} "
                f"in epoch {trainer.current_epoch + 1}, step {step} of "
                f"{trainer.num_training_batches}; a lower optim.lr, a longer scheduler.warmup or "
                "precision=32-true may help"
            )


def _any_process(trainer: Trainer, flag: bool) -> bool:
    """Let all processes of a training know when it is so in one of them."""
    if trainer.world_size == 1:
        return flag
    return bool(trainer.strategy.reduce_boolean_decision(flag, all=False))


class AveragedWeights(WeightAveraging):
    """Keeps an exponential average of the weights; it is validated, chosen, tested and shipped.

    Args:
        decay: The average's share of each new average; the rest is the weights after a step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # NOTE: Lightning 2.6 loads the last step's weights over the average whenever a checkpoint
        # is loaded; only a training that continues goes on from those.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint only by one that is whole and on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


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


class MovableCheckpoint(ModelCheckpoint):
    """Knows its files and its best score also after the outputs were moved.

    Checkpoints hold the names of files alone: nothing of where they lay.
    """

    def state_dict(self) -> dict[str, Any]:
        return _placed(super().state_dict(), "")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(_placed(state_dict, str(self.dirpath)))


def _placed(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """Put a ModelCheckpoint's files into another folder, by their names."""

    def there(path: str) -> str:
        return str(Path(folder) / Path(path).name) if path else path

    placed = dict(state, dirpath=folder)
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        placed[key] = there(placed[key])
    placed["best_k_models"] = {there(key): score for key, score in placed["best_k_models"].items()}
    return placed


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


class Benchmark:
    """Measures what a finished run has no measurement of.

    Args:
        variants: Ways to execute the backbone, as `variants.check` knows them; none measures
            nothing, so that the same command can do it later.
        threads: Numbers of CPU threads to measure with.
        protocol: ``full`` or ``quick``.

    Raises:
        UserError: If a variant or the protocol does not exist or a thread number is below 1.
    """

    def __init__(self, variants: list[str], threads: list[int], protocol: str) -> None:
        self.request = Request(variants, threads, protocol).checked("benchmark.", may_be_empty=True)

    def measure(
        self, folder: Path, data: ImageDataModule, device: torch.device
    ) -> list[Measurement]:
        """Measure what the run in a folder has no measurement of yet."""
        if not any(self.request.missing(folder, device)):
            return []
        log.info("measuring latency (%s protocol)", self.request.protocol)
        return measure(folder, data, self.request, device, only_missing=True)

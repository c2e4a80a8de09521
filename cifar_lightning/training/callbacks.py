"""Callbacks of a training run: seeds, stopping, the NaN guard, checkpoints, EMA, the benchmark."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cifar_lightning.benchmark.measure import BenchmarkSpec, measure
from cifar_lightning.data.images import epoch_seed
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import NotFinite
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.system import signals
from cifar_lightning.system.files import write_atomically

log = logging.getLogger(__name__)


class EpochSeed(Callback):
    """Seeds every generator at the start of each epoch, so a continued run draws the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Rank + 1: rank 0 of this stream is the training order's.
        seed = epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank + 1)
        seed_everything(seed, verbose=False)


class RunState(Callback):
    """Writes into each checkpoint which run it is of, and whether the training ended early.

    Lightning forgets the latter: a run that was killed before it was tested would train on.
    """

    NAME, STOPPED = "run", "stopped"

    def __init__(self, name: str) -> None:
        self.name = name

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint |= {self.NAME: self.name, self.STOPPED: trainer.should_stop}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        trainer.should_stop = checkpoint[self.STOPPED]


class StepLimit(Callback):
    """Validates after the last one of ``max_steps``: Lightning does so only where an epoch ends."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step >= trainer.max_steps


class GracefulShutdown(Callback):
    """Ends the work after the current batch when a signal has come.

    Nothing is saved then: the end of the last finished epoch is where it goes on.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.take_over()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.take_over()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if _any_process(trainer, signals.received() is not None):
            raise signals.error()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Several processes have different numbers of these batches, and could not agree.
        if trainer.world_size == 1:
            signals.check()

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.on_validation_batch_end(trainer)


class TerminateOnNaN(Callback):
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


class EMA(WeightAveraging):
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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint only by one that is whole and on the disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


class RelocatableCheckpoint(ModelCheckpoint):
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


class Benchmark:
    """Measures what a finished run has no measurement of.

    Args:
        variants: Ways to execute the backbone, as `registry.check` knows them; none measures
            nothing, so that the same command can do it later.
        threads: Numbers of CPU threads to measure with.
        protocol: ``full`` or ``quick``.

    Raises:
        UserError: If a variant or the protocol does not exist or a thread number is below 1.
    """

    def __init__(self, variants: list[str], threads: list[int], protocol: str) -> None:
        self.spec = BenchmarkSpec(variants, threads, protocol).checked(
            "benchmark.", may_be_empty=True
        )

    def measure(
        self, folder: Path, data: ImageDataModule, device: torch.device
    ) -> list[Measurement]:
        """Measure what the run in a folder has no measurement of yet."""
        if not any(self.spec.missing(folder, device)):
            return []
        log.info("measuring latency (%s protocol)", self.spec.protocol)
        return measure(folder, data, self.spec, device, only_missing=True)

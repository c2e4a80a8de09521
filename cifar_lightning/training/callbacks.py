"""Callbacks of a training run: seeds, early ends, checkpoints."""

import io
import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cifar_lightning.data.images import epoch_seed
from cifar_lightning.errors import NotFinite
from cifar_lightning.system import signals
from cifar_lightning.system.files import write_atomically
from cifar_lightning.training.averaging import EMA


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
    """Ends the work when a signal has come, or when the training loss became NaN or infinite.

    Nothing is saved then: the end of the last finished epoch is where it goes on.

    A device is waited for only now and then, so losses are looked at together. One process looks
    for signals after each batch; several, which wait for each other then, together with the losses.
    """

    EVERY = 50  # batches

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.take_over()
        # NOTE: Lightning 2.6 lets all processes agree on SIGTERM at every batch, though the signal
        # is ours by now.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        if trainer.world_size == 1:
            signals.check()
        if len(self._losses) == self.EVERY:
            self._look(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._losses:
            self._look(trainer, int(trainer.num_training_batches))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Several processes have different numbers of these batches, and could not agree.
        if trainer.world_size == 1:
            signals.check()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.take_over()

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.on_validation_batch_end(trainer)

    def _look(self, trainer: Trainer, batches: int) -> None:
        losses: list[float] = torch.stack(self._losses).tolist()
        self._losses = []
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        diverged, stopped = _in_any_process(trainer, bool(bad), signals.received() is not None)
        if stopped:
            raise signals.error()
        if diverged:
            loss = losses[bad[0]] if bad else "not finite in another process"
            step = batches - len(losses) + bad[0] + 1 if bad else batches
            compiled = getattr(trainer.lightning_module, "is_compiled", False)
            raise NotFinite(
                f"the training loss is {loss} in epoch {trainer.current_epoch + 1}, step {step} of "
                f"{trainer.num_training_batches}; a lower optim.lr, a longer scheduler.warmup"
                f"{', compile=false' if compiled else ''} or precision=32-true may help"
            )


def _in_any_process(trainer: Trainer, *flags: bool) -> list[bool]:
    """Let all processes of a training run know, by one exchange, what is so in one of them."""
    if trainer.world_size == 1:
        return [*flags]
    counts = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    return [count > 0 for count in trainer.strategy.reduce(counts, reduce_op="sum").tolist()]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint only by one that is whole and on the disk.

    Args:
        best: The one that is tested, and that no training run is continued from: it goes without
            what only that needs, which is two thirds of it.
    """

    def __init__(self, best: Path) -> None:
        super().__init__()
        self._best = best

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        if Path(path) == self._best:
            resuming = {"optimizer_states", "lr_schedulers", EMA.CURRENT}
            checkpoint = {key: one for key, one in checkpoint.items() if key not in resuming}
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


class RelocatableCheckpoint(ModelCheckpoint):
    """Keeps only the best score, so that a run whose outputs were moved goes on with its best one.

    Lightning's holds absolute paths. Here the file's name is always the same.

    Args:
        path: Of the file.
        monitor: The metric of which the highest value is kept; None keeps the last epoch.
    """

    def __init__(self, path: Path, monitor: str | None) -> None:
        super().__init__(
            path.parent,
            path.stem,
            monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score = state_dict["best_model_score"]
        if self.monitor is None:
            self.best_model_path = self.format_checkpoint_name({})
        elif score is not None:
            self.best_model_path = self.kth_best_model_path = self.format_checkpoint_name({})
            self.best_model_score = self.kth_value = score
            self.best_k_models = {self.best_model_path: score}

"""An exponential moving average of the weights."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(Callback):
    """Keeps an exponential moving average of the weights; it is validated, chosen, tested, shipped.

    Parameters and buffers of floating point are averaged, by one function over all of them, which
    a GPU is not waited for. BatchNorm's counters of batches stay as they are.

    NOTE: Lightning's `WeightAveraging` copies the module before that is moved to its device, and
    torch's `AveragedModel` reads its counter on the device at every step.

    Args:
        decay: The average's fraction of each new average; the rest is the weights after a step.
    """

    CURRENT = "current_model_state"  # in checkpoints: the weights that training goes on with

    def __init__(self, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self._step = 0  # the last one whose weights are in the average
        self._restored: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}  # the module's own tensors
        self.average: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with what a checkpoint held, or the first weights; the module is on its device."""
        state = pl_module.state_dict()
        self._current = {name: one for name, one in state.items() if one.is_floating_point()}
        self.average = {name: one.clone() for name, one in self._current.items()}
        if self._restored:
            for name, one in self.average.items():
                one.copy_(self._restored[name])
            self._restored = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        if self._step == 0:
            self._copy(self.average, self._current)  # the average begins with the first step's
        else:
            self._update([*self.average.values()], [*self._current.values()], 0)
        self._step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy(self._current, self.average)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        current = checkpoint["state_dict"]
        checkpoint |= {"state_dict": current | self.average, self.CURRENT: current}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # What is tested is the average, which is loaded already.
        if trainer.state.fn == TrainerFn.FITTING:
            self._restored = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint[self.CURRENT])

    def _swap(self) -> None:
        before = {name: one.clone() for name, one in self._current.items()}
        self._copy(self._current, self.average)
        self._copy(self.average, before)

    @staticmethod
    @torch.no_grad()
    def _copy(into: dict[str, Tensor], source: dict[str, Tensor]) -> None:
        for name, one in into.items():
            one.copy_(source[name])

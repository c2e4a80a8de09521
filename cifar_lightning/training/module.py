"""The LightningModule: loss, metrics and optimizer around a backbone that it is handed."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cifar_lightning.benchmark.evaluate import calibration
from cifar_lightning.config import components
from cifar_lightning.data.images import Batch
from cifar_lightning.models.interfaces import InitializedFromImages
from cifar_lightning.system import signals
from cifar_lightning.training.distillation import Distillation
from cifar_lightning.training.progress import log_epoch

Stage = Literal["train", "val", "test"]
INITIAL_IMAGES = 5000  # airbench's


class ImageClassifier(LightningModule):
    """Trains a backbone with cross-entropy.

    Losses and counts stay on the device and are read once an epoch, so no step waits for it.

    ``ImageClassifier.load_from_checkpoint("best.ckpt")`` builds the network as the run did; its
    builder must be one that a file in ``conf/model`` names.

    Args:
        model: The network's node of the configuration, as plain values; checkpoints carry it.
        backbone: Maps (B, 3, 32, 32) to (B, num_classes); None builds what ``model`` says.
        optimizer: Called with parameter groups; needed for training only.
        scheduler: Called with the optimizer and ``total_steps``; stepped once per optimizer step.
        label_smoothing: Of the training loss; validation and test losses go without.
        channels_last: Memory format while training.
        compile: Train with the backbone compiled; a mode of `torch.compile`, or True for
            ``default``. Validation and testing go without: for them alone it would be compiled
            once more, and for batches of other sizes again.
        initialized: Whether the backbone begins with weights of an earlier run.
        distillation: Mixes a teacher into the training loss.
    """

    def __init__(
        self,
        model: dict[str, Any],
        backbone: nn.Module | None = None,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool | str = False,
        initialized: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("model", "label_smoothing", "channels_last", logger=False)
        if backbone is None:
            backbone = cast(nn.Module, components.construct("model", model))
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(memory_format=memory_format)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if compile:
            # A function, no module, so the checkpoint's keys stay as they are.
            mode = "default" if compile is True else compile
            self._compiled = torch.compile(self.backbone.forward, mode=mode)
        self._compiling = self.is_compiled  # until the first step has done it
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.initialized = initialized
        self.distillation = distillation
        self.tested: dict[str, Any] | None = None  # the metrics, as soon as they are known
        self._steps: dict[Stage, list[tuple[Tensor, Tensor, int]]]
        self._steps = {"train": [], "val": [], "test": []}

    def setup(self, stage: str) -> None:
        """Let a network that begins with its training images see some, unless weights are loaded.

        Before the processes of a training run take over the first one's weights.
        """
        fresh = stage == "fit" and self.trainer.ckpt_path is None and not self.initialized
        if fresh and isinstance(self.backbone, InitializedFromImages):
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.backbone.initialize_from(calibration(data, INITIAL_IMAGES))

    def on_fit_start(self) -> None:
        """Train in training mode, whatever was done before: Lightning leaves modes alone."""
        self.backbone.train()

    @property
    def is_compiled(self) -> bool:
        """Whether the backbone is compiled for training steps."""
        return self._compiled is not None

    def forward(self, images: Tensor) -> Tensor:
        compiled = self._compiled if self.training else None
        logits: Tensor = (compiled or self.backbone)(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with self._ended_at_once():
            loss, _ = self._step(batch, "train", self.label_smoothing)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self._ended_at_once():
            super().backward(loss, *args, **kwargs)
        self._compiling = False

    def _ended_at_once(self) -> AbstractContextManager[None]:
        """Let signals end the first step, which compiles; several processes have to agree first."""
        if self._compiling and self.trainer.world_size == 1:
            return signals.immediate()
        return nullcontext()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        _, logits = self._step(batch, "test")
        return {"logits": logits}

    def _step(
        self, batch: Batch, stage: Stage, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss and the logits, and keep what the metrics are made of."""
        images, labels = batch
        logits = self(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if stage == "train" and self.distillation is not None:
            loss = self.distillation(images, logits, loss)
        # Mixed images have a fraction of each class; the largest one is the label.
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        # Kept as they are: updating two metrics here takes ten times as long.
        correct = (logits.detach().argmax(1) == classes).sum()
        self._steps[stage].append((loss.detach(), correct, len(labels)))
        return loss, logits

    def _epoch_metrics(self, stage: Stage) -> dict[str, Any]:
        """Make a stage's metrics out of its steps, over all processes."""
        sums = torch.zeros(3, device=self.device)
        if self._steps[stage]:  # another process may have all images of a tiny split
            losses, correct, counts = zip(*self._steps[stage], strict=True)
            images = torch.tensor(counts, device=self.device)
            parts = (torch.stack(losses) * images, torch.stack(correct), images)
            sums = torch.stack([part.sum().float() for part in parts])
            self._steps[stage].clear()
        loss, right, total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return {f"{stage}/loss": loss / total, f"{stage}/acc": right / total}

    def on_train_epoch_start(self) -> None:
        self._steps["train"].clear()  # of an epoch that was interrupted
        self._epoch_began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        values = self._epoch_metrics("train")
        values["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict(values, logger=False)
        # Lightning would write them after the checkpoint. A run killed in between would go on with
        # the next epoch, and this one's points were lost.
        for logger in self.loggers:
            logger.log_metrics(values, step=self.trainer.global_step - 1)
            logger.save()
        log_epoch(self.trainer, values, time.perf_counter() - self._epoch_began)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._epoch_metrics("val"))

    def on_test_epoch_end(self) -> None:
        self.tested = self._epoch_metrics("test")
        self.log_dict(self.tested)

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None
        assert self.scheduler is not None
        optimizer = self.optimizer(parameter_groups(self.backbone))
        total = self.trainer.datamodule.length.steps  # type: ignore[attr-defined]
        scheduler = self.scheduler(optimizer, total_steps=total)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Keep weight decay off BatchNorm and biases, which have one dimension.

    Args:
        network: Its learnable parameters are divided.

    Returns:
        Two groups: weights of convolutions and linear layers, decayed as the optimizer says, and
        everything else with ``weight_decay`` 0. ``dense`` tells which of the first are filters that
        each see all channels and whose scale a BatchNorm takes out: see `Muon`.
    """
    # NOTE: a convolution has a bias of its own where no BatchNorm follows. That holds for all
    # networks here (tests/test_muon.py); one without either would keep its filters' norm.
    dense = {
        id(layer.weight)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.bias is None
    }
    learnable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in learnable if parameter.ndim > 1]
    kept = [parameter for parameter in learnable if parameter.ndim <= 1]
    return [
        {"params": decayed, "dense": [id(parameter) in dense for parameter in decayed]},
        {"params": kept, "weight_decay": 0.0},
    ]

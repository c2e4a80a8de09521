"""Knowledge distillation: a student learns from a teacher's logits as well as from the labels."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class Distillation:
    """Mixes the labels' loss with the distance to a teacher's softened predictions.

    From Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015): the loss
    is ``(1 - alpha) * loss + alpha * T^2 * KL(teacher / T || student / T)`` at temperature T.
    The teacher sees the very images that the student sees, augmented and mixed.

    It is no part of the student: not in its parameters, its checkpoints or its averages.

    Args:
        backbone: The teacher, with trained weights.
        teacher: Its run's name.
        temperature: Divides both logits; above 1 it shows more of how alike classes are.
        alpha: Fraction of the teacher in the loss.
    """

    def __init__(self, backbone: nn.Module, teacher: str, temperature: float, alpha: float) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.teacher = teacher
        self.temperature = temperature
        self.alpha = alpha
        self.device: torch.device | None = None

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """Mix in the teacher.

        Args:
            images: Shape (B, 3, 32, 32), as the student got them.
            logits: The student's, shape (B, classes).
            loss: Of the labels alone.
        """
        if self.device != images.device:
            self.device = images.device
            self.backbone.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            wanted = self.backbone(images)
        distance = functional.kl_div(
            functional.log_softmax(logits.float() / self.temperature, dim=1),
            functional.log_softmax(wanted.float() / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * distance

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the teacher is frozen; copies of the student share it

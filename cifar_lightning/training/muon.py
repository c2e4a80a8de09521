"""Muon: momentum whose matrices are made orthogonal, for the filters of dense convolutions."""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

# Of Newton and Schulz's iteration: the steepest at 0 for which singular values end near 1 (Jordan
# 2024, kellerjordan.github.io/posts/muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


class Muon(torch.optim.SGD):
    """Muon for dense filters (Jordan et al. 2024), SGD with Nesterov momentum for all else.

    A filter of shape (out, in, height, width) is the matrix (out, in * height * width). Its norm is
    kept at the square root of out, so it has no weight decay: only for filters whose scale a
    BatchNorm takes out. Those of a convolution in groups share no inputs, so they are no matrix.

    `torch.optim.Muon` takes matrices alone.

    Args:
        params: Groups of parameters; ``dense`` tells of each one of a group whether it is a dense
            filter (see `parameter_groups`), and a group without it has none.
        lr: Learning rate of what is not a dense filter.
        momentum: Of the same.
        weight_decay: Of the same.
        muon_lr: Learning rate of dense filters.
        muon_momentum: Of dense filters.
        steps: Of Newton and Schulz's iteration.
        fused: As torch's SGD takes it, for what is not a dense filter.

    Raises:
        ValueError: If one of them is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        muon_lr: float = 0.12,
        muon_momentum: float = 0.6,
        steps: int = 3,
        fused: bool | None = None,
    ) -> None:
        for name, rate in (("lr", lr), ("muon_lr", muon_lr), ("weight_decay", weight_decay)):
            if not rate >= 0:
                raise ValueError(f"{name}={rate}: must be 0 or more")
        for name, part in (("momentum", momentum), ("muon_momentum", muon_momentum)):
            if not 0 <= part < 1:
                raise ValueError(f"{name}={part}: must be 0 or more, less than 1")
        if steps < 1:
            raise ValueError(f"steps={steps}: must be 1 or more")
        divided: list[dict[str, Any]] = []
        for given in params:
            group = {**given}
            members, marks = [*group["params"]], group.pop("dense", repeat(False))
            marked = [*zip(members, marks, strict=False)]
            dense = [one for one, mark in marked if mark]
            others = [one for one, mark in marked if not mark]
            if others:
                divided.append({**group, "params": others, "steps": 0})
            if dense:
                own = {"lr": muon_lr, "momentum": muon_momentum, "weight_decay": 0.0}
                divided.append({**group, **own, "params": dense, "steps": steps})
        super().__init__(
            divided,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=momentum > 0,
            fused=fused,
        )
        # NOTE: torch's fused SGD divides gradients by a scaler's factor itself, which dense filters
        # would not get.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss anew, and its gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        done: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if not group["steps"]:
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._turn(parameter, parameter.grad, group)
                    done.append((parameter, parameter.grad))
                    parameter.grad = None  # SGD leaves those without one
        super().step()
        for parameter, gradient in done:
            parameter.grad = gradient
        return loss

    def _turn(self, filters: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[filters], group["momentum"]
        if "momentum_buffer" in state:
            buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        else:
            buffer = state["momentum_buffer"] = gradient.clone()
        change = gradient.add(buffer, alpha=momentum).flatten(1)
        filters.mul_(len(filters) ** 0.5 / filters.norm().clamp_min(EPSILON))
        filters.sub_(orthogonal(change, group["steps"]).reshape(filters.shape), alpha=group["lr"])


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Bring a matrix's singular values near 1, by Newton and Schulz's iteration.

    Args:
        matrix: Of shape (rows, columns).
        steps: Each costs three matrix products. After three, those above 1.3 % of the matrix's norm
            are between 0.5 and 1.21.

    Returns:
        The same shape.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / x.norm().clamp_min(EPSILON)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T

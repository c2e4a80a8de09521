"""How big a backbone is, in the form that is executed: parameters and multiply-accumulates."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_lightning.models.interfaces import reparameterized


def count_parameters(network: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in reparameterized(network).parameters())


def count_macs(network: nn.Module, input_shape: tuple[int, ...] = (1, 3, 32, 32)) -> int:
    """Count the multiply-accumulates of convolutions and matrix products in one forward pass.

    Half of what torch's FLOP counter says, which counts a multiplication and an addition apart.

    Args:
        network: Left as it is; a copy on the CPU is run.
        input_shape: Of the one input tensor.
    """
    clone = copy.deepcopy(reparameterized(network)).cpu().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        clone(torch.zeros(input_shape))
    return int(counter.get_total_flops()) // 2

"""How the logits of a way to execute a network agree with the network's own, in fp32."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_lightning.variants.context import Forward

# Of the largest logit. Other kernels round otherwise; a wrong one is further away.
TOLERANCE = 1e-3


class Disagrees(Exception):
    """The logits of what should compute in fp32 are not the network's; the text says how far."""


@dataclass(frozen=True)
class Agreement:
    """How logits compare.

    Attributes:
        images: Number of images.
        difference: Largest absolute difference of a logit over the largest absolute logit.
        same_class: Images that get the same class.
    """

    images: int
    difference: float
    same_class: int


def agreement(
    reference: Forward, forward: Forward, batches: Iterable[Tensor], *, exact: bool
) -> Agreement:
    """Compare logits with those of the network itself.

    Args:
        reference: The network, in fp32 on the CPU.
        forward: What is compared, of images on the CPU.
        batches: Normalised images, (N, 3, 32, 32) each.
        exact: Whether it computes in fp32: other types have no limit but their accuracy.

    Raises:
        Disagrees: If they differ by more than rounding.
    """
    with torch.inference_mode():
        # Cloned, since the next call may overwrite them.
        pairs = [(reference(batch), forward(batch).cpu().clone()) for batch in batches]
    expected, found = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    difference = float((expected - found).abs().max()) / (float(expected.abs().max()) or 1.0)
    if exact and expected.isfinite().all() and not difference <= TOLERANCE:
        raise Disagrees(f"its logits differ by {difference:.2g} of the largest one")
    same_class = int((expected.argmax(1) == found.argmax(1)).sum())
    return Agreement(len(expected), difference, same_class)

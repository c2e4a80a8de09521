"""Methods that a network may have beside ``forward``."""

import copy
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class InitializedFromImages(Protocol):
    """A network whose first weights depend on the images that it will be trained on."""

    def initialize_from(self, images: Tensor) -> None:
        """Set them, once before the first step: see `ImageClassifier.setup`.

        Args:
            images: Normalised training images (N, 3, 32, 32).
        """


@runtime_checkable
class Reparameterizable(Protocol):
    """A network that is trained in another form than it is executed in."""

    def reparameterized(self) -> nn.Module:
        """Give the network that computes the same in evaluation, in its executed form.

        Called on a copy in evaluation mode, which it may take apart; also on one in that form.
        """


def reparameterized(network: nn.Module) -> nn.Module:
    """Give the form in which a network is executed: itself, unless it has another one.

    Weights are saved in the trained form; latency, accuracy, size, parameters and MACs are those of
    the executed one.

    Args:
        network: Left as it is: a network that was left in evaluation mode would train in it, on
            statistics that nothing updates.
    """
    if not isinstance(network, Reparameterizable):
        return network
    return copy.deepcopy(network).eval().reparameterized()

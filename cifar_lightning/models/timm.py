"""Any network of timm's (PyTorch Image Models), adapted to 32x32 images."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.errors import UserError, reason_of
from cifar_lightning.models.adapt import INPUT_SIZE, adapt
from cifar_lightning.system.environment import installation


class TimmNetwork(nn.Module):
    """Hands images to a network of timm's, which is what is executed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def reparameterized(self) -> nn.Module:
        """Merge branches as timm knows to for RepVGG, MobileOne and others; leave the rest."""
        from timm.utils.model import reparameterize_model

        executed: nn.Module = reparameterize_model(self.network, inplace=True)
        return executed.eval()


def timm_network(
    num_classes: int,
    name: str,
    output_stride: int | None,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
) -> nn.Module:
    """Build a network of timm's from random weights.

    Args:
        num_classes: Outputs of the classifier.
        name: As `timm.list_models` gives it, such as ``mobilenetv4_conv_small``.
        output_stride: Input resolution over the last feature map's; None: ImageNet's, as it is.
        dropout: Probability before the last linear layer.
        bn_momentum: Of every BatchNorm.
        bn_eps: Of every BatchNorm.

    Raises:
        UserError: If timm is not installed.
        ValueError: If it has no such network, or one that can't be adapted; the text says why.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model=timm: needs {error.name}: {installation('timm')}") from error
    # Its other names, `hf-hub:...` and the like, would load what somebody has put there.
    if name not in (known := timm.list_models()):
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"name={name}: timm has no such network{hint}")
    images = torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)
    try:
        network: Any = timm.create_model(name, drop_rate=dropout)
        # Some of timm's draw the last layer's weights by the number of classes: for ten, ten times
        # as large as for ImageNet's thousand. Then the first loss is 7 and its gradient's norm 250.
        network.reset_classifier(num_classes)
        adapt(network, output_stride, bn_momentum, bn_eps)
        network.eval()
        with torch.no_grad():
            network(images)
            features = tuple(network.forward_features(images).shape)
    except ValueError:
        raise
    except Exception as error:  # whatever its code makes of small images and other strides
        if images.is_meta:  # some code needs memory; then it is built with some
            raise
        why = f"does not work on 32x32 images with output_stride={output_stride}"
        raise ValueError(f"name={name}: {why}: {reason_of(error)}") from error
    if output_stride is None or images.is_meta:  # where strides stay
        return TimmNetwork(network.train())
    if features[2:] != (INPUT_SIZE // output_stride,) * 2:
        raise ValueError(
            f"output_stride={output_stride}: can't be reached: {name}'s last features would have "
            f"the shape {features}; output_stride=null takes it as it is"
        )
    return TimmNetwork(network.train())

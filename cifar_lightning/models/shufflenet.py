"""ShuffleNetV2, torchvision's, adapted to 32x32 images."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.shufflenetv2 import InvertedResidual

from cifar_lightning.models.adapt import adapt

_SHUFFLENETS = {
    0.5: models.shufflenet_v2_x0_5,
    1.0: models.shufflenet_v2_x1_0,
    1.5: models.shufflenet_v2_x1_5,
    2.0: models.shufflenet_v2_x2_0,
}


class _Block(InvertedResidual):
    """torchvision's block, whose channels torch shuffles.

    torchvision's own shuffle brings features that are ``channels_last`` into the other order, and
    the next convolution brings them back.
    """

    def forward(self, features: Tensor) -> Tensor:
        if self.stride == 1:
            kept, changed = features.chunk(2, dim=1)
        else:
            kept, changed = self.branch1(features), features
        return functional.channel_shuffle(torch.cat((kept, self.branch2(changed)), dim=1), 2)


def shufflenet_v2(
    num_classes: int,
    output_stride: int,
    width: float,
    dropout: float,
    bn_momentum: float,
    bn_eps: float,
) -> nn.Module:
    """Build ShuffleNetV2 (Ma et al. 2018); arguments as for `mobilenet_v3_small`.

    Raises:
        ValueError: If the output stride is out of reach or the width not one of the paper's.
    """
    if width not in _SHUFFLENETS:
        raise ValueError(f"width={width}: must be {', '.join(map(str, _SHUFFLENETS))}")
    network = _SHUFFLENETS[width](weights=None, num_classes=num_classes, inverted_residual=_Block)
    # NOTE: torchvision's has no dropout; it goes where the MobileNets have theirs.
    network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return adapt(network, output_stride, bn_momentum, bn_eps)

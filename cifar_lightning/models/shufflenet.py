"""ShuffleNetV2, torchvision's, adapted to 32x32 images."""

from torch import nn
from torchvision import models

from cifar_lightning.models.adapt import adapt

_SHUFFLENETS = {
    0.5: models.shufflenet_v2_x0_5,
    1.0: models.shufflenet_v2_x1_0,
    1.5: models.shufflenet_v2_x1_5,
    2.0: models.shufflenet_v2_x2_0,
}


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
    network = _SHUFFLENETS[width](weights=None, num_classes=num_classes)
    # NOTE: torchvision's has no dropout; it goes where the MobileNets have theirs.
    network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return adapt(network, output_stride, bn_momentum, bn_eps)

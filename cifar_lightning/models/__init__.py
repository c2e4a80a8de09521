"""Light networks, adapted to 32x32 images by their output stride; one file a family."""

from cifar_lightning.models.branched import repvgg
from cifar_lightning.models.mobilenet import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from cifar_lightning.models.plain import cifarnet
from cifar_lightning.models.resnet import resnet18, resnet_cifar
from cifar_lightning.models.shufflenet import shufflenet_v2

__all__ = [
    "cifarnet",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "repvgg",
    "resnet18",
    "resnet_cifar",
    "shufflenet_v2",
]

import pytest
import torch
from torch import nn

from cifar_lightning.models.mobilenet import mobilenet_v3_small
from cifar_lightning.variants.context import Unsupported
from cifar_lightning.variants.folding import fold_batchnorms, folded_where_traceable


def norm(channels, least, kind=nn.BatchNorm2d):
    """Make a BatchNorm that does something, as training leaves it."""
    layer = kind(channels).eval()
    with torch.no_grad():
        layer.weight.uniform_(least, 1)
        layer.bias.uniform_(-1, 1)
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    return layer


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: its activation is a part of it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, features):
        return self.act(super().forward(features))


def folded(network):
    """Fold, see that the logits and the network stay, and count the BatchNorms that are left."""
    network.eval()
    images = torch.randn(4, 3, 16, 16)
    before = [value.clone() for value in network.state_dict().values()]
    with torch.no_grad():
        result = fold_batchnorms(network)
        torch.testing.assert_close(result(images), network(images), atol=1e-5, rtol=1e-5)
    assert all(map(torch.equal, before, network.state_dict().values()))
    return sum(isinstance(module, nn.BatchNorm2d) for module in result.modules())


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([nn.Conv2d(3, 8, 3), norm(8, -1)], 0),
        ([nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), norm(8, 0.1), nn.GELU()], 0),
        ([nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), norm(8, 0.1)], 0),
        ([nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), norm(8, -1)], 1),  # a minimum would be needed
        (
            [
                nn.Conv2d(3, 8, 3),
                norm(8, 0.1, WithActivation),
                nn.Conv2d(8, 8, 1),
                norm(8, 0.1, WithActivation),
            ],
            0,
        ),
        ([nn.Conv2d(3, 8, 3), nn.GELU(), norm(8, 0.1)], 1),
        ([nn.Conv2d(3, 8, 3), norm(8, 0.1), norm(8, 0.1)], 0),
    ],
)
def test_batch_norms_are_folded_where_that_is_exact(layers, left):
    torch.manual_seed(0)
    assert folded(nn.Sequential(*layers)) == left


class Shared(nn.Module):
    """One convolution that is called twice, and one whose output is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(norm(3, 0.1) for _ in range(3))

    def forward(self, images):
        features = self.norms[1](self.first(self.norms[0](self.first(images))))
        kept = self.second(features)
        return kept + self.norms[2](kept)


def test_what_others_use_too_is_left_alone():
    torch.manual_seed(0)
    assert folded(Shared()) == 3


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_what_can_not_be_traced_is_unsupported():
    with pytest.raises(Unsupported, match=r"can't be traced: symbolically traced variables"):
        fold_batchnorms(Branching())


def test_exporters_get_a_network_that_overwrites_nothing():
    """And which means the same; the network itself stays as it is."""
    network = mobilenet_v3_small(10, 16, 1.0, 0.2, 0.1, 1e-5).eval()
    before = [name for name, one in network.named_modules() if getattr(one, "inplace", False)]
    assert before
    images = torch.randn(2, 3, 32, 32)
    exported = folded_where_traceable(network)
    assert not any(getattr(layer, "inplace", False) for layer in exported.modules())
    assert torch.allclose(exported(images), network(images), atol=1e-5)
    after = [name for name, one in network.named_modules() if getattr(one, "inplace", False)]
    assert after == before

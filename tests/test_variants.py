import pytest
import torch
from torch import nn

from cifar_lightning.variants import VARIANTS, flags

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("device", DEVICES)
def test_flags_are_restored(name, device):
    network = nn.Conv2d(3, 4, 1)
    before = flags()
    with VARIANTS[name](network, torch.device(device)) as forward:
        forward(torch.zeros(1, 3, 8, 8, device=device))
    assert flags() == before
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), VARIANTS[name](network, torch.device(device)):
            raise error
        assert flags() == before


def test_fp32_is_true_fp32():
    with VARIANTS["fp32"](nn.Conv2d(3, 4, 1), torch.device("cpu")):
        inside = flags()
    assert {value for key, value in inside.items() if "precision" in key} == {"ieee"}


def test_fp32_evaluates_the_network():
    network = nn.Sequential(nn.Dropout(0.9)).train()
    with VARIANTS["fp32"](network, torch.device("cpu")) as forward:
        assert torch.equal(forward(torch.ones(100)), torch.ones(100))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp32_convolution_agrees_with_float64():
    torch.manual_seed(0)
    network = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    images = torch.randn(8, 256, 16, 16)
    exact = network.double()(images.double())
    with VARIANTS["fp32"](network.float(), torch.device("cuda")) as forward:
        found = forward(images.cuda()).cpu().double()
    # TF32 has 10 bits of mantissa: its error is about 1e-3 of the largest value.
    assert (found - exact).abs().max() / exact.abs().max() < 1e-5

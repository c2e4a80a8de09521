import torch
from torch import nn

from cifar_lightning.models.complexity import count_macs, count_parameters


def test_macs_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 32*32 outputs * 8 * 3*3*3
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),  # 16*16 * 8 * 3*3
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),  # 8 * 10
    )
    assert count_macs(network) == 32 * 32 * 8 * 27 + 16 * 16 * 8 * 9 + 80
    assert count_parameters(network) == 8 * 27 + 8 * 9 + 90


def test_the_network_is_left_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count_macs(network)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())

"""Muon: orthogonal changes of dense filters, SGD for all else."""

import copy
from itertools import compress

import pytest
import torch
from test_backbones import NETWORKS, STRIDE
from torch import nn
from torchvision.ops import SqueezeExcitation

from cifar_lightning.models.plain import cifarnet
from cifar_lightning.runs.run import Run
from cifar_lightning.training.module import parameter_groups
from cifar_lightning.training.muon import Muon, orthogonal


def stepped(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(4, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
    return network


def network(**options: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, **{"bias": False} | options), nn.BatchNorm2d(6),
        SqueezeExcitation(6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2),
    )  # fmt: skip


def dense_filters(network: nn.Module) -> list[nn.Parameter]:
    decayed, _ = parameter_groups(network)
    return [*compress(decayed["params"], decayed["dense"])]


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(1, 0.05, min(shape), dtype=torch.float64)
    assert values.min() > 0.013 * values.norm()
    found = u.T @ orthogonal((u * values) @ v, 3) @ v.T
    assert found.diagonal().min() > 0.5
    assert found.diagonal().max() < 1.21
    assert (found - found.diagonal().diag()).abs().max() < 1e-9


def test_a_matrix_of_zeros_stays_zero():
    assert orthogonal(torch.zeros(3, 5), 3).eq(0).all()


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("options", [{"groups": 6}, {"groups": 3}, {"bias": True}])
def test_what_is_no_dense_filter_is_trained_as_by_sgd(options, fused):
    """Depthwise filters, those of other groups, of squeeze-excitation, and those with a bias."""
    ours = network(**options)
    others = copy.deepcopy(ours)
    for each in (ours, others):
        each[0].requires_grad_(False)  # the one dense filter
    settings = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}
    stepped(ours, Muon(parameter_groups(ours), **settings, fused=fused))
    sgd = torch.optim.SGD(parameter_groups(others), **settings, nesterov=True)
    stepped(others, sgd)
    for one, other in zip(ours.parameters(), others.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_filters_keep_their_norm_whatever_the_gradients_scale():
    first, second = network(), network()
    for each, scale in ((first, 1.0), (second, 1000.0)):
        optimizer = Muon(parameter_groups(each), lr=0.0, muon_lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
            (scale * each(images).square().sum()).backward()
            optimizer.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert len(dense_filters(first)) == 2
    for one in dense_filters(first):
        assert one.norm().item() == pytest.approx(len(one) ** 0.5, rel=0.02)


def check_that_scale_means_nothing(network: nn.Module) -> int:
    """Of dense filters; else keeping their norm would change what a network can compute.

    Tells how many it has.
    """
    network = network.double().train()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    filters = dense_filters(network)
    with torch.no_grad():
        logits = network(images)
        for number, one in enumerate(filters):
            one *= 2 + number % 3
        torch.testing.assert_close(network(images), logits)
    return len(filters)


PLAIN = {
    "stem": 12, "stem_kernel": 3, "stem_stride": 1, "whiten": False, "channels": [16, 24],
    "depth": 2, "downsample": "pool", "activation": "relu", "pool": "max", "scale": 1.0,
    "dirac": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        *((build, widths | {"output_stride": STRIDE.get(build, 8)}) for build, widths in NETWORKS),
        (cifarnet, PLAIN),
        (cifarnet, PLAIN | {"stem": None, "residual": True, "downsample": "stride"}),
        (cifarnet, PLAIN | {"branches": True}),
    ],
)
def test_a_dense_filters_scale_means_nothing(build, settings):
    torch.manual_seed(0)
    common = {"bn_momentum": 0.1, "bn_eps": 1e-12}
    common |= {} if build is cifarnet else {"dropout": 0.0}
    network = build(num_classes=10, **settings, **common)
    assert len(dense_filters(network)) > 2
    check_that_scale_means_nothing(network)


def test_the_memory_format_does_not_matter():
    first, second = network(), network().to(memory_format=torch.channels_last)
    for each in (first, second):
        stepped(each, Muon(parameter_groups(each), lr=0.01))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -1), ("muon_lr", float("nan")), ("momentum", 1), ("muon_momentum", -0.1),
        ("steps", 0), ("weight_decay", -1),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_refused(command, key, value):
    ended = command("data=digits", "optim=muon", f"optim.{key}={value}")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: optim.{key}=")


def test_a_network_learns_by_it(command, outputs):
    ended = command(
        "data=digits", "model=resnet8", "optim=muon", "epochs=3", "benchmark.variants=[]"
    )
    assert ended.status == 0, ended.err
    (folder,) = (outputs / "runs").iterdir()
    assert Run.load(folder).test_acc > 50

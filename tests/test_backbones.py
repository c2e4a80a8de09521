import copy
import re
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from cifar_lightning import models
from cifar_lightning.models import adapt, branched, mobilenet, resnet, shufflenet
from cifar_lightning.models.complexity import count_macs, count_parameters
from cifar_lightning.models.interfaces import reparameterized

COMMON = {"dropout": 0.2, "bn_momentum": 0.1, "bn_eps": 1e-5}
NETWORKS = [
    (mobilenet.mobilenet_v3_small, {"width": 1.0}),
    (mobilenet.mobilenet_v3_large, {"width": 1.0}),
    (mobilenet.mobilenet_v2, {"width": 1.0}),
    (shufflenet.shufflenet_v2, {"width": 1.0}),
    (resnet.resnet18, {}),
    (resnet.resnet_cifar, {"width": 1.0, "depth": 8}),
    (branched.repvgg, {"channels": [16, 24, 32], "depth": [2, 1, 2]}),
]
REPVGG = {"channels": [32, 64, 128], "depth": [2, 3, 3]}
STRIDE = {resnet.resnet_cifar: 4}  # the others' is 8


# Counted on torchvision's networks with 10 classes at 32x32.
@pytest.mark.parametrize(
    ("build", "output_stride", "width", "params", "mega_macs"),
    [
        (mobilenet.mobilenet_v3_small, 32, 1.0, 1_528_106, 2.17),
        (mobilenet.mobilenet_v3_small, 16, 1.0, 1_528_106, 5.50),
        (mobilenet.mobilenet_v3_small, 8, 1.0, 1_528_106, 17.51),
        (mobilenet.mobilenet_v3_small, 4, 1.0, 1_528_106, 60.76),
        (mobilenet.mobilenet_v3_small, 8, 0.5, 409_394, 5.55),
        (mobilenet.mobilenet_v3_large, 8, 1.0, 4_214_842, 66.46),
        (mobilenet.mobilenet_v2, 8, 1.0, 2_236_682, 87.98),
        (shufflenet.shufflenet_v2, 8, 0.5, 352_042, 10.90),
        (shufflenet.shufflenet_v2, 8, 1.0, 1_263_854, 45.00),
        (resnet.resnet18, 8, None, 11_173_962, 555.42),
        (partial(resnet.resnet_cifar, depth=8), 4, 1.0, 77_946, 12.50),
        (partial(resnet.resnet_cifar, depth=20), 4, 1.0, 272_378, 40.81),
        # As it is executed; trained it has 527,882 parameters.
        (partial(branched.repvgg, **REPVGG), 8, None, 472_810, 14.38),
    ],
)
def test_known_sizes(build, output_stride, width, params, mega_macs):
    widths = {} if width is None else {"width": width}
    network = build(num_classes=10, output_stride=output_stride, **widths, **COMMON)
    assert count_parameters(network) == params
    assert round(count_macs(network) / 1e6, 2) == mega_macs


@pytest.mark.parametrize(("build", "widths"), NETWORKS)
@pytest.mark.parametrize("halved", [1, 2])
def test_last_feature_map_has_the_output_stride(build, widths, halved):
    output_stride = STRIDE.get(build, 8) // halved
    network = build(num_classes=10, output_stride=output_stride, **widths, **COMMON).eval()
    sizes = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[-1]))
    network(torch.zeros(1, 3, 32, 32))
    # Squeeze-excitation works on 1x1 maps; the features are the last map larger than that.
    assert [size for size in sizes if size > 1][-1] == 32 // output_stride


@pytest.mark.parametrize(("build", "widths"), NETWORKS)
def test_no_convolution_brings_features_into_another_order(build, widths):
    network = build(num_classes=10, output_stride=STRIDE.get(build, 8), **widths, **COMMON)
    network = network.to(memory_format=torch.channels_last)
    others = []

    def look(layer, inputs):
        (features,) = inputs
        if features.shape[2:].numel() > 1 and features.stride(1) != 1:
            others.append(layer)

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    network(torch.zeros(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert not others


def test_shufflenet_computes_what_torchvision_computes():
    network = shufflenet.shufflenet_v2(num_classes=10, output_stride=32, width=0.5, **COMMON).eval()
    images = torch.randn(2, 3, 32, 32)
    theirs = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    theirs.fc = network.fc
    theirs.load_state_dict(network.state_dict())
    assert torch.equal(network(images), theirs.eval()(images))


@pytest.mark.parametrize(("build", "widths"), NETWORKS)
def test_gradients_reach_every_parameter(build, widths):
    network = build(num_classes=7, output_stride=STRIDE.get(build, 8), **widths, **COMMON)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("build", "widths"), NETWORKS)
def test_batch_norm_and_dropout_are_settings(build, widths):
    settings = {"dropout": 0.3, "bn_momentum": 0.05, "bn_eps": 2e-5}
    network = build(num_classes=10, output_stride=STRIDE.get(build, 8), **widths, **settings)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.05, 2e-5)}
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3]


def test_adapting_adds_no_residual_connection():
    plain = mobilenet.mobilenet_v2(num_classes=10, output_stride=32, width=1.0, **COMMON)
    adapted = mobilenet.mobilenet_v2(num_classes=10, output_stride=8, width=1.0, **COMMON)

    def residuals(network):
        return [m.use_res_connect for m in network.modules() if hasattr(m, "use_res_connect")]

    assert residuals(plain) == residuals(adapted)
    strides = [m.stride for m in adapted.modules() if isinstance(m, nn.Conv2d)]
    assert strides.count((2, 2)) == 3


@pytest.mark.parametrize("output_stride", [0, -8, 3, 12, 64])
def test_output_stride_out_of_reach(output_stride):
    with pytest.raises(ValueError, match=f"output_stride={output_stride}: must be 1, 2, 4, 8"):
        mobilenet.mobilenet_v3_small(
            num_classes=10, output_stride=output_stride, width=1.0, **COMMON
        )


def test_resnet_has_no_more_than_8():
    with pytest.raises(ValueError, match=r"output_stride=16: must be 1, 2, 4, 8$"):
        resnet.resnet18(num_classes=10, output_stride=16, **COMMON)


def test_residual_networks_for_cifar_refuse_what_is_none():
    build = partial(resnet.resnet_cifar, num_classes=10, **COMMON)
    for depth in (7, 2, 9, -4, 1208):
        with pytest.raises(ValueError, match=f"depth={depth}: must be 8, 14, 20 or another 6 n"):
            build(depth=depth, width=1.0, output_stride=4)
    for width in (0, -1, 0.02, 33, 1e308):
        with pytest.raises(
            ValueError, match=re.escape(f"width={width}: must leave at least one channel")
        ):
            build(depth=8, width=width, output_stride=4)
    with pytest.raises(ValueError, match=r"output_stride=8: must be 1, 2, 4$"):
        build(depth=8, width=1.0, output_stride=8)


def test_width_that_the_network_lacks():
    with pytest.raises(ValueError, match=r"width=0\.7: must be 0\.5, 1\.0, 1\.5, 2\.0"):
        shufflenet.shufflenet_v2(num_classes=10, output_stride=8, width=0.7, **COMMON)
    with pytest.raises(ValueError, match="width=-1"):
        mobilenet.mobilenet_v2(num_classes=10, output_stride=8, width=-1, **COMMON)


@pytest.mark.parametrize(
    ("name", "residuals"),
    [
        ("mobilenet_v3_small", 6),
        ("mobilenet_v3_large", 10),
        ("mobilenet_v2", 10),
        ("resnet18", 8),
        ("resnet_cifar", 3),
    ],
)
def test_residual_blocks_can_begin_as_the_identity(name, residuals):
    settings = {} if name == "resnet18" else {"width": 1.0}
    settings |= {"depth": 8} if name == "resnet_cifar" else {}
    common = {"output_stride": 4, "dropout": 0.0, "bn_momentum": 0.1, "bn_eps": 1e-5}
    network = getattr(models, name)(10, **settings, **common, zero_init=True)
    silent = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert len(silent) == residuals
    network.eval()
    block = next(
        m for m in network.modules() if getattr(m, "use_res_connect", isinstance(m, BasicBlock))
    )
    size = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d)).in_channels
    images = torch.rand(2, size, 8, 8)  # not negative: ResNet's blocks end with a ReLU
    torch.testing.assert_close(block(images), images)


@pytest.mark.parametrize("output_stride", [2, 8])
def test_branches_merge_into_one_chain_of_convolutions(output_stride):
    torch.manual_seed(0)
    settings = REPVGG | COMMON | {"output_stride": output_stride}
    network = branched.repvgg(num_classes=7, **settings)
    assert sum(parameter.numel() for parameter in network.parameters()) == 527_882 - 3 * 129
    with torch.no_grad():
        for module in network.modules():  # scales and biases as training leaves them
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(-1, 1)
                module.bias.uniform_(-1, 1)
        for _ in range(3):
            network(torch.randn(16, 3, 32, 32))
        images = torch.randn(4, 3, 32, 32)
        expected = network.eval()(images)
        executed = reparameterized(network.train())
        assert all(module.training for module in network.modules())  # it may be trained after this
        torch.testing.assert_close(executed(images), expected, atol=1e-5, rtol=1e-4)
    convolutions = [m for m in executed.modules() if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size for m in convolutions] == [(3, 3)] * 8
    assert not any(isinstance(m, nn.BatchNorm2d) for m in executed.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, r"channels=\[\]: must be 1 to 4096 for each of 1 to 5 stages"),
        ({"channels": [16, 0, 16]}, r"channels=\[16, 0, 16\]: must be 1 to 4096"),
        ({"depth": [1, 1, 65]}, r"depth=\[1, 1, 65\]: must be 1 to 64 for each"),
        ({"depth": [2, 2]}, r"depth=\[2, 2\]: must be as long as channels"),
        ({"output_stride": 16}, r"output_stride=16: must be 1, 2, 4, 8$"),
    ],
)
def test_branched_networks_refuse_what_is_none(settings, message):
    with pytest.raises(ValueError, match=message):
        branched.repvgg(10, **REPVGG | COMMON | {"output_stride": 8} | settings)


def test_every_layer_with_a_stride_is_adapted():
    """Pooling by an average, side by side or overlapping, and layers of other packages."""

    class Blur(nn.Module):
        def __init__(self):
            super().__init__()
            self.stride = 2

        def forward(self, features):
            return nn.functional.avg_pool2d(features, 3, self.stride, padding=1)

    network = nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=4), nn.AvgPool2d(2), Blur(), nn.MaxPool2d(3, 2, padding=1)
    )
    shapes = {}
    for output_stride in (32, 8, 4, 2, 1):
        changed = adapt.adapt(copy.deepcopy(network), output_stride, 0.1, 1e-5)
        shapes[output_stride] = changed(torch.zeros(1, 3, 32, 32)).shape[-1]
    assert shapes == {32: 1, 8: 4, 4: 8, 2: 15, 1: 29}  # the convolution has no padding
    with pytest.raises(ValueError, match=r"output_stride=16: must be 1, 2, 4, 8, 32$"):
        adapt.adapt(network, 16, 0.1, 1e-5)

"""Networks of timm's: adapted, merged, executed by every kind of variant, refused in one line."""

import sys

import pytest
import torch
from test_muon import check_that_scale_means_nothing
from torch import nn

from cifar_lightning.config.options import option
from cifar_lightning.errors import UserError
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.models.timm import timm_network
from cifar_lightning.training.components import build_backbone
from cifar_lightning.variants.registry import prepare

pytest.importorskip("timm", reason="needs the extra `timm`")
CPU = torch.device("cpu")
COMMON = {"dropout": 0.1, "bn_momentum": 0.05, "bn_eps": 2e-5}
NETWORKS = (
    "mobilenetv4_conv_small",
    "ghostnetv2_100",
    "starnet_s1",
    "efficientnet_lite0",
    "repvgg_a0",
    "mobileone_s0",
)


def build(name, output_stride=8, classes=10):
    torch.manual_seed(0)
    return timm_network(classes, name, output_stride, **COMMON)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_adapted_and_trained_whole(name):
    network = build(name, classes=7)
    assert network.network.forward_features(torch.zeros(2, 3, 32, 32)).shape[2:] == (4, 4)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.05, 2e-5)}
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.std() < 1  # guesses at first, whatever the number of classes
    logits.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_executed_computes_the_same(name):
    """Merged where timm can, and with its BatchNorms folded, all as training leaves them."""
    network = build(name)
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
                module.momentum = 1.0
        network.train()(images)  # running statistics are those of the images
        expected = network.eval()(images)
        executed = reparameterized(network.train())
        assert all(module.training for module in network.modules())  # it may be trained after this
        bound = 1e-3 * expected.abs().max().item()
        torch.testing.assert_close(executed(images), expected, atol=bound, rtol=0.0)
    branched = name in ("repvgg_a0", "mobileone_s0")
    assert branched != any(isinstance(module, nn.BatchNorm2d) for module in executed.modules())
    with prepare("fused", executed, CPU, lambda: images) as prepared, torch.inference_mode():
        torch.testing.assert_close(prepared.forward(images), expected, atol=bound, rtol=0.0)
    # StarNet's last BatchNorm is behind an addition.
    assert prepared.notes.get("batchnorms_left", 0) == (name == "starnet_s1")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "variant", ["channels_last", "bf16", "fused+channels_last", "onnx", "int8", "compile"]
)
def test_networks_meet_the_variants(name, variant):
    network = build(name, 16)
    with torch.no_grad():
        for _ in range(60):  # until the running statistics are those of the images
            network(torch.randn(8, 3, 32, 32))
        images = torch.randn(1, 3, 32, 32)
        executed = reparameterized(network.eval())
        expected = executed(images)
    calibration = torch.randn(64, 3, 32, 32)
    with prepare(variant, executed, CPU, lambda: calibration) as prepared, torch.inference_mode():
        found = prepared.forward(images)
    assert found.isfinite().all()
    # Logits of random weights are small differences of large numbers: fewer bits lose them.
    if variant not in ("bf16", "int8"):
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_dense_filters_scale_means_nothing(name):
    """StarNet has none: its convolutions have a bias and a BatchNorm."""
    torch.manual_seed(0)
    common = {"dropout": 0.0, "bn_momentum": 0.1, "bn_eps": 1e-12}
    dense = check_that_scale_means_nothing(timm_network(10, name, 8, **common))
    assert bool(dense) == (name != "starnet_s1")


@pytest.mark.parametrize("name", ["resnet18d", "resnetblur18"])
def test_pools_and_blurs_are_adapted(name):
    shape = build(name, 4).network.forward_features(torch.zeros(1, 3, 32, 32)).shape
    assert shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("repvgg_a", 8, r"name=repvgg_a: timm has no such network; did you mean repvgg_a"),
        ("hf-hub:somebody/something", 8, "timm has no such network"),
        ("starnet_s1", 3, r"output_stride=3: must be 1, 2, 4, 8, 16, 32$"),
        ("convnext_atto", 8, r"output_stride=8: can't be reached: .* \(1, 320, 3, 3\); .*null"),
        ("vit_tiny_patch16_224", 8, r"does not work on 32x32 images .*: Input height"),
    ],
)
def test_what_can_not_be_built_says_why(name, output_stride, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(name, output_stride)
    assert str(caught.value).isprintable()
    # A training sees how large it is beforehand, which changes no message.
    model = option("model", "timm", {"data": {"num_classes": 10}})
    model |= {"name": name, "output_stride": output_stride}
    with pytest.raises(UserError, match=message):
        build_backbone({"init": None, "model": model})


def test_a_network_may_be_taken_as_it_is():
    assert build("convnext_atto", None)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model=timm: needs timm: pip install"):
        build("starnet_s1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "error: model.name: needs a value"),
        (("model.name=starnet_s",), "error: model.name=starnet_s: timm has no such network; did"),
    ],
)
def test_mistakes_are_one_line(command, overrides, message):
    done = command("model=timm", "data=digits", *overrides)
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert line.startswith(message)


def test_a_builder_of_timms_may_be_named_in_a_file_of_ones_own(command, tmp_path):
    """Its arguments are in ``**kwargs``: what it takes is told by calling it."""
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    lines = ["_target_: timm.create_model", "model_name: test_resnet", "num_classes: 10"]
    (folder / "mine.yaml").write_text("\n".join([*lines, "drop_rate: 0.1"]))
    overrides = (
        f"--config-dir={tmp_path / 'conf'}", "model=mine", "data=digits", "epochs=1",
        "augment=crop", "benchmark.variants=[]", "trainer.accelerator=cpu",
    )  # fmt: skip
    done = command(*overrides)
    assert done.status == 0, done.err
    done = command(*overrides, "+model.no_such_setting=1", "epochs=2")
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert "no_such_setting" in line

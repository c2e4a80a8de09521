"""Plain networks: known sizes, the whitened stem, the executed form."""

import copy
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cifar_lightning.benchmark.evaluate import calibration
from cifar_lightning.config.options import option, with_config_dir
from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.errors import UserError
from cifar_lightning.models import branched
from cifar_lightning.models.branched import Branches
from cifar_lightning.models.complexity import count_macs, count_parameters
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.models.layers import GlobalMaxPool
from cifar_lightning.models.plain import cifarnet
from cifar_lightning.runs import identity
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.training.module import INITIAL_IMAGES, ImageClassifier
from cifar_lightning.variants.folding import fold_batchnorms

AIRBENCH = {
    "num_classes": 10, "stem": 24, "stem_kernel": 2, "stem_stride": 1, "whiten": True,
    "channels": [16, 64, 64], "depth": 2, "downsample": "pool", "activation": "gelu",
    "pool": "max", "scale": 1 / 9, "dirac": True, "bn_momentum": 0.4, "bn_eps": 1e-5,
}  # fmt: skip
STRIDED = {
    "stem": None, "whiten": False, "downsample": "stride", "activation": "relu", "pool": "avg",
}  # fmt: skip
TEN = {"data": {"num_classes": 10}}


def build(**settings):
    torch.manual_seed(0)
    return cifarnet(**AIRBENCH | settings)


@pytest.mark.parametrize(
    ("settings", "mega_params", "mega_macs"),
    [
        ({"channels": [64, 256, 256]}, 1.97, 118.1),
        ({"channels": [32, 128, 128]}, 0.50, 33.1),
        ({"channels": [16, 64, 64]}, 0.127, 10.1),
        ({"channels": [16, 32, 64], "stem": 12, "activation": "relu"}, 0.074, 5.0),
        (STRIDED | {"channels": [16, 32, 64]}, 0.073, 2.5),
        (STRIDED | {"channels": [24, 48, 96]}, 0.163, 5.5),
        (STRIDED | {"channels": [32, 64, 128]}, 0.288, 9.7),
    ],
)
def test_known_sizes(settings, mega_params, mega_macs):
    network = build(**settings)
    digits = 2 if mega_params >= 0.5 else 3
    assert round(count_parameters(network) / 1e6, digits) == mega_params
    assert round(count_macs(network) / 1e6, 1) == mega_macs


def test_what_is_fastest_with_85_percent_is_the_studys_network(resolved):
    preset, chosen = resolved("model=cifarnet_85", "experiment=study_recipe", "epochs=300")
    study, _ = resolved("experiment=study/plain16")
    assert preset["model"] == study["model"]
    assert chosen["model"] == "cifarnet_85"
    # What is measured or trained by a search is composed without Hydra.
    assert option("model", "cifarnet_85", TEN) == study["model"]


def test_what_is_fastest_with_90_percent_is_repvgg_with_a_convolution_less():
    ours, full = (option("model", name, TEN) for name in ("repvgg_90", "repvgg"))
    assert {key for key in full if full[key] != ours[key]} == {"depth"}
    assert sum(full["depth"]) - sum(ours["depth"]) == 1


def test_what_is_fastest_with_93_percent_is_what_its_preset_trains(resolved):
    preset, _ = resolved("experiment=cifarnet_93")
    assert preset["model"] == option("model", "cifarnet_93", TEN)
    wider, _ = resolved("experiment=fast94")
    different = {key for key in wider if wider[key] != preset[key]}
    assert different == {"id", "model"}


def test_the_teacher_of_what_has_90_percent_is_the_studys(resolved):
    """By the beginning of its name, as several seeds have its ID."""
    teacher = identity.run_name(*resolved("experiment=study/cifarnet32"))
    preset = (CONF_DIR / "experiment" / "repvgg_90.yaml").read_text()
    (given,) = re.findall(r"^  teacher: (\S+)", preset, re.M)
    assert teacher.startswith(given)


@pytest.mark.parametrize(
    ("defaults", "depth"),
    [("[cifarnet_85, _self_]", 1), ("[cifarnet_85]", 1), ("[_self_, cifarnet_85]", 2)],
)
def test_an_option_may_stand_on_another_one(defaults, depth, tmp_path):
    """Read without Hydra as with it; here a user's on one of ours, which stands on a third."""
    write_option(tmp_path, f"defaults: {defaults}\ndepth: 1\n")
    with with_config_dir(tmp_path):
        mine = option("model", "mine", TEN)
    assert mine == option("model", "cifarnet_85", TEN) | {"depth": depth}


def test_an_option_names_what_it_can_not_stand_on(tmp_path):
    write_option(tmp_path, "defaults: [cifarnet_58]\n")
    with with_config_dir(tmp_path), pytest.raises(UserError, match=r"cifarnet_58.*of conf/model"):
        option("model", "mine", TEN)


def write_option(folder, text):
    (folder / "model").mkdir()
    (folder / "model" / "mine.yaml").write_text(text)


RESIDUAL = {"whiten": False, "residual": True, "depth": 3}
BRANCHED = {"whiten": False, "branches": True, "residual": True}


@pytest.mark.parametrize(
    "settings",
    [
        {}, STRIDED, {"whiten": False, "depth": 3, "stem_kernel": 3}, {"resolution": 20}, RESIDUAL,
        BRANCHED, STRIDED | BRANCHED,
    ],
)  # fmt: skip
def test_gradients_reach_all_but_a_whitened_stem(settings):
    network = build(num_classes=7, **settings)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    assert frozen == ({"stem.conv.weight"} if "whiten" not in settings else set())
    for name, parameter in network.named_parameters():
        if name not in frozen:
            assert parameter.grad.isfinite().all(), name


def test_batch_norms_are_settings_and_have_no_scale_to_learn():
    network = build(bn_momentum=0.05, bn_eps=2e-5)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.05, 2e-5)}
    assert all([*dict(norm.named_parameters())] == ["bias"] for norm in norms)
    assert all((norm.weight == 1).all() for norm in norms)


def test_a_residual_convolution_adds_what_it_was_given():
    network, images = build(**RESIDUAL).eval(), torch.randn(2, 16, 8, 8)
    block = network.stage1[4]
    nn.init.zeros_(block[0].weight)
    assert torch.equal(block(images), images)
    assert count_parameters(network) == count_parameters(build(whiten=False, depth=3))
    folded = fold_batchnorms(reparameterized(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("settings", [BRANCHED, STRIDED | BRANCHED, {"branches": True}])
def test_branches_are_executed_as_one_convolution(settings):
    network = build(**settings)
    for _ in range(3):  # the BatchNorms have something to fold
        network(torch.randn(16, 3, 32, 32))
    plain = build(**settings | {"branches": None})
    executed = reparameterized(network.train())
    assert all(module.training for module in network.modules())  # it may be trained after this
    network.eval()
    assert any(isinstance(module, Branches) for module in network.modules())
    assert not any(isinstance(module, Branches | nn.BatchNorm2d) for module in executed.modules())
    assert count_macs(network) == count_macs(plain)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(executed(images), network(images))


def test_a_lower_resolution_is_the_images_shrunk_first():
    shrunk, images = build(resolution=16).eval(), torch.randn(2, 3, 32, 32)
    half = nn.functional.avg_pool2d(images, 2)
    with torch.no_grad():
        torch.testing.assert_close(shrunk(images), build().eval()(half))
    assert count_macs(shrunk) < count_macs(build()) / 3
    shrunk.initialize_from(images)
    whole = build()
    whole.initialize_from(half)
    torch.testing.assert_close(shrunk.stem.conv.weight, whole.stem.conv.weight)


def test_convolutions_can_begin_as_the_identity():
    images = torch.randn(2, 16, 8, 8)
    assert torch.equal(build().stage1[4](images), images)
    assert not torch.equal(build(dirac=False).stage1[4](images), images)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_other_resolutions_work(size):
    assert build()(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_the_largest_value_is_pooled_and_one_place_gets_its_gradient():
    pool, features = GlobalMaxPool(), torch.randint(4, (8, 3, 5, 6)).float().requires_grad_()
    pooled = pool.train()(features)
    assert torch.equal(pooled, pool.eval()(features))
    pooled.sum().backward()
    assert (features.grad.sum((2, 3)) == 1).all()
    assert ((features.grad == 0) | (features.detach() == pooled)).all()
    assert (features.grad.count_nonzero((2, 3)) == 1).all()  # of the many that are as large


@pytest.mark.slow
def test_a_compiled_step_in_bfloat16_has_finite_gradients():
    network = build(stem=None, whiten=False, channels=[16, 16])
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.compile(network.forward)(images)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    learnt = [one.grad for one in network.parameters()]
    assert learnt
    assert all(one.isfinite().all() for one in learnt)


REPVGG = {
    "num_classes": 10, "channels": [16, 24], "depth": [2, 2], "output_stride": 4, "dropout": 0.1,
    "bn_momentum": 0.1, "bn_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    "make", [build, partial(build, **BRANCHED), partial(branched.repvgg, **REPVGG)]
)
def test_what_is_executed_is_its_own_executed_form(make):
    """On the device and of the type of the weights, too."""
    executed, images = reparameterized(make()), torch.randn(2, 3, 32, 32)
    assert count_parameters(executed) == sum(one.numel() for one in executed.parameters())
    with torch.no_grad():
        assert torch.equal(reparameterized(executed)(images), executed(images))
    for device, dtype in (("meta", torch.float32), ("cpu", torch.float64)):
        executed = reparameterized(make().to(device, dtype))
        assert {(one.device.type, one.dtype) for one in executed.parameters()} == {(device, dtype)}


def test_the_scale_is_part_of_the_executed_classifier():
    network = build().eval()
    images = torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(network.state_dict())
    executed = reparameterized(network)
    assert [name for name, _ in executed.named_children()][-1] == "fc"
    with torch.no_grad():
        torch.testing.assert_close(executed(images), network(images))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


# --- Whitening ------------------------------------------------------------------------------


def digits():
    shared = {"num_classes": 10, "val_fraction": 0.1, "split_seed": 0, "batch_size": 64}
    return DigitsDataModule(
        name="digits", mean=[0.3059] * 3, std=[0.3241] * 3, eval_batch_size=100, num_workers=0,
        seed=0, **shared,
    )  # fmt: skip


def test_a_whitened_stems_features_are_uncorrelated_and_of_variance_one():
    network = build()
    # Neighbouring pixels are alike, as in real images.
    smooth = nn.functional.interpolate(torch.randn(300, 3, 16, 16), size=32, mode="bilinear")
    network.initialize_from(smooth)
    features = network.stem.conv(smooth).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(features[:12], -features[12:])
    covariance = features[:12] @ features[:12].T / features.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.05, rtol=0)


def test_a_stem_that_is_trained_is_not_whitened():
    for settings in ({"whiten": False}, STRIDED):
        network = build(**settings)
        before = copy.deepcopy(network.state_dict())
        network.initialize_from(torch.randn(8, 3, 32, 32))
        assert all(torch.equal(before[name], one) for name, one in network.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "checkpoint", "whitened"),
    [("fit", None, True), ("fit", "last.ckpt", False), ("test", None, False)],
)
def test_only_a_training_run_that_begins_whitens(stage, checkpoint, whitened):
    network = build()
    before = network.stem.conv.weight.clone()
    classifier = ImageClassifier({}, network)
    classifier._trainer = SimpleNamespace(ckpt_path=checkpoint, datamodule=digits())
    classifier.setup(stage)
    assert torch.equal(network.stem.conv.weight, before) != whitened


def test_a_trained_run_keeps_the_whitened_stem(command, outputs):
    done = command(
        "model=cifarnet", "model.channels=[8,16]", "data=digits", "epochs=1", "augment=crop",
        "ema=0.9", "benchmark.variants=[]", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.status == 0, done.err
    (folder,) = (outputs / "runs").iterdir()
    expected = build(channels=[8, 16])
    expected.initialize_from(calibration(digits(), INITIAL_IMAGES))
    weights = load_file(RunFolder(folder).weights)
    assert torch.equal(weights["stem.conv.weight"], expected.stem.conv.weight)
    assert weights["stem.conv.bias"].any()  # is trained


# --- Bad settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, r"channels=\[\]: must be a list of 1 to 4096 a stage"),
        ({"channels": [16, 0]}, r"channels=\[16, 0\]: must be a list of 1 to 4096 a stage"),
        ({"channels": [8] * 5}, "must be at most 4 stages, one a halving"),
        (STRIDED | {"channels": [8] * 6}, "must be at most 5 stages, one a halving"),
        ({"depth": 0}, "depth=0: must be 1 to 64"),
        ({"stem": 0}, "stem=0: must be 1 to 4096"),
        ({"stem": 26}, "stem=26: must be even and at most 24"),
        ({"stem": 13}, "stem=13: must be even and at most 24"),
        ({"stem_kernel": 8}, "stem_kernel=8: must be 1 to 7"),
        ({"stem_stride": 0}, "stem_stride=0: must be 1 to 4"),
        ({"stem": None}, "whiten=True: must be false without a stem"),
        ({"scale": 0.0}, "scale=0.0: must be above 0"),
        ({"resolution": 3}, "resolution=3: must be 4 to 31, or null"),
        ({"resolution": 32}, "resolution=32: must be 4 to 31, or null"),
        ({"resolution": 8}, "must be at most 2 stages"),
    ],
)
def test_what_can_not_be_built(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_network_without_an_output_stride_refuses_it(command):
    done = command("model=cifarnet", "+model.output_stride=8", "data=digits")
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: model.output_stride: no such key")
    assert "downsample" in line
    done = command("model=cifarnet", "model.activation=tanh", "data=digits")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "model.activation=tanh: must be relu, gelu, silu, hardswish" in done.err

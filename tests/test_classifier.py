from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import nn

from cifar_lightning.models.mobilenet import mobilenet_v3_small
from cifar_lightning.training.module import ImageClassifier, parameter_groups


def small():
    return mobilenet_v3_small(
        10, output_stride=32, width=0.35, dropout=0.0, bn_momentum=0.1, bn_eps=1e-5
    )


def classifier(backbone, **settings):
    defaults = {"label_smoothing": 0.0, "channels_last": False, "compile": False}
    module = ImageClassifier(
        {},
        backbone,
        partial(torch.optim.SGD, lr=0.1),
        lambda optimizer, total_steps: None,
        **defaults | settings,
    )
    module.trainer = Trainer(accelerator="cpu", logger=False)
    return module


def test_weight_decay_keeps_off_batch_norm_and_biases():
    network = small()
    decayed, kept = parameter_groups(network)
    assert kept["weight_decay"] == 0.0
    assert "weight_decay" not in decayed
    excused = {id(p) for p in kept["params"]}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            expected = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert (id(parameter) in excused) == expected
    assert len(decayed["params"]) + len(excused) == len(list(network.parameters()))


def test_training_is_in_training_mode_whatever_the_network_was_used_for_before():
    module = classifier(small().eval())
    module.on_fit_start()
    assert all(layer.training for layer in module.backbone.modules())


def test_checkpoint_keys_do_not_depend_on_how_it_is_computed():
    plain = classifier(small()).state_dict().keys()
    assert classifier(small(), channels_last=True).state_dict().keys() == plain
    assert classifier(small(), compile=True).state_dict().keys() == plain


@pytest.mark.parametrize(("mode", "asked"), [(True, "default"), ("max-autotune", "max-autotune")])
def test_only_training_is_compiled(mode, asked, monkeypatch):
    calls = []

    def compiled(function, mode):
        calls.append(mode)
        return lambda images: calls.append("run") or function(images)

    monkeypatch.setattr(torch, "compile", compiled)
    module, images = classifier(small(), compile=mode), torch.rand(2, 3, 32, 32)
    assert module.train()(images).shape == (2, 10)
    assert calls == [asked, "run"]
    assert module.eval()(images).shape == (2, 10)
    assert calls == [asked, "run"]


def test_channels_last_gives_the_same_logits():
    network = small().eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        module = classifier(network, channels_last=True).eval()
        assert network.features[0][0].weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(module(images), expected, rtol=1e-3, atol=1e-4)


def test_smoothing_is_for_training_only():
    module = classifier(nn.Identity(), label_smoothing=0.5)
    batch = torch.randn(8, 10), torch.arange(8)
    plain = nn.functional.cross_entropy(*batch)
    assert not torch.isclose(module.training_step(batch, 0), plain)
    module.validation_step(batch, 0)
    assert torch.isclose(module._epoch_metrics("val")["val/loss"], plain)


def test_losses_are_means_over_images_not_over_batches():
    module = classifier(nn.Identity())
    logits, labels = torch.randn(13, 10), torch.arange(13) % 10
    for images in (slice(0, 10), slice(10, 13)):
        module.validation_step((logits[images], labels[images]), 0)
    whole = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(module._epoch_metrics("val")["val/loss"], whole)


def test_accuracy_counts_every_image_once_whatever_the_batches():
    module = classifier(nn.Identity())
    logits = nn.functional.one_hot(torch.arange(10), 10).float()
    wrong = logits.roll(1, 0)
    module.test_step((logits, torch.arange(10)), 0)  # 10 of 10
    module.test_step((wrong[:3], torch.arange(3)), 1)  # 0 of 3
    assert module._epoch_metrics("test")["test/acc"] == torch.tensor(10 / 13)
    module.test_step((logits, torch.arange(10)), 0)
    assert module._epoch_metrics("test")["test/acc"] == 1  # nothing is left of what was read

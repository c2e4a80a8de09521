"""The plain-PyTorch rewrite that speed is compared with does what its recipe says."""

import torch
from torch import nn

from perf.airbench import BIAS_SCALER, Airbench, Lookahead, augmented, groups


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip


def test_images_are_flipped_in_every_other_epoch_and_cropped():
    images = torch.arange(3 * 32 * 32.0).view(1, 3, 32, 32).expand(40, -1, -1, -1)
    padded = nn.functional.pad(images[:1], (2, 2, 2, 2), "reflect")[0]
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    torch.manual_seed(0)
    straight = augmented(images, 0)
    assert all(any(torch.equal(one, crop) for crop in crops) for one in straight)
    assert len({float(one[0, 0, 0]) for one in straight}) > 8  # and not all alike
    mirrored = augmented(images.flip(3), 1)
    assert all(any(torch.equal(one, crop) for crop in crops) for one in mirrored)


def test_biases_of_batchnorms_have_a_rate_of_their_own_and_decay_is_not_scaled():
    fast, other = groups(network(), batch_size=512)
    assert [one.shape for one in fast["params"]] == [(4,)]
    assert len(other["params"]) == 5
    assert fast["lr"] == BIAS_SCALER * other["lr"]
    assert fast["lr"] * fast["weight_decay"] == other["lr"] * other["weight_decay"]


def test_lookahead_moves_both_ways():
    one = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(one.weight)
    lookahead = Lookahead(one)
    nn.init.ones_(one.weight)
    lookahead.update(one, decay=0.75)
    assert one.weight.item() == 0.25
    nn.init.ones_(one.weight)
    lookahead.update(one, decay=1.0)  # the end of training: the slow weights stay
    assert one.weight.item() == 0.25


def test_it_learns_by_its_schedule():
    """Two classes that differ by their brightness."""
    images = torch.randint(100, (256, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(256) % 2
    images[labels == 1] += 100
    loop = Airbench(network(), images, labels, batch_size=16, epochs=5)
    peak, rates = loop.optimizer.param_groups[1]["lr"] / 0.2, []
    for _ in range(5):
        rates.append(loop.schedule.get_last_lr()[1] / peak)
        loop.train_epoch()
    assert loop.step == loop.total == 80
    assert rates[0] == 0.2
    assert rates[1] > rates[2] > rates[3] > rates[4] > 0.07  # the peak is at 23 % of the steps
    with torch.no_grad():
        answers = loop.network.eval()(loop.images).argmax(1)
    assert (answers == labels).float().mean() > 0.9

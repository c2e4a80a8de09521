from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra.utils import instantiate
from torchvision.transforms import v2

from cifar_lightning.data.augmentation import (
    AlternatingFlip,
    Cutout,
    Kind,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    kind,
)
from cifar_lightning.data.color import ColorJitter, RandomSharpness
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.data.images import BatchIndices, ImageBatches
from cifar_lightning.data.module import Length
from cifar_lightning.data.progressive import GrowingMixUp, ProgressiveResize
from cifar_lightning.errors import UserError
from cifar_lightning.training.components import try_sizes

GREY = [0.5, 0.25, 1.0]
LABELS = torch.arange(512) % 10


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (512, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("mode", "numpys"), [(None, "constant"), ("reflect", "reflect"), ("replicate", "edge")]
)
def test_each_crop_is_a_window_of_its_padded_image(images, mode, numpys):
    torch.manual_seed(1)
    cropped = RandomCrop(2, mode)(images)
    torch.manual_seed(1)
    offsets = torch.randint(5, (2, len(images)))
    for index, image in enumerate(images):
        padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), numpys))
        top, left = offsets[0, index], offsets[1, index]
        assert torch.equal(cropped[index], padded[:, top : top + 8, left : left + 8])


def test_crops_differ_between_images_and_reach_every_offset(images):
    same = images[:1].expand(2000, -1, -1, -1)
    assert len({crop.numpy().tobytes() for crop in RandomCrop(1)(same)}) == 9


def test_each_image_is_mirrored_or_left(images):
    flipped = RandomHorizontalFlip(0.5)(images)
    mirrored = torch.stack(
        [torch.equal(a, b.flip(2)) * torch.ones(()) for a, b in zip(flipped, images, strict=True)]
    )
    left = torch.stack(
        [torch.equal(a, b) * torch.ones(()) for a, b in zip(flipped, images, strict=True)]
    )
    assert torch.equal(mirrored + left, torch.ones(len(images)))
    # 512 coins: 5 standard deviations are 0.11
    assert abs(mirrored.mean() - 0.5) < 0.11


@pytest.mark.parametrize(("p", "expected"), [(0.0, False), (1.0, True)])
def test_certain_flips(images, p, expected):
    assert torch.equal(RandomHorizontalFlip(p)(images), images.flip(3) if expected else images)


def test_flips_alternate():
    """Two epochs show each image both ways; a random half first, whatever the batches are."""
    ramp = torch.arange(8, dtype=torch.uint8).expand(2000, 3, 8, 8)
    flip, indices = AlternatingFlip(), torch.randperm(50_000)[:2000]

    def mirrored(epoch, seed=0):
        flipped = flip(ramp, indices, epoch, seed)
        found = (flipped == ramp.flip(3)).flatten(1).all(1)
        assert torch.equal(~found, (flipped == ramp).flatten(1).all(1))
        return found

    first = mirrored(0)
    assert abs(first.float().mean() - 0.5) < 0.06  # 5 standard deviations
    assert torch.equal(first, ~mirrored(1))
    assert torch.equal(first, mirrored(2))
    alone = [bool((flip(ramp[:1], one[None], 0, 0) != ramp[:1]).any()) for one in indices[:50]]
    assert alone == first[:50].tolist()
    for seed in (1, 2):
        assert abs((mirrored(0, seed) == first).float().mean() - 0.5) < 0.06
    neighbours = flip(ramp, torch.arange(2000), 0, 0)[:, 0, 0, 0].float()
    assert abs(torch.corrcoef(torch.stack([neighbours[1:], neighbours[:-1]]))[0, 1]) < 0.12


@pytest.mark.parametrize("workers", [0, 2])
def test_flips_alternate_from_epoch_to_epoch_of_a_training(workers, resolved):
    """By the image's place in the data set, though each epoch has an order of its own."""
    config, _ = resolved("data=digits", "augment=flip_alternating", "batch_size=300")
    settings = {k: v for k, v in config["data"].items() if k != "_target_"}
    settings["num_workers"] = workers
    data = DigitsDataModule(augment={"flip": AlternatingFlip()}, **settings)
    pixels = data.images.train.images
    numbers = torch.arange(len(pixels), dtype=torch.int32)
    ramp = torch.arange(32, dtype=torch.uint8).expand(len(pixels), 32)
    marked = torch.stack(
        [ramp, *(numbers.view(-1, 1).expand(-1, 32) >> b & 255 for b in (0, 8))], 1
    )
    pixels.copy_(marked[:, :, None, :].expand_as(pixels))
    loader, seen = data.loader("train"), []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batches = torch.cat([images for images, _ in loader])
        index = batches[:, 1, 0, 0].long() + 256 * batches[:, 2, 0, 0].long()
        seen.append(dict(zip(index.tolist(), (batches[:, 0, 0, 0] > 0).tolist(), strict=True)))
    for before, after, same in ((0, 1, False), (1, 2, False), (0, 2, True)):
        both = seen[before].keys() & seen[after].keys()
        assert len(both) > 500
        assert all((seen[before][one] == seen[after][one]) is same for one in both)


def test_rotation_turns_about_the_centre_by_at_most_so_much():
    """A bright dot moves along a circle, by angles that reach the limit and not beyond."""
    images = torch.zeros(3000, 3, 33, 33, dtype=torch.uint8)
    images[:, :, 15:18, 25:28] = 255  # 10 pixels right of the centre
    torch.manual_seed(0)
    turned = RandomRotation(30)(images).float()[:, 0]
    position = torch.arange(33.0) - 16
    total = turned.sum((1, 2))
    x = (turned.sum(1) @ position) / total
    y = (turned.sum(2) @ position) / total
    assert (torch.hypot(x, y) - 10).abs().max() < 0.3
    degrees = torch.rad2deg(torch.atan2(y, x))
    assert degrees.abs().max() < 31
    assert degrees.min() < -29
    assert degrees.max() > 29
    assert degrees.mean().abs() < 1.6  # 5 standard deviations
    assert torch.equal(RandomRotation(0)(images[:2]), images[:2])


def test_sharpness_is_torchvisions_with_a_factor_for_each_image(images):
    torch.manual_seed(3)
    changed = RandomSharpness(0.5)(images)
    torch.manual_seed(3)
    factors = 1 + 0.5 * (2 * torch.rand(len(images), 1, 1) - 1)
    for index in range(20):
        expected = v2.functional.adjust_sharpness(images[index], float(factors[index]))
        # It rounds the blurred image and cuts off where we round.
        assert (changed[index].int() - expected.int()).abs().max() <= 2
    assert torch.equal(RandomSharpness(0)(images), images)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_jitter_is_torchvisions_with_a_factor_for_each_image(images, name):
    images = images // 4 + 90  # nothing is cut off
    jitter = ColorJitter(**{"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, name: 0.3})
    torch.manual_seed(4)
    changed = jitter(images)
    torch.manual_seed(4)
    draws = [1 + 0.3 * (2 * torch.rand(len(images)) - 1) for _ in range(3)]
    factors = draws[["brightness", "contrast", "saturation"].index(name)]
    adjust = getattr(v2.functional, f"adjust_{name}")
    for index in range(20):
        expected = adjust(images[index], float(factors[index]))
        assert (changed[index].int() - expected.int()).abs().max() <= 2
    assert (changed != images).flatten(1).any(1).float().mean() > 0.9


def test_hue_turns_colours_and_leaves_greys():
    grey = torch.arange(0, 250, 10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    jitter = ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.5)
    assert torch.equal(jitter(grey), grey)
    colour = torch.tensor([150, 100, 80], dtype=torch.uint8).view(1, 3, 1, 1).expand(500, 3, 2, 2)
    turned = jitter(colour).float()
    assert (turned.mean(1) - 110).abs().max() < 1
    assert (turned.std(1) - colour[0].float().std(0)[0, 0]).abs().max() < 1  # as colourful
    assert len(turned[:, :, 0, 0].unique(dim=0)) > 50


@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop(4),
        RandomCrop(4, "reflect"),
        RandomCrop(9, "reflect"),  # more than the image has
        RandomHorizontalFlip(0.5),
        Cutout(3, GREY),
        RandomRotation(15),
        RandomSharpness(0.5),
        ColorJitter(0.1, 0.1, 0.1, 0.02),
    ],
)
def test_the_seed_decides_and_the_input_stays(images, transform):
    before = images.clone()
    torch.manual_seed(5)
    first = transform(images)
    torch.manual_seed(5)
    assert torch.equal(first, transform(images))
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8


def test_bad_arguments():
    with pytest.raises(ValueError, match="padding=-1"):
        RandomCrop(-1)
    with pytest.raises(ValueError, match=r"p=1\.5"):
        RandomHorizontalFlip(1.5)
    with pytest.raises(ValueError, match="mode=zeros"):
        RandomCrop(1, "zeros")
    with pytest.raises(ValueError, match="degrees=181"):
        RandomRotation(181)
    with pytest.raises(ValueError, match="strength=-1"):
        RandomSharpness(-1)
    with pytest.raises(ValueError, match="contrast=-1"):
        ColorJitter(0, -1, 0, 0)
    with pytest.raises(ValueError, match=r"hue=0\.6"):
        ColorJitter(0, 0, 0, 0.6)
    with pytest.raises(ValueError, match=r"alpha=0\.005: must be 0\.01 or more"):
        GrowingMixUp(0.005, 0.5, 10)
    with pytest.raises(ValueError, match="until=2"):
        GrowingMixUp(0.2, 2, 10)
    with pytest.raises(ValueError, match="size=0"):
        Cutout(0, GREY)
    with pytest.raises(ValueError, match="fill="):
        Cutout(4, [1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="start=0"):
        ProgressiveResize(0, 0.5)
    with pytest.raises(ValueError, match="until=0"):
        ProgressiveResize(16, 0.0)


@pytest.mark.parametrize(
    "transform",
    [
        *(RandomCrop(2, mode) for mode in (None, "reflect", "replicate")),
        RandomHorizontalFlip(0.5),
        lambda images: AlternatingFlip()(images, torch.arange(len(images)), 0, 0),
        RandomRotation(15),
        RandomSharpness(0.5),
        ColorJitter(0.1, 0.1, 0.1, 0.02),
        Cutout(3, GREY),
        lambda images: ProgressiveResize(4, 0.5)(images, 0.0),
        lambda images: GrowingMixUp(1.0, 0.5, 10)(images.float(), LABELS, 1.0)[0],
        lambda images: v2.MixUp(alpha=1.0, num_classes=10)(images.float(), LABELS)[0],
        lambda images: v2.CutMix(alpha=1.0, num_classes=10)(images.float(), LABELS)[0],
    ],
)
def test_the_memory_format_does_not_matter(images, transform):
    torch.manual_seed(6)
    expected = transform(images)
    torch.manual_seed(6)
    assert torch.equal(transform(images.contiguous(memory_format=torch.channels_last)), expected)


def test_cutout_paints_a_square_that_may_reach_over_the_border():
    images = torch.zeros(4000, 3, 8, 8, dtype=torch.uint8)
    torch.manual_seed(0)
    painted = Cutout(3, GREY)(images)
    colour = torch.tensor([128, 64, 255])
    inside = (painted == colour[:, None, None]).all(1)
    assert torch.equal(inside, (painted != 0).any(1))
    rows, columns = inside.any(2), inside.any(1)
    assert torch.equal(inside, rows[:, :, None] & columns[:, None, :])
    assert set(rows.sum(1).tolist()) == {2, 3}  # cut at the border where the centre is there
    # In a corner of the image a pixel is painted by 2 of 8 centres each way, in the middle by 3.
    share = inside.float().mean(0)
    assert share[0, 0] == pytest.approx(4 / 64, abs=0.02)
    assert share[4, 4] == pytest.approx(9 / 64, abs=0.03)


# What a configuration makes of each option.
OPTIONS = {
    "crop": Kind.BATCHED,
    "flip": Kind.BATCHED,
    "cutout": Kind.BATCHED,
    "autoaugment": Kind.PER_IMAGE,
    "randaugment": Kind.PER_IMAGE,
    "trivialaugment": Kind.PER_IMAGE,
    "mixup": Kind.MIXING,
    "cutmix": Kind.MIXING,
    "progressive": Kind.PROGRESSIVE,
    "flip_alternating": Kind.INDEXED,
    "rotation": Kind.BATCHED,
    "sharpness": Kind.BATCHED,
    "colorjitter": Kind.BATCHED,
    "mixup_growing": Kind.MIXING_PROGRESSIVE,
}


def test_each_option_is_tested():
    files = {path.stem for path in (ROOT / "conf" / "augment").glob("*.yaml")}
    assert files - {"none", "standard"} == OPTIONS.keys()


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_images(option, resolved, images):
    config, _ = resolved("data=digits", f"augment={option}")
    transform = instantiate(config["augment"][option], _convert_="all")
    assert kind(transform) == OPTIONS[option]
    torch.manual_seed(0)
    if OPTIONS[option] in (Kind.MIXING, Kind.MIXING_PROGRESSIVE):
        labels = torch.arange(len(images)) % 10
        progress = (1.0,) if OPTIONS[option] is Kind.MIXING_PROGRESSIVE else ()
        mixed, shares = transform(images.float(), labels, *progress)
        assert shares.shape == (len(images), 10)
        torch.testing.assert_close(shares.sum(1), torch.ones(len(images)))
        assert (shares.max(1).values < 1).any()
        changed = (mixed != images).flatten(1).any(1)
    elif OPTIONS[option] is Kind.PROGRESSIVE:
        images = images.repeat(1, 1, 4, 4)  # 32x32
        assert transform(images, 0.0).shape == (len(images), 3, 16, 16)
        assert torch.equal(transform(images, 0.6), images)
        return
    elif OPTIONS[option] is Kind.INDEXED:
        changed = (transform(images, torch.arange(512), 0, 0) != images).flatten(1).any(1)
    elif OPTIONS[option] is Kind.PER_IMAGE:
        changed = torch.stack([(transform(i) != i).any() for i in images])
    else:
        changed = (transform(images) != images).flatten(1).any(1)
    assert changed.float().mean() > 0.4


def test_images_grow_in_equal_shares_of_the_training():
    resize = ProgressiveResize(start=16, until=0.8)
    sizes = [resize.size(32, epoch / 20) for epoch in range(20)]
    assert sizes == [16] * 4 + [20] * 4 + [24] * 4 + [28] * 4 + [32] * 4
    assert ProgressiveResize(30, 0.8).size(32, 0.7) == 30  # one jump, to the full size
    assert ProgressiveResize(32, 0.5).size(32, 0.0) == 32  # nothing to do


def test_each_network_is_tried_with_each_size():
    class Windows(torch.nn.Module):
        def forward(self, images):
            return images.unflatten(2, (-1, 16))

    any_size, windows = torch.nn.Identity(), Windows()
    sizes, others = {"progressive": ProgressiveResize(16, 0.5)}, {"crop": RandomCrop(1)}
    try_sizes(sizes, {"model": any_size})
    try_sizes(others, {"model": windows})
    line = r"augment\.progressive\.start=16: must be 32 or more: distill.teacher can't take 28x28"
    with pytest.raises(UserError, match=line):
        try_sizes(sizes, {"model": any_size, "distill.teacher": windows.eval()})
    assert any_size.training
    assert not windows.training


def test_a_smaller_image_shows_the_same(images):
    """Averages of neighbours: even surfaces stay as they are, and so do the images' means."""
    resize = ProgressiveResize(start=4, until=1.0)
    even = torch.arange(0, 250, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    assert torch.equal(resize(even, 0.0), even[..., :4, :4])
    small = resize(images, 0.0)
    assert small.dtype == torch.uint8
    difference = small.float().mean((1, 2, 3)) - images.float().mean((1, 2, 3))
    assert difference.abs().max() < 10  # the border counts a little more or less
    assert difference.mean().abs() < 0.5


def test_a_training_sees_images_grow(resolved):
    config, _ = resolved("data=digits", "augment=progressive", "batch_size=300")
    augment = {"progressive": instantiate(config["augment"]["progressive"])}
    settings = {k: v for k, v in config["data"].items() if k != "_target_"}
    data = DigitsDataModule(augment=augment, **settings)
    batch = next(iter(data.loader("train")))
    data.length = Length(steps_per_epoch=4, steps=40)
    data.trainer = SimpleNamespace(training=True, current_epoch=0)
    shapes = []
    for data.trainer.current_epoch in range(10):
        shapes.append(data.on_after_batch_transfer(batch, 0)[0].shape[-1])
    assert shapes == [16, 16, 20, 24, 24, 28, 32, 32, 32, 32]
    data.trainer.training = False
    data.trainer.current_epoch = 0
    assert data.on_after_batch_transfer(batch, 0)[0].shape[-1] == 32


def test_mixup_keeps_the_means():
    """A share of one image and the rest of another: pixels and labels alike."""
    images = torch.arange(64.0)[:, None, None, None].expand(-1, 3, 2, 2)
    torch.manual_seed(0)
    mixed, shares = v2.MixUp(alpha=1.0, num_classes=64)(images, torch.arange(64))
    torch.testing.assert_close(mixed[:, 0, 0, 0], shares @ torch.arange(64.0))


def test_mixup_grows():
    """The part that pairs of images share, on average over many draws."""
    images = torch.arange(64.0)[:, None, None, None].expand(-1, 3, 2, 2)
    labels = torch.arange(64)
    mix = GrowingMixUp(alpha=1.0, until=0.5, num_classes=64)
    assert mix(images, labels, 0.0)[1] is labels
    torch.manual_seed(0)

    def share(progress):
        drawn = [mix(images, labels, progress)[1].max(1).values.mean() for _ in range(300)]
        return 1 - float(torch.stack(drawn).mean())

    assert share(0.05) < share(0.2) < share(0.5)
    # The smaller one of two parts that are uniform is a quarter on average.
    assert share(0.5) == pytest.approx(0.25, abs=0.03)
    assert share(1.0) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("epoch", [1, 4, 11, 40])
def test_mixup_that_has_hardly_begun_mixes_hardly(epoch):
    """In epochs of 400: the smaller part of two is alpha times log 2 on average, if alpha is small.

    The draws of very small ones, of which both underflow, would be halves.
    """
    images = torch.arange(64.0)[:, None, None, None].expand(-1, 3, 2, 2)
    mix, progress = GrowingMixUp(alpha=0.4, until=1.0, num_classes=64), epoch / 400
    torch.manual_seed(0)
    parts = torch.zeros(2000)
    for number in range(len(parts)):
        _, labels = mix(images, torch.arange(64), progress)
        if labels.ndim == 2:
            parts[number] = 1 - labels[0].max()
    assert parts.mean() < 0.4 * progress
    assert (parts == 0.5).sum() == 0
    assert parts.any() == (epoch >= 10)


def test_cutmix_shares_labels_by_area():
    images = torch.arange(64.0)[:, None, None, None].expand(-1, 3, 16, 16)
    torch.manual_seed(0)
    mixed, shares = v2.CutMix(alpha=1.0, num_classes=64)(images, torch.arange(64))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(64.0))


def test_images_of_a_batch_are_drawn_for_one_by_one(images, monkeypatch):
    """Each image its own draw, by the batch's seed alone; the global generator is left alone."""
    labels = torch.arange(len(images))
    batches = ImageBatches(images, labels, [v2.RandomHorizontalFlip(0.5)])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    indices = torch.arange(100, 300)
    first, cut = batches[BatchIndices(indices, 7)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(cut, indices)
    flipped = (first != images[indices]).flatten(1).any(1)
    assert 60 < flipped.sum() < 140
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # a GPU's is left alone, too
    assert torch.equal(first, batches[BatchIndices(indices, 7)][0])
    assert not torch.equal(first, batches[BatchIndices(indices, 8)][0])


@pytest.mark.parametrize(
    ("option", "unchanged"),
    [
        # By the paper's probabilities a quarter of the draws use neither operation.
        ("autoaugment", (0.15, 0.35)),
        ("randaugment", (0.0, 0.03)),  # two operations of 14, both of them "identity"
        ("trivialaugment", (0.06, 0.17)),  # one of 14, or one of the others at strength 0 of 30
    ],
)
def test_policies_leave_their_share_of_images_alone(option, unchanged, resolved):
    """One image many times: as often unchanged as the policy says, else changed in many ways."""
    config, _ = resolved("data=digits", f"augment={option}")
    policy = instantiate(config["augment"][option], _convert_="all")
    ramp = torch.arange(4, 252, 8, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(60, 200, (31, 31), dtype=torch.uint8, generator=generator)
    image = torch.stack([ramp.expand(31, 31), ramp.flip(0)[:, None].expand(31, 31), noise])
    count = 560
    batches = ImageBatches(image.expand(count, -1, -1, -1), torch.arange(count), [policy])
    drawn, labels = batches[BatchIndices(torch.arange(count), seed=0)]
    assert torch.equal(labels, torch.arange(count))
    assert drawn.dtype == torch.uint8
    low, high = unchanged
    assert low <= (drawn == image).flatten(1).all(1).float().mean() <= high
    assert len(drawn.flatten(1).unique(dim=0)) > 50


def test_workers_do_not_change_what_is_drawn(resolved):
    def batches(workers):
        config, _ = resolved(
            "data=digits", "augment=trivialaugment", f"data.num_workers={workers}", "batch_size=300"
        )
        augment = {"policy": instantiate(config["augment"]["trivialaugment"])}
        settings = {k: v for k, v in config["data"].items() if k != "_target_"}
        return [
            images for images, _ in DigitsDataModule(augment=augment, **settings).loader("train")
        ]

    assert all(torch.equal(a, b) for a, b in zip(batches(0), batches(2), strict=True))

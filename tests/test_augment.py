from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torchvision.transforms import v2

from cifar_lightning.data.augmentation import (
    Cutout,
    Kind,
    ProgressiveResize,
    RandomCrop,
    RandomHorizontalFlip,
    kind,
)
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.data.images import BatchIndices, ImageBatches
from cifar_lightning.data.module import Length

GREY = [0.5, 0.25, 1.0]


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (512, 3, 8, 8), dtype=torch.uint8, generator=generator)


def test_each_crop_is_a_window_of_its_padded_image(images):
    torch.manual_seed(1)
    cropped = RandomCrop(2)(images)
    torch.manual_seed(1)
    offsets = torch.randint(5, (2, len(images)))
    for index, image in enumerate(images):
        padded = torch.zeros(3, 12, 12, dtype=torch.uint8)
        padded[:, 2:10, 2:10] = image
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


@pytest.mark.parametrize("transform", [RandomCrop(4), RandomHorizontalFlip(0.5), Cutout(3, GREY)])
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
    with pytest.raises(ValueError, match="size=0"):
        Cutout(0, GREY)
    with pytest.raises(ValueError, match="fill="):
        Cutout(4, [1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="start=0"):
        ProgressiveResize(0, 0.5)
    with pytest.raises(ValueError, match="until=0"):
        ProgressiveResize(16, 0.0)


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
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_images(option, resolved, images):
    config, _ = resolved("data=digits", f"augment={option}")
    transform = instantiate(config["augment"][option], _convert_="all")
    assert kind(transform) == OPTIONS[option]
    torch.manual_seed(0)
    if OPTIONS[option] is Kind.MIXING:
        labels = torch.arange(len(images)) % 10
        mixed, shares = transform(images.float(), labels)
        assert shares.shape == (len(images), 10)
        torch.testing.assert_close(shares.sum(1), torch.ones(len(images)))
        assert (shares.max(1).values < 1).any()
        changed = (mixed != images).flatten(1).any(1)
    elif OPTIONS[option] is Kind.PROGRESSIVE:
        images = images.repeat(1, 1, 4, 4)  # 32x32
        assert transform(images, 0.0).shape == (len(images), 3, 16, 16)
        assert torch.equal(transform(images, 0.6), images)
        return
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

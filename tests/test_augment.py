import pytest
import torch

from cifar_lightning.augment import RandomCrop, RandomHorizontalFlip


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


@pytest.mark.parametrize("transform", [RandomCrop(4), RandomHorizontalFlip(0.5)])
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

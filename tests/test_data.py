from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from cifar_lightning.config.components import parameters_of
from cifar_lightning.data.cifar10 import CIFAR10DataModule, CIFAR100DataModule
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.data.image_folder import ImageFolderDataModule
from cifar_lightning.data.images import IndexBatches, Normalize, epoch_seed, stratified_split
from cifar_lightning.data.module import Length
from cifar_lightning.errors import UserError


def digits(**settings):
    defaults = {
        "name": "digits",
        "num_classes": 10,
        "val_fraction": 0.1,
        "split_seed": 0,
        "batch_size": 64,
        "eval_batch_size": 100,
        "num_workers": 0,
        "seed": 0,
        "mean": [0.3] * 3,
        "std": [0.3] * 3,
    }
    return DigitsDataModule(**defaults | settings)


def test_split_is_disjoint_whole_stratified_and_stable():
    labels = torch.randint(10, (5000,), generator=torch.Generator().manual_seed(3))
    train, val = stratified_split(labels, 0.1, seed=0)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(5000))
    for label in range(10):
        count = int((labels == label).sum())
        assert int((labels[val] == label).sum()) == round(0.1 * count)
    torch.manual_seed(99)  # nothing global decides
    assert torch.equal(stratified_split(labels, 0.1, seed=0)[1], val)
    assert not torch.equal(stratified_split(labels, 0.1, seed=1)[1], val)


def test_cifar_sizes_give_45000_and_5000():
    train, val = stratified_split(torch.arange(10).repeat(5000), 0.1, seed=0)
    assert (len(train), len(val)) == (45000, 5000)


def test_the_split_does_not_depend_on_the_training_seed():
    assert torch.equal(digits(seed=0).indices["val"], digits(seed=1).indices["val"])


@pytest.mark.parametrize(
    ("device", "trained_on", "pinned"),
    [("cpu", "cpu", False), ("cpu", "cuda", True), ("cpu", None, False)],
)
def test_memory_is_pinned_where_a_gpu_trains(device, trained_on, pinned, monkeypatch):
    """On the CPU of a machine with a GPU, pinning would open a context there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = digits(device=device)
    if trained_on is not None:
        module.trainer = SimpleNamespace(
            strategy=SimpleNamespace(root_device=torch.device(trained_on)),
            fit_loop=SimpleNamespace(
                epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0))
            ),
            global_rank=0,
            world_size=1,
        )
    assert module.loader("train").pin_memory == pinned


def batches(**settings):
    defaults = {"indices": torch.arange(103), "batch_size": 10, "shuffle": True, "seed": 0}
    return IndexBatches(**defaults | settings)


def order(sampler):
    return torch.cat([batch.indices for batch in sampler])


def test_training_order_is_a_function_of_seed_and_epoch():
    first = order(batches())
    assert len(first) == 100  # the incomplete batch is dropped
    assert len(first.unique()) == 100
    assert torch.equal(order(batches()), first)
    assert not torch.equal(order(batches(epoch=1)), first)
    assert not torch.equal(order(batches(seed=1)), first)
    later = batches()
    later.set_epoch(1)
    assert torch.equal(order(later), order(batches(epoch=1)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_image_is_evaluated_exactly_once(world_size):
    parts = [batches(shuffle=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    for part in parts:
        assert len(list(part)) == len(part)
    seen = torch.cat([order(part) for part in parts])
    assert torch.equal(seen.sort().values, torch.arange(103))


def test_processes_train_on_different_images_in_equally_many_batches():
    parts = [batches(rank=rank, world_size=2) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 5
    a, b = (order(part) for part in parts)
    assert len(torch.cat([a, b]).unique()) == 100


def test_epoch_seeds_differ():
    seeds = {epoch_seed(s, e, r) for s in range(5) for e in range(50) for r in range(3)}
    assert len(seeds) == 5 * 50 * 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_gives_the_split_whole(num_workers):
    module = digits(num_workers=num_workers)
    labels = torch.cat([labels for _, labels in module.test_dataloader()])
    assert torch.equal(labels, module.images.test.labels)
    images, _ = next(iter(module.train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape == (64, 3, 32, 32)


def test_making_a_loader_draws_nothing_from_the_global_generator():
    module = digits()
    state = torch.get_rng_state()
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_normalize_is_torchvisions():
    from torchvision.transforms.v2 import functional

    images = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = functional.normalize(
        functional.to_dtype(images, torch.float32, scale=True), mean, std
    )
    torch.testing.assert_close(Normalize(mean, std)(images), expected)
    with pytest.raises(ValueError, match="std above 0"):
        Normalize(mean, [0.1, 0.0, 0.1])


def test_augments_in_training_only():
    module = digits(augment={"black": torch.zeros_like})

    class FakeTrainer:
        training, current_epoch, max_epochs = True, 0, 1

    module.trainer = FakeTrainer()
    module.length = Length(steps_per_epoch=1, steps=1)
    batch = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), torch.zeros(2)
    black = module.on_after_batch_transfer(batch, 0)[0]
    FakeTrainer.training = False
    white = module.on_after_batch_transfer(batch, 0)[0]
    assert torch.all(black < 0)
    assert torch.all(white > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 7}, "data.num_classes=7: must be 10"),
        ({"val_fraction": 0.001}, "data.val_fraction=0.001"),
    ],
)
def test_what_does_not_fit_the_data(settings, message):
    with pytest.raises(UserError, match=message):
        _ = digits(**settings).indices


def trainer(processes=1, train=1.0, val=1.0):
    return SimpleNamespace(world_size=processes, limit_train_batches=train, limit_val_batches=val)


@pytest.mark.parametrize(("processes", "most"), [(1, 1438), (2, 719)])
def test_an_epoch_has_at_least_one_step(processes, most):
    digits(batch_size=most, val_fraction=0).check_batches(trainer(processes))
    with pytest.raises(UserError, match=f"batch_size={most + 1}: must be 2 to {most}"):
        digits(batch_size=most + 1, val_fraction=0).check_batches(trainer(processes))


@pytest.mark.parametrize(
    ("processes", "limits", "message"),
    [
        (1, {"train": 0.05, "val": 0.5}, None),
        (1, {"train": 1, "val": 0}, None),
        (1, {"train": 0.049}, r"limit_train_batches=0\.049: .* of at least 0\.05 \(batches: 20\)"),
        (2, {"train": 0.05}, r"limit_train_batches=0\.05: .* of at least 0\.1 \(batches: 10\)"),
        (1, {"val": 0.4}, r"limit_val_batches=0\.4: .* of at least 0\.5 \(batches: 2\)"),
        (2, {"val": 0.5}, r"limit_val_batches=0\.5: .* of at least 1 \(batches: 1\)"),
    ],
)
def test_a_fraction_of_the_batches_is_one_at_least(processes, limits, message):
    """Of 1,294 and 144 images, in batches of 64 and 100."""
    refused = pytest.raises(UserError, match=message) if message else nullcontext()
    with refused:
        digits().check_batches(trainer(processes, **limits))
    # Without held-out images there is nothing to validate on.
    digits(val_fraction=0).check_batches(trainer(processes, val=0.1))


@pytest.mark.parametrize(
    "source",
    [CIFAR10DataModule, CIFAR100DataModule, DigitsDataModule, ImageFolderDataModule],
    ids=lambda s: s.__name__,
)
def test_arguments_are_checked_by_their_types(source):
    """A subclass's arguments are also those of its base, whose types are named in another file."""
    parameters = parameters_of(source)
    assert parameters["val_fraction"].annotation is float
    assert parameters["mean"].annotation == list[float]
    needed = {key for key, value in parameters.items() if value.default is value.empty}
    assert {"name", "num_classes", "seed"} <= needed
    assert needed.isdisjoint({"device", "augment"})

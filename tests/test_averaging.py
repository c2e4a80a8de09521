"""The exponential moving average of the weights; whole runs with it are in `test_experiment`."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_lightning.models.resnet import resnet_cifar
from cifar_lightning.training.averaging import EMA
from cifar_lightning.training.module import ImageClassifier


class Operations(TorchDispatchMode):
    """Remembers the name of every operation."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def classifier():
    return ImageClassifier({}, resnet_cifar(10, 8, 0.5, 4, 0.0, 0.1, 1e-5), channels_last=True)


@pytest.fixture
def module():
    return classifier()


def trainer_at(step):
    return SimpleNamespace(global_step=step, state=SimpleNamespace(fn=TrainerFn.FITTING))


def begun(ema, module, step=0):
    ema.on_fit_start(trainer_at(step), module)
    ema.on_train_start(trainer_at(step), module)
    return ema


def test_a_step_is_one_operation_that_reads_nothing(module):
    ema = begun(EMA(0.9), module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    ema.on_train_batch_end(trainer_at(1))
    state = module.state_dict()
    assert all(torch.equal(one, state[name]) for name, one in ema.average.items())
    with Operations() as seen:
        ema.on_train_batch_end(trainer_at(1))  # gradients are accumulated
        assert seen.names == []
        ema.on_train_batch_end(trainer_at(2))
    assert [name for name in seen.names if name != "detach"] == ["_foreach_lerp_"]


def test_the_average_lies_as_the_moved_module_does(module):
    """Lightning moves the module between a callback's `setup` and the start of the fit."""
    ema = EMA(0.9)
    ema.setup(trainer_at(0), module, "fit")
    module.double()  # as a move to a GPU, it makes other tensors
    begun(ema, module)
    for name, one in ema.average.items():
        own = module.state_dict()[name]
        assert (one.dtype, one.device, one.stride()) == (own.dtype, own.device, own.stride())
        assert one.data_ptr() != own.data_ptr()


def test_validation_sees_the_average(module):
    ema = begun(EMA(0.9), module)
    before = {name: one.clone() for name, one in module.state_dict().items()}
    for one in ema.average.values():
        one.zero_()
    ema.on_validation_epoch_start(trainer_at(1), module)
    assert all((module.state_dict()[name] == 0).all() for name in ema.average)
    ema.on_validation_epoch_end(trainer_at(1), module)
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert all((one == 0).all() for one in ema.average.values())


def test_a_continued_average_goes_on(module):
    ema = begun(EMA(0.5), module)
    for one in ema.average.values():
        one.fill_(3)
    checkpoint = {"state_dict": module.state_dict()}
    ema.on_save_checkpoint(trainer_at(7), module, checkpoint)
    other, again = classifier(), EMA(0.5)
    other.load_state_dict(checkpoint["state_dict"])  # as Lightning does
    again.on_load_checkpoint(trainer_at(0), other, checkpoint)
    begun(again, other, step=7)
    again.on_train_batch_end(trainer_at(8))
    for name, one in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], one)
        if one.is_floating_point():
            torch.testing.assert_close(again.average[name], (one + 3) / 2)

"""One training over several processes, on the CPU with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from safetensors.torch import load_file
from test_experiment import curves, only_run

from cifar_lightning.errors import Interrupted, NotFinite
from cifar_lightning.runs.folder import DRAWN
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.training.callbacks import GracefulShutdown

# The second process has one batch less to evaluate: 179 of 359 images.
TWO = (*TINY, "epochs=2", "batch_size=64", "trainer.devices=2", "data.eval_batch_size=179")


def start(outputs, *arguments, by=()):
    command = [*(by or (sys.executable,)), "train.py"]
    done = subprocess.run(
        [*command, f"outputs={outputs}", *TWO, "trainer.strategy=ddp", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_one_row(folder):
    """As if one process had done it; every test image counted once."""
    run = Run.load(folder)
    assert run.status == "finished"
    (row,) = rows_of(folder)
    # What two processes counted together, and what one counted when it measured.
    assert row.test_acc == pytest.approx(run.test_acc, abs=1e-3)
    events = (folder / "tensorboard").glob("events*")
    written = [path for path in events if path.suffix != DRAWN]
    assert 1 <= len(written) <= 2  # fit's and test's


def test_two_processes(outputs, forked):
    """In a folder whose name both have to understand alike."""
    outputs = outputs / "a b=1, (2) é"
    done = start(os.path.relpath(outputs, ROOT))
    assert_one_row(only_run(outputs))
    for once in (" M parameters", " for the training", "epoch 2 of 2"):
        assert done.stdout.count(once) == 1
    assert len((outputs / "results.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_torchrun_gives_the_same(outputs, tmp_path):
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    start(outputs)
    start(tmp_path / "torchrun", by=torchrun)
    ours, theirs = only_run(outputs), only_run(tmp_path / "torchrun")
    assert_one_row(theirs)
    assert ours.name == theirs.name
    # Not the files' bytes: safetensors writes the metadata in any order.
    one, other = (load_file(folder / "weights.safetensors") for folder in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = start(tmp_path / "torchrun", by=torchrun)
    assert again.stdout.count("is finished") == 1  # the first process decides and tells


@pytest.mark.slow
def test_two_processes_in_a_multirun(outputs, forked):
    start(outputs, "seed=0,1", "-m")
    folders = sorted((outputs / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert_one_row(folder)
    assert len((outputs / "results.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_two_processes_learn_as_well_as_one(outputs, tmp_path, forked):
    """The same images a step, and so the same course within the noise of BatchNorm's halves."""
    settings = ("epochs=20", "optim.lr=0.1")
    start(outputs, *settings)
    single = [*TINY, *settings, "batch_size=128", f"outputs={tmp_path / 'one'}"]
    subprocess.run([sys.executable, "train.py", *single], cwd=ROOT, check=True)
    folders = [only_run(place) for place in (outputs, tmp_path / "one")]
    assert min(Run.load(folder).test_acc for folder in folders) > 60
    # Of as few images as digits has, accuracies differ by ten points.
    ours, theirs = (curves(folder)["train/loss"][-1][1] for folder in folders)
    assert ours == pytest.approx(theirs, rel=0.1)


def test_processes_that_begin_too_late(command, outputs):
    ended = command(*TWO, "trainer.strategy=ddp_spawn")
    assert ended.status == 2
    assert ended.err.startswith("error: trainer.strategy=ddp_spawn: must be")
    assert not outputs.exists()


def test_torchrun_with_another_number(command, outputs, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    ended = command(*TWO)
    assert ended.status == 2
    assert ended.err.startswith("error: trainer.devices=2: must be 4, what torchrun started")


class OtherProcess:
    """The trainer of one of two processes; the other one's flags are added to its own."""

    lightning_module = None
    world_size, num_training_batches, current_epoch = 2, 120, 0

    def __init__(self, *flags):
        self.flags, self.exchanged, self.strategy = torch.tensor(flags), 0, self
        self.root_device = torch.device("cpu")

    def reduce(self, counts, reduce_op):
        assert reduce_op == "sum"
        self.exchanged += 1
        return counts + self.flags

    def train(self):
        watch, loss = GracefulShutdown(), {"loss": torch.tensor(1.0)}
        watch.on_train_epoch_start(self, None)
        for batch in range(self.num_training_batches):
            self.batch = batch
            watch.on_train_batch_end(self, None, loss, None, batch)
        watch.on_train_epoch_end(self, None)


def test_processes_agree_every_50_steps():
    other = OtherProcess(0, 0)
    other.train()
    assert other.exchanged == 3  # and at the end of the epoch
    for flags, error, message in (
        ((0, 1), Interrupted, "interrupted"),
        ((1, 0), NotFinite, "not finite in another process in epoch 1, step 50 of 120"),
    ):
        other = OtherProcess(*flags)
        with pytest.raises(error, match=message):
            other.train()
        assert (other.batch, other.exchanged) == (49, 1)


def test_lightning_lets_processes_agree_on_a_signal_in_one_place():
    """It would at every batch; a release in which that has another name is noticed here."""
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)

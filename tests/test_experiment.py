"""Whole runs on real digits."""

import errno
import io
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TINY_MOBILENET, call_once
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.utils import make_grid

from cifar_lightning.benchmark import session
from cifar_lightning.benchmark.evaluate import evaluate
from cifar_lightning.benchmark.load import load_data
from cifar_lightning.benchmark.measure import Measured
from cifar_lightning.benchmark.network import load_backbone
from cifar_lightning.cli import measure
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.completed import finished
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.predictions import Predictions
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.system import environment
from cifar_lightning.system.locks import alone
from cifar_lightning.training.averaging import EMA
from cifar_lightning.training.module import ImageClassifier

THREE = ("epochs=3", "batch_size=128", "optim.lr=0.2", "benchmark.variants=[]")
COMMAND = (*TINY, *THREE)
MEASURED = "benchmark.variants=[fp32]"


@pytest.fixture(scope="session")
def trained_once(made_once):
    """Outputs with what the plain command trains."""
    import train

    return made_once(
        "plain-run", lambda folder: call_once(train.main, f"outputs={folder}", *COMMAND)
    )


@pytest.fixture
def trained(trained_once, outputs):
    """Put a copy of them where the test's outputs are; return the run's folder."""
    shutil.copytree(trained_once, outputs)
    return only_run(outputs)


def only_run(outputs):
    (folder,) = (outputs / "runs").iterdir()
    return folder


def no_training(self, batch, batch_idx):
    raise AssertionError("nothing is left to train")


def stop_in_epoch(monkeypatch, epoch, number=signal.SIGINT):
    """Press Ctrl-C in the middle of an epoch."""
    step = ImageClassifier.training_step

    def interrupted(self, batch, batch_idx):
        assert self.current_epoch < epoch or batch_idx <= 3  # no step after that one
        if self.current_epoch == epoch and batch_idx == 3:
            signal.raise_signal(number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", interrupted)


def test_from_the_command_to_the_row(command, outputs):
    ended = command(*TINY_MOBILENET, *THREE, MEASURED, "id=first")
    assert ended.status == 0, ended.err
    folder = only_run(outputs)
    first_line = ended.out.splitlines()[0]
    assert first_line.startswith(f"{folder.name} in {folder} on ")
    assert "M parameters" in first_line
    assert "changed" not in ended.out
    assert "about " in ended.out  # the estimated duration
    for name in ("best.ckpt", "last.ckpt", "weights.safetensors", "results.md", "| first |"):
        assert name in ended.out

    run = Run.load(folder)
    assert run.status == "finished"
    assert run.code.commit
    assert run.fp32_precision is None  # which is of GPUs
    (path,) = (folder / "measurements").iterdir()
    measurement = Measurement.read(path)
    assert measurement.status in ("ok", "disturbed")  # by what else the machine does
    # What Lightning tested, what was measured and what a fresh backbone says: one number.
    assert measurement.test_acc == pytest.approx(run.test_acc, abs=1e-3)
    data = DigitsDataModule(**{k: v for k, v in run.config["data"].items() if k != "_target_"})
    fresh = load_backbone(folder)
    predictions = evaluate(fresh, data, torch.device("cpu"))
    assert predictions.accuracy == pytest.approx(run.test_acc, abs=1e-3)
    assert predictions.confusion(10) == measurement.confusion
    assert predictions.true.tolist() == data.images.test.labels.tolist()
    assert (Predictions.read(folder, "fp32").predicted == predictions.predicted).all()
    rows = torch.tensor(measurement.confusion).sum(1)
    assert rows.tolist() == data.images.test.labels.bincount().tolist()
    assert run.classes == list("0123456789")
    record = BenchmarkRecord.read(BenchmarkRecord.path(outputs, measurement.benchmark))
    assert record.timing(record.ranked[0]).latency == measurement.latency
    assert measurement.environment.flags["threads"] == 1

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for split in ("train", "val"):
        assert len(events.Scalars(f"{split}/loss")) == len(events.Scalars(f"{split}/acc")) == 3
    assert {"lr", "val/acc", "weights/val_acc", "weights/acc"} <= scalars
    assert "configuration/text_summary" in events.Tags()["tensors"]


def test_the_same_command_again_shows_the_row(command, outputs, monkeypatch, trained):
    folder = trained
    weights = (folder / "weights.safetensors").read_bytes()
    (outputs / "results.csv").unlink()
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    again = command(*COMMAND, "id=named")
    assert again.status == 0
    assert "is finished" in again.out
    for line in again.out.splitlines():  # of a checkout with changes nobody can tell
        assert "changed" not in line or "changed: perhaps the code" in line
    assert "| named |" in again.out
    assert Run.load(folder).id == "named"
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert len((outputs / "results.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_continued_run_equals_an_uninterrupted_one(
    workers, command, outputs, tmp_path, monkeypatch
):
    more = (
        (
            "ema=0.9",
            "augment=[crop,trivialaugment,progressive,mixup]",
            "augment.progressive.until=1.0",  # other sizes in the epochs before and after
        )
        if workers
        else ("data.val_fraction=0",)
    )
    settings = (*TINY_MOBILENET, *THREE, f"data.num_workers={workers}", *more)  # drops out, too
    reference = tmp_path / "reference"
    assert command(*settings, f"outputs={reference}").status == 0
    with monkeypatch.context() as patch:
        number, status = (signal.SIGINT, 130) if workers == 0 else (signal.SIGTERM, 143)
        handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        stop_in_epoch(patch, 2, number)
        stopped = command(*settings)
    assert stopped.status == status
    assert "Error executing job" not in stopped.err
    assert stopped.err.splitlines()[-1].endswith("the same command again continues it")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    folder = only_run(outputs)
    assert Run.load(folder).status == "interrupted"
    assert not (folder / "weights.safetensors").exists()
    assert not (outputs / "results.csv").exists()
    stopped = Run.load(folder)
    assert stopped.machine.threads == torch.get_num_threads()
    if workers:
        replace(stopped, machine=replace(stopped.machine, threads=77)).save(folder)

    again = command(*settings)
    assert again.status == 0, again.err
    assert "continuing after epoch 2" in again.out
    assert ("since the run began changed: threads, 77 -> " in again.out) == bool(workers)
    other = only_run(reference)
    assert other.name == folder.name
    assert len((outputs / "results.csv").read_text().splitlines()) == 2
    ours, theirs = (load_file(f / "weights.safetensors") for f in (folder, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    checkpoints = [
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (folder, other)
    ]
    parts = ["global_step", "state_dict", "optimizer_states", "lr_schedulers"]
    parts += [EMA.CURRENT] if workers else []
    for part in parts:
        torch.testing.assert_close(*(c[part] for c in checkpoints), rtol=0, atol=0)
    assert Run.load(folder).val_acc == Run.load(other).val_acc
    assert Run.load(folder).test_acc == Run.load(other).test_acc
    assert curves(folder) == curves(other)  # no point twice, none missing


def curves(folder):
    """Every point of TensorBoard's that does not come from timing."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith(("weights/lat_", "weights/calls_"))
    }


def test_a_closed_window_ends_it_like_ctrl_c(command, outputs, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1, signal.SIGHUP)
        ended = command(*COMMAND)
    assert ended.status == 129
    assert ended.err.splitlines()[-1].endswith("the same command again continues it")
    assert Run.load(only_run(outputs)).status == "interrupted"


def test_an_interrupted_measurement_is_continued_without_training(command, outputs, monkeypatch):
    """In the rounds what there is is kept, and not taken for a measurement."""
    real = session.interleave

    def interrupted(*arguments):
        *rest, on_round, look = arguments

        def watched(done, expected):
            if done == 7:
                signal.raise_signal(signal.SIGINT)
            return on_round(done, expected)

        return real(*rest, watched, look)

    settings = (*COMMAND, "benchmark.variants=[fp32,fused]")
    with monkeypatch.context() as patch:
        patch.setattr(session, "interleave", interrupted)
        assert command(*settings).status == 130
    folder = only_run(outputs)
    run = Run.load(folder)
    assert run.status == "finished"  # the training is
    stopped = [Measurement.read(path) for path in sorted((folder / "measurements").iterdir())]
    assert [(one.rounds, one.ended) for one in stopped] == [(7, "stopped")] * 2
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    assert command(*settings).status == 0
    again = Run.load(folder)
    assert again == run
    whole = [Measurement.read(path) for path in sorted((folder / "measurements").iterdir())]
    assert all(one.rounds >= 30 for one in whole)
    assert [one.test_acc for one in whole] == [one.test_acc for one in stopped]
    assert command(*settings).status == 0  # what was measured is not measured again
    last = [Measurement.read(path) for path in sorted((folder / "measurements").iterdir())]
    assert last == whole
    assert len((outputs / "results.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "more",
    [
        ("logger=csv",),
        ("ema=0.5",),
        ("model.branches=true", "model.scale=1.0"),  # another form is trained than executed
    ],
)
def test_a_run_without_a_test_is_tested_when_it_is_asked_for(
    more, command, call, outputs, monkeypatch
):
    """By the weights that were chosen, and once; the curves stay."""
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "test_step", None)
        ended = command(*COMMAND, *more, "test=false")
        assert ended.status == 0, ended.err
        folder = only_run(outputs)
        untested = Run.load(folder)
        assert (untested.status, untested.test_acc) == ("finished", None)
        assert untested.val_acc is not None
        assert [row.test_acc for row in rows_of(folder)] == [None]
        assert "is finished" in command(*COMMAND, *more, "test=false").out
        measured = call(measure.main, f"outputs={outputs}", "run=all")
        assert measured.status == 2
        assert "left out: 1 run without a test" in measured.out
        before = [path.read_text() for path in folder.glob("csv/metrics.csv")]
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    assert command(*COMMAND, *more).status == 0
    tested = Run.load(folder)
    for lines, path in zip(before, folder.glob("csv/metrics.csv"), strict=True):
        said = [{*line.split(",")} for line in lines.splitlines()[1:]]
        now = [{*line.split(",")} for line in path.read_text().splitlines()[1:]]
        assert len(now) == len(said) + 1
        assert all(one <= other | {""} for one, other in zip(said, now, strict=False))
    assert tested == replace(untested, test_acc=tested.test_acc)
    assert "test" not in tested.config  # its accuracy tells it
    assert [row.test_acc for row in rows_of(folder)] == [tested.test_acc]
    expected = evaluate(load_backbone(folder), load_data(folder), torch.device("cpu"))
    assert tested.test_acc == pytest.approx(expected.accuracy, abs=0.01)
    monkeypatch.setattr(ImageClassifier, "test_step", None)
    assert "is finished" in command(*COMMAND, *more).out


def broken(*arguments, **settings):
    raise PermissionError(13, "Permission denied", "somewhere")


# What fails while the run is tested and its loggers are closed: what the line says of it.
ENDING = {
    "lightning.pytorch.loggers.TensorBoardLogger.finalize": (
        "closing logger.tensorboard: PermissionError: "
    ),
    "cifar_lightning.training.pictures.MisclassifiedImages.on_test_end": (
        "ending the test: PermissionError: "
    ),
    "cifar_lightning.training.pictures.plots.named_images": None,
}
AFTER_TRAINING = ENDING | {
    # Once it is finished.
    "cifar_lightning.benchmark.accuracy.evaluate": "measuring fp32: PermissionError: ",
    "cifar_lightning.benchmark.session.device_lock": "measuring: PermissionError: ",
    "cifar_lightning.benchmark.candidates.load_backbone": "measuring fp32: PermissionError: ",
    "cifar_lightning.comparison.tensorboard.plots.confusion_matrix": (
        "drawing for TensorBoard: PermissionError: "
    ),
    "cifar_lightning.comparison.publish.write_table": "writing the table: PermissionError: ",
    "cifar_lightning.runs.predictions.write_atomically": "measuring fp32: PermissionError: ",
    "cifar_lightning.benchmark.together.write_atomically": "measuring: PermissionError: ",
    "cifar_lightning.runs.measurement.write_atomically": "measuring: PermissionError: ",
    "cifar_lightning.runs.folder.RunFolder.is_undrawn": (
        "drawing for TensorBoard: PermissionError: "
    ),
    "cifar_lightning.comparison.publish.markdown": "showing the rows: PermissionError: ",
    "cifar_lightning.training.run.show_files": "showing its files: PermissionError: ",
}


def test_all_that_follows_a_training_is_attempted():
    """Every step in the code has its fault below."""
    said = " ".join(filter(None, AFTER_TRAINING.values()))
    for name in ("training/run.py", "training/loggers.py", "comparison/publish.py"):
        text = (ROOT / "cifar_lightning" / name).read_text()
        steps = re.findall(r'(?:attempt\(f?|_close, [\w.]+, f)"(\w+ \w*)', text)
        assert steps
        assert {step for step in steps if step not in said} <= {"giving it"}, name


def test_a_finished_run_that_can_not_get_another_id(command, trained, monkeypatch):
    before = Run.load(trained)
    for settings in (COMMAND, (*COMMAND, MEASURED)):  # nothing is left to do, and something
        with monkeypatch.context() as patch:
            patch.setattr("cifar_lightning.runs.run.write_atomically", broken)
            ended = command(*settings, "id=other")
        assert ended.status == 1
        assert "finished, but giving it the ID: PermissionError: " in ended.err
        assert Run.load(trained) == before


@pytest.mark.parametrize("what", AFTER_TRAINING)
def test_a_finished_training_stays_finished(what, command, outputs, trained_once, monkeypatch):
    settings = (*COMMAND, MEASURED)
    if what not in ENDING:
        shutil.copytree(trained_once, outputs)
    else:
        settings = (*settings, "epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(what, broken)
        ended = command(*settings)
    folder = only_run(outputs)
    run = Run.load(folder)
    assert run.status == "finished"
    assert run.test_acc is not None
    assert run.error is None
    said = AFTER_TRAINING[what]
    if said is None:
        assert ended.status == 0, ended.err
        return
    assert ended.status == 1
    line = ended.err.splitlines()[-1]  # behind the progress bar
    assert line.startswith(f"error: {folder.name}: finished, but {said}")
    assert "the same command again does what is missing" in line
    if "measuring fp32" in said:  # and its row says why there is no latency
        assert "Permission denied" in (outputs / "results.csv").read_text()
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    again = command(*settings)
    assert again.status == 0, again.err
    (row,) = rows_of(folder)
    assert row.lat_mean_ms > 0
    assert row.error is None or row.status == "disturbed"
    assert "Permission" not in (outputs / "results.csv").read_text()


def test_a_measuring_process_that_died_is_told(command, outputs, trained_once, monkeypatch):
    """Though what others measured is kept."""
    shutil.copytree(trained_once, outputs)
    died = Measured(error="it died")
    monkeypatch.setattr("cifar_lightning.training.run.measure_missing", lambda *_: died)
    ended = command(*COMMAND, MEASURED)
    assert ended.status == 1
    assert "finished, but measuring: it died; the same command" in ended.err


@pytest.mark.parametrize("lock", ["device", "table"])
def test_a_lock_that_can_not_be_had_is_found_before_training(
    lock, command, outputs, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    path = tmp_path / "cifar-lightning-cpu.lock" if lock == "device" else outputs / ".results.lock"
    path.mkdir(parents=True)  # nobody can lock that, not even root
    ended = command(*COMMAND, MEASURED)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {path}: ")
    assert len(ended.err.splitlines()) == 1
    assert not list(outputs.glob("runs/*"))


def test_measuring_later(command, monkeypatch, trained):
    folder = trained
    assert Run.load(folder).status == "finished"
    assert not (folder / "measurements").exists()
    (row,) = rows_of(folder)
    assert row.test_acc is not None
    assert row.lat_mean_ms is None
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    later = command(*COMMAND, MEASURED)
    assert later.status == 0, later.err
    (row,) = rows_of(folder)
    assert row.lat_mean_ms > 0


def test_a_gpu_has_rows_of_its_own(command, monkeypatch, trained, resolved):
    """What was measured on a CPU is missing where there is a GPU, if that is what would train."""
    assert command(*COMMAND, MEASURED).status == 0
    assert Measurement.exists(trained, "fp32", 1, "quick")
    assert not Measurement.exists(trained, "fp32", 1, "quick", on_gpu=True)
    auto, _ = resolved(*COMMAND, MEASURED, "trainer.accelerator=auto")
    on_cpu, _ = resolved(*COMMAND, MEASURED)
    for driver, left in (Path("/nowhere"), False), (Path("/dev/null"), True):
        monkeypatch.setattr(environment, "GPU_DRIVERS", (driver,))
        assert (finished(trained, auto) is None) == left
        assert finished(trained, on_cpu) is not None


def test_what_is_asked_of_a_finished_run(command, outputs, monkeypatch):
    """Mistakes are mistakes, and a variant is the same however its parts are ordered."""
    settings = (*COMMAND, "benchmark.variants=[fused+channels_last]")
    assert command(*settings).status == 0
    for wrong in ("threads=2", "threads=[0]", "variants=null", "protocol=slow"):
        ended = command(*settings, f"benchmark.{wrong}")
        assert ended.status == 2
        assert ended.err.startswith(f"error: benchmark.{wrong.partition('=')[0]}=")
        assert len(ended.err.splitlines()) == 1
    monkeypatch.delitem(sys.modules, "cifar_lightning.training.run")  # needs seconds to load
    again = command(*COMMAND, "benchmark.variants=[channels_last+fp32+fused]")
    assert "is finished" in again.out
    assert "cifar_lightning.training.run" not in sys.modules


def test_several_numbers_of_threads_are_finished_too(command, outputs, monkeypatch):
    settings = (*COMMAND, "epochs=1", MEASURED, "benchmark.threads=[1,2]")
    assert command(*settings).status == 0
    assert [row.threads for row in rows_of(only_run(outputs))] == [1, 2]
    monkeypatch.delitem(sys.modules, "cifar_lightning.training.run")  # needs seconds to load
    assert command(*settings).status == 0
    assert "cifar_lightning.training.run" not in sys.modules


@pytest.mark.parametrize(("step", "compiled"), [(2, False), (60, False), (60, True)])
def test_a_loss_that_is_no_number(step, compiled, command, outputs, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, mode: forward)  # takes long
    training_step = ImageClassifier.training_step

    def broken(self, batch, batch_idx):
        loss = training_step(self, batch, batch_idx)
        return loss * float("nan") if self.current_epoch == 1 and batch_idx >= step - 1 else loss

    monkeypatch.setattr(ImageClassifier, "training_step", broken)
    ended = command(
        *TINY, "epochs=3", "batch_size=16", "benchmark.variants=[]", f"compile={compiled}"
    )
    assert ended.status == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error")]
    assert f"the training loss is nan in epoch 2, step {step} of" in line
    assert "a lower optim.lr" in line
    assert ("compile=false" in line) == compiled
    folder = only_run(outputs)
    assert Run.load(folder).status == "failed"
    assert f"step {step} of" in Run.load(folder).error
    assert ",failed," in (outputs / "results.csv").read_text()
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 0  # the last good one


def test_a_full_disk(command, outputs, monkeypatch):
    """The error of the system while the second epoch's checkpoint is written."""
    written = []
    fsync = os.fsync

    def full(descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name.endswith("-last.ckpt"):
            written.append(name)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = command(*COMMAND)
    assert ended.status == 1
    assert "no space left" in ended.err
    assert "Traceback" not in ended.err + ended.out
    folder = only_run(outputs)
    assert Run.load(folder).status == "running"  # as before: it could not be written
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    again = command(*COMMAND)
    assert "continuing after epoch 1" in again.out
    assert again.status == 0


def test_a_full_disk_leaves_what_a_run_was_made_with(command, trained, monkeypatch):
    """Hydra writes it anew with every command."""
    before = {path: path.read_bytes() for path in (trained / ".hydra").iterdir()}
    assert len(before) == 3

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ended = command(*COMMAND, "id=another")
    assert (ended.status, ended.err.count("no space left")) == (1, 1)
    assert {path: path.read_bytes() for path in (trained / ".hydra").iterdir()} == before


def test_a_log_that_can_not_be_written_is_named(command, trained):
    """By an error that is not the system's own."""
    (trained / "train.log").unlink()
    (trained / "train.log").mkdir()
    ended = command(*COMMAND)
    assert (ended.status, ended.err) == (2, f"error: {trained / 'train.log'}: Is a directory\n")


@pytest.mark.parametrize("name", ["measurements", "predictions"])
def test_a_folder_that_can_not_be_written_is_found_before_measuring(name, again, trained):
    (trained / name).touch()
    ended = again(f"run={trained.name}")
    assert ended.status == 2
    assert ended.err == f"error: {trained / name}: can't be written to\n"
    assert not (trained.parent.parent / "benchmarks").exists()


def test_two_commands_at_the_same_run(command, outputs, trained):
    name = trained.name
    with alone(outputs / "runs" / name / ".lock", "held"):
        ended = command(*COMMAND, "rerun=true")
    assert ended.status == 2
    assert ended.err == f"error: {name}: already running in another process; let it finish\n"


def test_a_refused_command_leaves_the_files_of_the_one_that_begins(command, trained):
    """Another process holds the lock and has not come to write run.json yet."""
    folder = trained
    (folder / "run.json").unlink()
    with alone(folder / ".lock", "held"):
        assert command(*COMMAND).status == 2
        assert (folder / ".lock").exists()
        assert (folder / ".hydra").exists()
        assert (folder / "train.log").exists()


def test_outputs_that_were_moved(command, outputs, tmp_path, monkeypatch):
    """A run goes on at its new place with its best score so far, and with no epochs left, too."""
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2)
        assert command(*COMMAND).status == 130
    moved = tmp_path / "moved"
    outputs.rename(moved)
    again = command(*COMMAND, f"outputs={moved}")
    assert again.status == 0, again.err
    folder = only_run(moved)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert Run.load(folder).val_acc is not None
    assert not outputs.exists()
    replace(Run.load(folder), status="interrupted").save(folder)
    (folder / "weights.safetensors").unlink()
    moved.rename(outputs)
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    assert command(*COMMAND).status == 0
    shipped = load_file(only_run(outputs) / "weights.safetensors")
    assert all(torch.equal(shipped[k], best["state_dict"][f"backbone.{k}"]) for k in shipped)


@pytest.mark.parametrize("what", ["weights.safetensors", "run.json"])
def test_a_finished_run_that_lost_a_file_is_finished_again(what, command, trained):
    """As after a kill while rerun=true was clearing the folder."""
    folder = trained
    before = Run.load(folder).test_acc
    (folder / what).unlink()
    again = command(*COMMAND)
    assert again.status == 0, again.err
    assert Run.load(folder).test_acc == before


@pytest.mark.parametrize("kept", [["last.ckpt"], []])
def test_weights_and_best_checkpoint_are_gone(kept, command, trained):
    folder = trained
    before = Run.load(folder)
    for path in (folder / "weights.safetensors", *(folder / "checkpoints").iterdir()):
        if path.name not in kept:
            path.unlink()
    for _ in range(2):
        ended = command(*COMMAND)
        assert ended.status == 2
        (line,) = ended.err.splitlines()
        assert line.endswith("start over with rerun=true")
        assert str(folder / "checkpoints") in line
        assert Run.load(folder) == before
    assert command(*COMMAND, "rerun=true").status == 0
    assert (folder / "weights.safetensors").exists()


def test_what_has_changed_since_is_said(command, trained):
    folder = trained
    run = Run.load(folder)
    replace(run, code={"commit": "0" * 40, "dirty": False}, versions={"torch": "1.0"}).save(folder)
    shown = command(*COMMAND)
    assert "since then changed: the code, 00000000 -> " in shown.out
    assert "since then changed: torch, 1.0 -> " in shown.out


def test_a_run_that_fails_says_so_and_has_a_row(command, outputs, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError("out of something")

    monkeypatch.setattr(ImageClassifier, "validation_step", fail)
    ended = command(*COMMAND)
    assert ended.status == 1
    assert "RuntimeError: out of something" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.out + ended.err
    folder = only_run(outputs)
    assert Run.load(folder).status == "failed"
    assert "Traceback" in (folder / "train.log").read_text()
    assert ",failed," in (outputs / "results.csv").read_text()


def test_a_damaged_checkpoint(command, outputs, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1)
        command(*COMMAND)
    folder = only_run(outputs)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    ended = command(*COMMAND)
    assert ended.status == 2
    assert ended.err == f"error: {last}: damaged; start over with rerun=true\n"
    assert command(*COMMAND, "rerun=true").status == 0
    assert Run.load(folder).status == "finished"


def test_other_data_under_the_same_name(command, outputs, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1)
        command(*COMMAND)
    read = DigitsDataModule.read

    def changed(self):
        data = read(self)
        data.train.images[0] += 1
        return data

    monkeypatch.setattr(DigitsDataModule, "read", changed)
    ended = command(*COMMAND)
    assert ended.status == 2
    assert "was trained on other data" in ended.err
    assert Run.load(only_run(outputs)).status == "interrupted"


@pytest.mark.slow
def test_a_compiled_training_is_the_same_training(command, outputs, tmp_path):
    losses = []
    for place, compiled in ((outputs, "true"), (tmp_path / "eager", "false")):
        settings = (*TINY, "epochs=1", "batch_size=128", f"compile={compiled}")
        assert command(*settings, f"outputs={place}").status == 0
        events = EventAccumulator(str(only_run(place) / "tensorboard"))
        events.Reload()
        losses.append(events.Scalars("train/loss")[0].value)
    assert only_run(outputs).name == only_run(tmp_path / "eager").name
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert load_backbone(only_run(outputs))(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_averaged_weights_are_kept_and_tested(command, outputs, monkeypatch):
    """What is validated, chosen, tested and shipped is the average, computed here once more."""
    decay, average, lives = 0.95, {}, {}
    step = ImageClassifier.optimizer_step

    def followed(self, *arguments, **settings):
        step(self, *arguments, **settings)
        for name, value in self.backbone.state_dict().items():
            old = average.get(name, value)
            average[name] = (
                old * decay + value * (1 - decay) if value.is_floating_point() else value.clone()
            ).clone()
        lives[self.current_epoch] = {k: v.clone() for k, v in self.backbone.state_dict().items()}

    monkeypatch.setattr(ImageClassifier, "optimizer_step", followed)
    # A high rate to the end keeps the weights far away from their average.
    settings = (*COMMAND, MEASURED, f"ema={decay}", "scheduler=constant", "epochs=4")
    assert command(*settings).status == 0
    folder = only_run(outputs)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in last["state_dict"].items():
        key = name.removeprefix("backbone.")
        if name.startswith("backbone.") and value.is_floating_point():
            torch.testing.assert_close(value, average[key], rtol=1e-3, atol=1e-4)
    live = last[EMA.CURRENT]["backbone.fc.weight"]
    assert not torch.equal(live, last["state_dict"]["backbone.fc.weight"])
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    shipped = load_file(folder / "weights.safetensors")
    assert all(torch.equal(shipped[key], best[f"backbone.{key}"]) for key in shipped)
    (path,) = (folder / "measurements").iterdir()
    run = Run.load(folder)
    assert Measurement.read(path).test_acc == pytest.approx(run.test_acc, abs=1e-3)
    chosen = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    network, data = load_backbone(folder), load_data(folder)
    train, test, held_out = data.images.train, data.images.test, data.indices["val"]
    images = {"val": train.images[held_out], "test": test.images}
    labels = {"val": train.labels[held_out], "test": test.labels}
    for split, found in (("val", run.val_acc), ("test", run.test_acc)):
        accuracies = []
        averaged = {k.removeprefix("backbone."): v for k, v in chosen["state_dict"].items()}
        for state in (averaged, lives[chosen["epoch"]]):
            network.load_state_dict(state)
            with torch.no_grad():
                right = network(data.normalize(images[split])).argmax(1) == labels[split]
            accuracies.append(100 * float(right.float().mean()))
        assert found == pytest.approx(accuracies[0], abs=1e-3)
        assert found != pytest.approx(accuracies[1], abs=0.2)  # else this test could not fail


def test_training_on_all_images(command, outputs):
    """Nothing is held out, and the last checkpoint is the one that is tested."""
    ended = command(*COMMAND, "data.val_fraction=0")
    assert ended.status == 0, ended.err
    folder = only_run(outputs)
    run = Run.load(folder)
    assert run.val_acc is None
    assert run.test_acc is not None
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3 * (1438 // 128)
    shipped = load_file(folder / "weights.safetensors")
    assert all(torch.equal(shipped[k], last["state_dict"][f"backbone.{k}"]) for k in shipped)
    (row,) = rows_of(folder)
    assert row.val_acc is None
    assert row.test_acc == run.test_acc
    assert "val/acc" not in curves(folder)


def test_a_profile_is_shown(command, outputs):
    ended = command(*TINY, "epochs=1", "benchmark.variants=[]", "trainer.profiler=simple")
    assert ended.status == 0, ended.err
    assert "run_training_epoch" in ended.out


def test_training_images_are_drawn(command, outputs):
    """The first batch's, as the augmentation leaves them."""
    command(*COMMAND, "epochs=1", "augment=flip", "augment.flip.p=1")
    folder = only_run(outputs)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    (image,) = events.Images("train/images")
    found = torch.from_numpy(np.array(Image.open(io.BytesIO(image.encoded_image_string))))
    images, _ = next(iter(load_data(folder).loader("train")))
    assert torch.equal(found.permute(2, 0, 1), make_grid(images[:32].flip(3)))


def test_a_training_on_small_images_first(command, outputs):
    """Later epochs take longer, so the estimate is a lower bound."""
    settings = (
        *COMMAND,
        "batch_size=32",
        "augment=[crop,progressive]",
        "augment.progressive.start=8",
    )
    ended = command(*settings)
    assert ended.status == 0, ended.err
    assert "at least" in ended.out + ended.err
    assert "about" not in ended.out + ended.err
    events = EventAccumulator(str(only_run(outputs) / "tensorboard"))
    events.Reload()
    (image,) = events.Images("train/images")
    assert image.width < 8 * 32


def test_own_images(command, outputs, image_folder):
    ended = command(
        "data=imagefolder",
        "data.name=few",
        f"data.root={image_folder}",
        *TINY[1:],
        "epochs=1",
        "batch_size=32",
    )
    assert ended.status == 0, ended.err
    assert "few" in (outputs / "results.csv").read_text()


def test_everything_that_is_loaded_is_loaded_safely():
    paths = [*(ROOT / "cifar_lightning").rglob("*.py"), *(ROOT / "perf").glob("*.py")]
    text = "".join(path.read_text() for path in paths)
    calls = re.findall(r"torch\.load\(.*?\)", text, re.DOTALL)
    assert calls
    assert all("weights_only=True" in call for call in calls)


def test_another_runs_checkpoints_are_refused(command, outputs):
    settings = (*TINY, "epochs=1", "batch_size=512", "benchmark.variants=[]")
    for seed in (0, 1):
        assert command(*settings, f"seed={seed}").status == 0
    ours, theirs = sorted(
        (outputs / "runs").iterdir(), key=lambda path: Run.load(path).config["seed"]
    )
    replace(Run.load(ours), status="interrupted").save(ours)
    for name in ("last.ckpt", "best.ckpt"):
        path = ours / "checkpoints" / name
        good = path.read_bytes()
        shutil.copy(theirs / "checkpoints" / name, path)
        ended = command(*settings)
        assert ended.status == 2
        line = f"error: {path}: of the run {theirs.name}; start over with rerun=true\n"
        assert ended.err == line
        path.write_bytes(good)
    assert command(*settings).status == 0
    shutil.copy(theirs / "weights.safetensors", ours)
    ended = command(*settings)
    assert ended.status == 2
    assert f"(they are of {theirs.name}); rerun=true trains them again" in ended.err
    assert command(*settings, "rerun=true").status == 0

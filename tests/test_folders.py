"""Whose a run's folder is: nothing but a run's is written to or removed."""

import hashlib
from pathlib import Path

import pytest
from conftest import TINY

from cifar_lightning.runs.run import Run
from cifar_lightning.training.module import ImageClassifier

COMMAND = (*TINY, "epochs=1", "batch_size=128", "benchmark.variants=[]")


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def precious(tmp_path):
    """A folder of the user's with names that a run uses, too."""
    folder = tmp_path / "precious"
    for name in ("checkpoints/best.ckpt", "tensorboard/events", "weights.safetensors", "train.log"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    return folder


@pytest.fixture
def name(resolved):
    from cifar_lightning.runs.identity import run_name

    return run_name(*resolved(*COMMAND))


def no_training(*arguments):
    raise AssertionError("refused before training")


@pytest.mark.parametrize("rerun", ["rerun=false", "rerun=true"])
@pytest.mark.parametrize(
    "place", ["hydra.run.dir", "the folder", "its link", "runs' link", "a link in it"]
)
def test_what_is_not_a_run_is_left_alone(
    place, rerun, command, outputs, precious, name, monkeypatch
):
    monkeypatch.setattr(ImageClassifier, "training_step", no_training)
    folder, more = outputs / "runs" / name, (rerun,)
    if place == "hydra.run.dir":
        more += (f"hydra.run.dir={precious}",)
    elif place == "the folder":
        folder.parent.mkdir(parents=True)
        precious = precious.rename(folder)
    elif place == "its link":
        folder.parent.mkdir(parents=True)
        folder.symlink_to(precious)
    elif place == "runs' link":
        outputs.mkdir()
        folder.parent.symlink_to(precious)
    else:
        folder.mkdir(parents=True)
        (folder / "checkpoints").symlink_to(precious / "checkpoints")
    before = contents(precious)
    ended = command(*COMMAND, *more)
    assert ended.status == 2, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert contents(precious) == before
    if place == "hydra.run.dir":
        assert not outputs.exists()


def test_another_runs_folder_is_left_alone(command, outputs, name):
    """As after `cp -r` or a renamed folder."""
    assert command(*COMMAND, "seed=1").status == 0
    (folder,) = (outputs / "runs").iterdir()
    folder = folder.rename(folder.with_name(name))
    before = contents(folder)
    ended = command(*COMMAND, "rerun=true")
    assert ended.status == 2
    assert f"holds the run {Run.load(folder).name}" in ended.err
    assert contents(folder) == before


@pytest.mark.parametrize("rerun", ["rerun=false", "rerun=true"])
def test_a_record_that_cannot_be_read_proves_nothing(command, outputs, name, rerun):
    folder = outputs / "runs" / name
    mine = {"run.json": '{"mine": 1}', "checkpoints/thesis.ckpt": "x", "measurements/lab.json": "y"}
    for path, text in mine.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    before = contents(folder)
    for foreign in (
        "checkpoints, checkpoints/thesis.ckpt, measurements, measurements/lab.json, run.json",
        "checkpoints/thesis.ckpt, measurements/lab.json",
    ):
        ended = command(*COMMAND, rerun)
        assert ended.status == 2
        (line,) = ended.err.splitlines()
        assert foreign in line
        assert "rerun=true" not in line
        assert contents(folder) == before
        (folder / ".hydra").mkdir(exist_ok=True)  # as if a run had been there
        before = contents(folder)


def test_a_damaged_record_among_files_of_ours_is_a_runs(command, outputs):
    assert command(*COMMAND).status == 0
    (folder,) = (outputs / "runs").iterdir()
    (folder / "run.json").write_text("{")
    ended = command(*COMMAND)
    assert ended.err == f"error: {folder / 'run.json'}: damaged; start over with rerun=true\n"
    (folder / "checkpoints" / "thesis.ckpt").write_text("mine")
    assert "thesis.ckpt" in command(*COMMAND, "rerun=true").err
    (folder / "checkpoints" / "thesis.ckpt").unlink()
    assert command(*COMMAND, "rerun=true").status == 0


def test_what_the_user_puts_beside_a_run_stays(command, outputs):
    assert command(*COMMAND).status == 0
    (folder,) = (outputs / "runs").iterdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "tensorboard" / "old").mkdir()
    assert command(*COMMAND, "rerun=true").status == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "tensorboard" / "old").exists()


def test_outputs_may_be_a_link(command, outputs, tmp_path):
    """The user's own choice of where everything goes."""
    (tmp_path / "large disk").mkdir()
    outputs.symlink_to(tmp_path / "large disk")
    assert command(*COMMAND).status == 0
    assert Path(outputs / "results.md").exists()

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from cifar_lightning import board
from cifar_lightning.results import Run, find_run


@pytest.fixture
def folder(finished_run, tmp_path):
    return shutil.copytree(find_run(finished_run, "tiny"), tmp_path / "run")


def read(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def hyperparameters(events):
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    return {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in data.session_start_info.hparams.items()
    }


def test_settings_and_results_can_be_compared(folder):
    run, events = Run.load(folder), read(folder)
    found = hyperparameters(events)
    assert found["model"] == "mobilenetv3"
    assert found["optim.lr"] == run.config["optim"]["lr"]
    assert (found["seed"], found["epochs"], found["augment"]) == (0, 1, "crop")
    assert not {"trainer.max_epochs", "outputs", "id", "data.root"} & set(found)
    finals = {tag for tag in events.Tags()["scalars"] if tag.startswith("final/")}
    assert finals == {
        f"final/{name}"
        for name in (
            "val_acc", "test_acc", "lat_mean_ms", "lat_p95_ms", "size_mb", "params_m", "macs_m",
        )
    }  # fmt: skip
    assert events.Scalars("final/test_acc")[0].value == pytest.approx(run.test_acc, abs=1e-3)


def test_pictures(folder):
    events = read(folder)
    assert set(events.Tags()["images"]) == {
        "train/images", "test/misclassified", "test/confusion",
    }  # fmt: skip
    assert set(events.Tags()["histograms"]) == {"latency/fp32-t1", "latency/fused-t1"}


def test_scalars_are_without_clutter(folder):
    tags = set(read(folder).Tags()["scalars"])
    curves = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "acc")}
    assert {tag for tag in tags if not tag.startswith("final/")} == curves | {"lr"}


def test_drawing_again_replaces(folder):
    before = len(list((folder / "tensorboard").iterdir()))
    board.draw(folder)
    assert len(list((folder / "tensorboard").iterdir())) == before
    assert len(read(folder).Scalars("final/test_acc")) == 1


def test_an_unfinished_run_gets_nothing(folder, tmp_path):
    from dataclasses import replace

    shutil.rmtree(folder / "tensorboard")
    replace(Run.load(folder), status="interrupted").save(folder)
    board.draw(folder)
    assert not (folder / "tensorboard").exists()

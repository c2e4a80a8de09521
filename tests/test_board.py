import os
import shutil
from dataclasses import replace

import pytest
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from cifar_lightning.comparison import tensorboard
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Run


@pytest.fixture
def folder(finished_run, tmp_path):
    """A run whose measurements are complete and undisturbed, whatever else the machine did."""
    outputs = shutil.copytree(finished_run, tmp_path / "outputs")
    folder = find_run(outputs, "tiny")
    for path in (folder / "measurements").iterdir():
        one = Measurement.read(path)
        # A busy machine takes fewer calls than a p95 needs.
        latency = replace(one.latency, p95_ms=one.latency.p95_ms or one.latency.max_ms)
        replace(one, status="ok", reason=None, latency=latency).save(folder)
    tensorboard.draw(folder)
    return folder


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
    assert (found["threads"], found["protocol"]) == (1, "quick")
    assert not {"trainer.max_epochs", "outputs", "id", "data.root"} & set(found)
    finals = {tag for tag in events.Tags()["scalars"] if tag.startswith("final/")}
    assert finals == {
        f"final/{name}"
        for name in (
            "val_acc", "test_acc", "lat_mean_ms", "lat_p95_ms", "size_mb", "params_m", "macs_m",
        )
    }  # fmt: skip
    assert events.Scalars("final/test_acc")[0].value == pytest.approx(run.test_acc, abs=1e-3)


def test_every_runs_settings_are_shown(folder, tmp_path):
    """TensorBoard itself is asked, with a run that has a setting which another one lacks."""
    from google.protobuf.json_format import MessageToDict
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    other = shutil.copytree(folder, tmp_path / "other")
    run = Run.load(other)
    replace(run, config=run.config | {"ema": 0.99}).save(other)
    tensorboard.draw(other)
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(tmp_path))))
    request = RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), []
    )
    found = MessageToDict(experiment)
    assert {"ema", "optim.lr", "model"} <= {info["name"] for info in found["hparamInfos"]}
    metrics = {info["name"]["tag"] for info in found["metricInfos"]}
    assert {"final/test_acc", "final/lat_mean_ms"} <= metrics


def test_a_disturbed_latency_is_not_shown(folder):
    for path in (folder / "measurements").iterdir():
        replace(Measurement.read(path), status="disturbed").save(folder)
    tensorboard.draw(folder)
    events = read(folder)
    assert not events.Tags()["histograms"]
    assert "final/lat_mean_ms" not in events.Tags()["scalars"]
    assert "test/confusion" in events.Tags()["images"]


def test_pictures(folder):
    events = read(folder)
    assert set(events.Tags()["images"]) == {
        "train/images", "test/misclassified", "test/confusion",
    }  # fmt: skip
    assert set(events.Tags()["histograms"]) == {
        f"latency/{path.stem.removesuffix('-quick')}"
        for path in (folder / "measurements").iterdir()
    }


def test_scalars_are_without_clutter(folder):
    tags = set(read(folder).Tags()["scalars"])
    curves = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "acc")}
    assert {tag for tag in tags if not tag.startswith("final/")} == curves | {"lr"}


def test_drawing_again_replaces(folder):
    before = len(list((folder / "tensorboard").iterdir()))
    tensorboard.draw(folder)
    assert len(list((folder / "tensorboard").iterdir())) == before
    assert len(read(folder).Scalars("final/test_acc")) == 1


def test_an_unfinished_run_gets_nothing(folder, tmp_path):
    shutil.rmtree(folder / "tensorboard")
    replace(Run.load(folder), status="interrupted").save(folder)
    tensorboard.draw(folder)
    assert not (folder / "tensorboard").exists()


def test_what_a_kill_left_undrawn_is_drawn_by_the_next_command(folder, command):
    """A drawing is missing, or older than a measurement; one that is up to date stays."""
    again = (*TINY, "epochs=1", "id=tiny", "benchmark.variants=[fp32,fused]")
    run = RunFolder(folder)
    for lost in (True, False, None):
        (before,) = run.drawings()
        if lost:
            before.unlink()
        elif lost is False:
            os.utime(before, (0, 0))
        assert run.is_undrawn() == (lost is not None)
        ended = command(*again)
        assert "is finished" in ended.out, ended.err
        (after,) = run.drawings()
        assert (after == before) == (lost is None)
        assert "final/test_acc" in read(folder).Tags()["scalars"]

import os
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from cifar_lightning.comparison import plots, tensorboard
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.table import write_table
from cifar_lightning.training import pictures


@pytest.fixture
def folder(finished_run, tmp_path):
    """A run whose measurements are complete and undisturbed, whatever else the machine did."""
    outputs = shutil.copytree(finished_run, tmp_path / "outputs", symlinks=True)
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
    assert found["model"] == "cifarnet"
    assert found["optim.lr"] == run.config["optim"]["lr"]
    assert (found["seed"], found["epochs"], found["augment"]) == (0, 1, "crop")
    assert (found["threads"], found["protocol"]) == (1, "quick")
    assert not {"trainer.max_epochs", "outputs", "id", "data.root"} & set(found)
    finals = {tag for tag in events.Tags()["scalars"] if tag.startswith("weights/")}
    assert finals == {f"weights/{name}" for name in ("val_acc", "acc", "params_m", "macs_m")} | {
        f"weights/{name}.{variant}"
        for name in ("lat_mean_ms", "lat_p95_ms", "size_mb")
        for variant in ("fp32", "fused")
    }
    assert events.Scalars("weights/acc")[0].value == pytest.approx(run.test_acc, abs=1e-3)


def test_a_setting_that_is_a_list_is_shown(folder):
    run = Run.load(folder)
    model = run.config["model"] | {"channels": [16, 64, 64]}
    replace(run, config=run.config | {"model": model}).save(folder)
    for path in (folder / "measurements").iterdir():
        path.unlink()  # of another network now
    tensorboard.draw(folder)
    found = hyperparameters(read(folder))
    assert found["model.channels"] == "16, 64, 64"
    assert not any("_target_" in name for name in found)


def test_another_number_of_threads_has_another_name(folder):
    """Else one run's figure of one thread would stand beside another's of two."""
    for path in list((folder / "measurements").glob("fp32*")):
        replace(Measurement.read(path), threads=2).save(folder)
        path.unlink()
    tensorboard.draw(folder)
    tags = read(folder).Tags()["scalars"]
    assert "weights/lat_mean_ms.fp32-t2" in tags
    assert "weights/lat_mean_ms.fp32" not in tags


def test_runs_are_listed_by_their_ids(folder, tmp_path):
    """Links are made anew for another ID, and removed with the run."""
    outputs, run = RunFolder(folder).outputs, RunFolder(folder)

    def links():
        return sorted(str(path.relative_to(outputs)) for path in outputs.glob("tensorboard/*/*"))

    assert links() == [f"tensorboard/tiny/{folder.name}"]
    (link,) = outputs.glob("tensorboard/*/*")
    assert {*link.iterdir()} == {link / path.name for path in run.tensorboard.iterdir()}
    other = RunFolder(shutil.copytree(folder, folder.with_name("other")))
    other.link_board("tiny")
    run.link_board("again")
    assert links() == [f"tensorboard/again/{folder.name}", "tensorboard/tiny/other"]
    replace(Run.load(other.path), name="other").save(other.path)
    write_table(outputs)
    shutil.rmtree(other.path)
    write_table(outputs)
    assert links() == [f"tensorboard/again/{folder.name}"]
    shutil.rmtree(outputs / "tensorboard")
    (tmp_path / "mine").mkdir()
    (outputs / "tensorboard").symlink_to(tmp_path / "mine")
    run.link_board("again")  # a link out of the outputs is not followed
    assert not list((tmp_path / "mine").iterdir())


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
    assert {"weights/acc", "weights/lat_mean_ms.fp32"} <= metrics


def test_a_disturbed_latency_is_not_shown(folder):
    """All that load does not touch is."""
    for path in (folder / "measurements").iterdir():
        replace(Measurement.read(path), status="disturbed").save(folder)
    tensorboard.draw(folder)
    events = read(folder)
    assert not events.Tags()["histograms"]
    scalars = events.Tags()["scalars"]
    assert not any("/lat_" in tag for tag in scalars)
    assert any("/size_mb." in tag for tag in scalars)
    assert "weights/confusion" in events.Tags()["images"]


def test_pictures(folder):
    events = read(folder)
    assert set(events.Tags()["images"]) == {
        "train/images", "weights/misclassified", "weights/confusion",
    }  # fmt: skip
    assert set(events.Tags()["histograms"]) == {
        f"weights/calls_ms.{path.stem.partition('@')[0]}"
        for path in (folder / "measurements").iterdir()
    }


def test_scalars_are_without_clutter(folder):
    """TensorBoard opens on the first groups, which are curves."""
    tags = sorted(read(folder).Tags()["scalars"])
    curves = [f"{split}/{name}" for split in ("train", "val") for name in ("acc", "loss")]
    assert tags[:5] == ["lr", *curves]
    assert all(tag.startswith("weights/") for tag in tags[5:])


@pytest.mark.parametrize(("classes", "shown"), [(10, 30), (100, 25), (20, 20)])
def test_misclassified_images_are_of_all_classes(classes, shown, monkeypatch):
    """Also where the test split is sorted by its classes, as folders of images are."""
    drawn = []
    monkeypatch.setattr(pictures, "_draw", lambda trainer, what, draw: draw(Mock()))
    monkeypatch.setattr(plots, "named_images", lambda images, names: drawn.extend(names))
    trainer = Mock(is_global_zero=True)
    trainer.datamodule.images.classes = [f"class {number}" for number in range(classes)]
    trainer.datamodule.normalize.inverse = lambda images: images
    callback = pictures.MisclassifiedImages()
    callback.on_test_start(trainer, Mock())
    for label in range(classes):
        labels = torch.full((8,), label)
        wrong = torch.nn.functional.one_hot((labels + 1) % classes, classes)
        batch = torch.zeros(8, 3, 2, 2), labels
        callback.on_test_batch_end(trainer, Mock(), {"logits": wrong}, batch)
    callback.on_test_end(trainer, Mock())
    assert len(drawn) == shown
    assert len({name.partition("\n")[0] for name in drawn}) == min(classes, shown)
    assert f"class {classes - 1}\n→ class 0" in drawn or classes > 32


def test_drawing_again_replaces(folder):
    before = len(list((folder / "tensorboard").iterdir()))
    tensorboard.draw(folder)
    assert len(list((folder / "tensorboard").iterdir())) == before
    assert len(read(folder).Scalars("weights/acc")) == 1


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
        assert "weights/acc" in read(folder).Tags()["scalars"]

"""Measuring finished runs again, in this process and in fresh ones."""

import shutil
import subprocess
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, call_once, with_weights

import cifar_lightning.benchmark.measure as measuring
from cifar_lightning.benchmark import contention, evaluate
from cifar_lightning.benchmark.load import load_data
from cifar_lightning.benchmark.measure import BenchmarkSpec, measure
from cifar_lightning.cli import measure as measure_command
from cifar_lightning.config import protocols
from cifar_lightning.runs.measurement import RECIPE_VERSIONS, Measurement, recipe
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.table import write_table
from cifar_lightning.system import signals
from cifar_lightning.system.devices import find_device
from cifar_lightning.variants import pytorch, registry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Outputs with two tiny finished runs, A and B."""
    import train

    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    for label, width in (("A", 0.35), ("B", 0.5)):
        arguments = [*TINY, f"outputs={outputs}", f"id={label}", f"model.width={width}"]
        call_once(train.main, *arguments, "epochs=1", "batch_size=128")
    return outputs


@pytest.fixture
def outputs(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "outputs")


@pytest.fixture
def again(outputs, call):
    """Run the measure command in this process."""
    settings = f"outputs={outputs}", "protocol=quick", "device=cpu"
    return lambda *overrides: call(measure_command.main, *settings, *overrides)


def folder_of(outputs, label):
    (folder,) = [f for f in (outputs / "runs").iterdir() if Run.load(f).id == label]
    return folder


def test_measuring_again_adds_rows_without_training(again, outputs):
    folder = folder_of(outputs, "A")
    shutil.rmtree(folder / "measurements")
    before = Run.load(folder)
    threads = torch.get_num_threads()
    ended = again("run=A", "threads=[1,2]")
    assert ended.status == 0, ended.err
    assert torch.get_num_threads() == threads
    assert ended.out.count("| A ") == 2
    assert "1 thread " in ended.out
    assert "2 threads " in ended.out
    assert Run.load(folder) == before
    rows = [row for row in write_table(outputs) if row.id == "A"]
    assert [row.threads for row in rows] == [1, 2]
    assert all(row.speedup == 1.0 for row in rows if row.status == "ok")
    assert all(row.test_acc == pytest.approx(before.test_acc, abs=1e-3) for row in rows)


@pytest.mark.parametrize("how", ["prefix", "folder", "name"])
def test_a_run_is_found_by(how, again, outputs):
    folder = folder_of(outputs, "B")
    query = {"prefix": folder.name[:-4], "folder": str(folder), "name": folder.name}[how]
    assert again(f"run={query}").status == 0


def test_a_busy_machine_makes_it_disturbed(outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    monkeypatch.setattr(contention.Load, "mean", property(lambda self: 0.5))
    (path,) = (folder / "measurements").iterdir()
    before = replace(Measurement.read(path), status="ok", reason=None)
    data = load_data(folder)
    for earlier, status in ((None, "disturbed"), (before, "ok")):
        path.unlink()
        if earlier is not None:
            earlier.save(folder)
        (measurement,) = measure(folder, data, BenchmarkSpec(["fp32"], [1], "quick"), CPU)
        assert measurement.status == "disturbed"
        assert measurement.reason == "other processes used 50 %"
        assert rows_of(folder)[0].status == status  # an undisturbed one is worth more


def test_what_a_device_can_not_run_is_a_row(outputs):
    folder = folder_of(outputs, "A")
    (measurement,) = measure(folder, load_data(folder), BenchmarkSpec(["tf32"], [1], "quick"), CPU)
    assert measurement.status == "unsupported"
    assert "GPU" in measurement.reason
    assert "tf32" in {row.variant for row in rows_of(folder)}


def test_a_variant_that_fails_is_a_row(outputs, monkeypatch):
    folder = folder_of(outputs, "A")

    def fail(*arguments):
        raise RuntimeError("no memory\nfor this")

    monkeypatch.setattr(measuring, "measure_latency", fail)
    (before,) = (folder / "measurements").iterdir()
    good = before.read_bytes()
    data = load_data(folder)
    (measurement,) = measure(folder, data, BenchmarkSpec(["fp32"], [1], "quick"), CPU)
    assert measurement.status == "failed"
    assert measurement.reason == "RuntimeError: no memory"
    assert before.read_bytes() == good  # what was measured before is kept
    before.unlink()
    measure(folder, data, BenchmarkSpec(["fp32"], [1], "quick"), CPU)
    (row,) = rows_of(folder)
    assert (row.status, row.error) == ("failed", "RuntimeError: no memory")


def test_what_nobody_needs_fails_no_measurement(outputs, monkeypatch):
    """Nothing of it changes a figure."""

    def broken(*arguments, **settings):
        raise RuntimeError("unknown format")

    def hanging(command, **settings):
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr("psutil.cpu_freq", broken)
    monkeypatch.setattr("importlib.metadata.version", broken)
    monkeypatch.setattr("cifar_lightning.system.environment.subprocess.run", hanging)
    folder = folder_of(outputs, "A")
    (measurement,) = measure(folder, load_data(folder), BenchmarkSpec(["fp32"], [1], "quick"), CPU)
    assert measurement.status in ("ok", "disturbed"), measurement.reason


def test_the_record_is_whole(outputs):
    (path,) = (folder_of(outputs, "A") / "measurements").iterdir()
    measurement = Measurement.read(path)
    assert measurement.load.peak >= measurement.load.mean >= 0
    assert set(measurement.state) == {"before", "after"}
    assert measurement.environment.convolution_error < 1e-5
    assert measurement.environment.flags["threads"] == 1
    assert measurement.protocol_version >= 1
    assert len(measurement.samples_ms) == measurement.latency.n


def test_a_measurement_by_an_earlier_recipe_is_taken_again(outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    (path,) = (folder / "measurements").iterdir()
    measurement = Measurement.read(path)
    assert measurement.recipe == {"fp32": 1}
    assert measurement.engines == {"torch": metadata.version("torch")}
    assert measurement.environment.machine.processor.slug == measurement.hardware
    spec = BenchmarkSpec(["fp32"], [1], "quick")
    assert not list(spec.missing(folder, CPU))
    monkeypatch.setitem(RECIPE_VERSIONS, "fp32", 2)
    assert list(spec.missing(folder, CPU)) == [("fp32", 1)]


def test_engines_are_what_executes_a_variant():
    assert set(registry.engines("fp32")) == {"torch"}
    pytest.importorskip("onnxruntime")
    assert registry.engines("int8")["onnxruntime"]
    assert set(RECIPE_VERSIONS) <= set(registry.PARTS)
    assert recipe("fused+int8") == {"fused": 1, "int8": 2}


def test_calibration_shows_every_class_and_no_test_image(outputs):
    data = load_data(folder_of(outputs, "A"))
    images = evaluate.calibration(data)
    train = data.images.train
    chosen = [
        int((data.normalize(train.images) - image).abs().sum((1, 2, 3)).argmin())
        for image in images[::8]
    ]
    assert set(train.labels[chosen].tolist()) == set(range(10))
    assert not set(chosen) & set(data.indices["val"].tolist())


def test_ctrl_c_ends_the_timing_of_a_graph(monkeypatch):
    """Whatever is timed looks for a signal after each block of samples."""
    monkeypatch.setattr(pytorch, "capture", lambda *_: (CapturedGraph, None))
    gpu_image = SimpleNamespace(device=SimpleNamespace(type="cuda", index=0))
    looked = []
    monkeypatch.setattr(signals, "check", lambda: looked.append(True))

    def timed(call, device, protocol, between=lambda: None):
        between()
        return SimpleNamespace(stats=SimpleNamespace(mean_ms=1.0))

    monkeypatch.setattr(measuring, "measure_latency", timed)
    prepared = SimpleNamespace(eager=True, forward=None)
    assert measuring._replayed_ms(prepared, gpu_image, protocols.PROTOCOLS["full"]) == 1.0
    assert looked


class CapturedGraph:
    replay = None


def test_several_runs_are_measured_one_after_the_other(again, outputs):
    for label in ("A", "B"):
        shutil.rmtree(folder_of(outputs, label) / "measurements")
    ended = again("run=A,B")
    assert ended.status == 0, ended.err
    assert ended.out.index("| A ") < ended.out.index("| B ")
    for label in ("A", "B"):
        (row,) = rows_of(folder_of(outputs, label))
        assert (row.variant, row.protocol) == ("fp32", "quick")
        assert row.lat_mean_ms > 0


def test_a_failed_variant_ends_with_status_1(again, monkeypatch):
    monkeypatch.setattr(measuring, "measure_latency", lambda *arguments: 1 / 0)
    ended = again("run=A")
    assert ended.status == 1
    assert "fp32: failed" in ended.err


def test_an_id_that_looks_like_a_number(again, outputs):
    folder = folder_of(outputs, "A")
    replace(Run.load(folder), id="1234e567").save(folder)
    assert again("run=1234e567").status == 0
    assert again("run=1234e567,B").status == 0


def test_logits_that_are_no_numbers_are_no_result(again, outputs):
    folder = folder_of(outputs, "A")
    shutil.rmtree(folder / "measurements")
    with_weights(folder, lambda tensor: tensor * float("nan") if tensor.ndim else tensor)
    ended = again("run=A")
    assert ended.status == 1
    assert ended.err == "error: fp32: failed: the logits are NaN or infinite\n"
    (row,) = rows_of(folder)
    assert (row.status, row.lat_mean_ms) == ("failed", None)


BAD = {
    "variants=[]": "variants=[]: must be at least one variant",
    "run=C": "run=C: no such run in",
    "run=mobilenetv3": "run=mobilenetv3: must be one of",
    "variants=[fp23]": "variants=fp23: no such variant; did you mean fp32?",
    "protocol=slow": "protocol=slow: must be full, quick",
    "threads=[0]": "threads=[0]: must be",
    "threads=[a]": "threads",
    "device=cuda:99": "device=cuda:99: must be auto",
    "devise=cpu": "devise: no such key; did you mean device?",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input(override, again):
    ended = again("run=A", override)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {BAD[override]}"), ended.err
    assert len(ended.err.splitlines()) == 1


def test_runs_that_can_not_be_measured(again, outputs):
    folder = folder_of(outputs, "A")
    run = Run.load(folder)
    replace(run, status="interrupted").save(folder)
    assert f"{run.name} is interrupted, needed is a finished run" in again("run=A").err
    replace(run, data_fingerprint="0" * 16).save(folder)
    assert "was trained on other data" in again("run=A").err
    run.save(folder)
    shutil.copy(folder_of(outputs, "B") / "weights.safetensors", folder)
    ended = again("run=A")
    assert ended.status == 2
    assert f"not the weights of this run (they are of {folder_of(outputs, 'B').name})" in ended.err
    (folder / "run.json").write_text("{")
    assert "damaged" in again(f"run={folder}").err
    assert "run=A: no such run" in again("run=A").err
    assert again("run=B").status == 0
    ended = again("run=A,B")
    assert ended.status == 2


def test_an_id_of_several_runs_names_them(again, outputs):
    folder = folder_of(outputs, "A")
    replace(Run.load(folder), id="B").save(folder)
    ended = again("run=B")
    assert ended.status == 2
    assert folder.name in ended.err
    assert "it means them all" in ended.err


def test_devices():
    assert find_device("cpu") == CPU
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert find_device("auto") == CPU

"""bench.py, which times an export where neither torch nor this project is."""

import importlib.util
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from cifar_lightning.cli import report as report_command
from cifar_lightning.deploy import bench
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.latency import LatencyStats
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.paired import difference
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.variants import registry


@pytest.mark.parametrize("count", [5, 30, 200])
def test_its_figures_are_those_of_measure(count):
    drawn = np.random.default_rng(count)
    walk = np.exp(np.cumsum(drawn.normal(0, 0.01, count)))
    first, second = (list(walk * drawn.lognormal(mean, 0.02, count)) for mean in (0.1, 0))
    expected = difference(first, second).ratio
    assert bench.relative(first, second) == pytest.approx(expected)
    stats = vars(LatencyStats.from_samples(first))
    assert bench.summed_up(first) == pytest.approx(stats)
    assert bench.relative([1.0, 1.0], [2.0, 2.0])[0] == 0.5  # no two rounds differ


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported("onnx"), tmp_path / "copied")


def run_it(folder, monkeypatch, *arguments):
    """Run an export's own copy, quickly, as a program."""
    spec = importlib.util.spec_from_file_location("copied_bench", folder / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WARM_UP_S", 0.02)
    monkeypatch.setattr(module, "BLOCK_S", 0.001)
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    loads = {f.load.__name__: getattr(module, f.load.__name__) for f in registry.FORMATS.values()}
    module.main(loads, (30,))


def test_what_it_writes_is_reported_and_not_ranked(
    folder, finished_run, monkeypatch, call, capsys, tmp_path
):
    run_it(folder, monkeypatch)
    (path,) = folder.glob("onnx@*-t1-bench.json")
    assert str(path) in capsys.readouterr().out
    outputs = shutil.copytree(finished_run, tmp_path / "outputs")
    to = find_run(outputs, "tiny")
    shutil.copy(path, to / "measurements")
    found, damaged = Measurement.read_all(to, Run.load(to))
    assert damaged == []
    (one,) = (one for one in found if one.variant == "onnx")
    assert one.protocol == "bench"
    assert one.rounds == 30
    assert one.relative.centre > 0
    assert one.files.keys() == {"model.onnx"}
    assert one.size_bytes == (folder / "model.onnx").stat().st_size
    assert "torch" not in one.environment.versions
    assert one.engines.keys() == {"onnxruntime"}
    assert (one.test_acc, one.reason.endswith("accuracy not checked")) == (None, True)
    replace(one, test_acc=50.0, reason=None).save(to)
    ended = call(report_command.main, f"outputs={outputs}", "min_acc=0")
    assert ended.status == 0, ended.err
    ranked, _, rest = ended.out.partition("## Not ranked")
    assert "tiny onnx" not in ranked
    assert f"is not ranked: timed by bench.py: {one.latency.mean_ms:.3f} ms" in rest
    nothing = dict.fromkeys(("latency", "relative", "rounds", "ended", "converged", "preempted"))
    replace(one, status="failed", reason="no such file", wall=None, **nothing).save(to)
    ended = call(report_command.main, f"outputs={outputs}", "min_acc=0")
    assert ended.status == 0, ended.err
    assert "tiny onnx on" in ended.out
    assert "is failed: no such file" in ended.out
    (row,) = (row for row in rows_of(to) if row.variant == "onnx")
    assert "bench.py" in row.marks.split(", ")


def test_it_needs_nothing_but_numpy_and_the_engine(folder):
    """What else is imported is Python's own."""
    code = (
        "import sys; there = {*sys.modules}; import bench, numpy, onnxruntime;"
        "new = {name.partition('.')[0] for name in {*sys.modules} - there};"
        "print({'torch', 'cifar_lightning', 'msgspec', 'onnx'} & new)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_mistakes(folder, monkeypatch):
    with pytest.raises(SystemExit, match="error: ncn: must be one of onnx, the formats in"):
        run_it(folder, monkeypatch, "ncn")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(SystemExit, match="onnx needs onnxruntime: pip install numpy onnxrunt"):
            run_it(folder, patch)
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(SystemExit, match=r"model\.onnx: not the file that was exported"):
        run_it(folder, monkeypatch)


def test_something_else_that_runs_is_told(monkeypatch):
    """A block whose wall time is above its processor time is preempted, and the whole disturbed."""
    monkeypatch.setattr(bench, "WARM_UP_S", 0.01)
    monkeypatch.setattr(bench, "BLOCK_S", 0.0005)
    random.seed(0)
    monkeypatch.setattr(bench, "time_block", lambda call, image, count: ([1.0, 1.1], True))
    found = bench.in_rounds((abs, abs), 1.0, (30,))
    assert (found["status"], found["preempted"]) == ("disturbed", 1.0)
    assert found["reason"] == "something else ran in 100 % of its blocks"
    assert found["converged"]

"""Measuring finished runs again, in this process and in fresh ones."""

import itertools
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib import metadata

import psutil
import pytest
import torch
from conftest import NOBODY, ROOT, TINY, call_once, needs_root, with_weights, write_and_read

import cifar_lightning.benchmark.measure as measuring
from cifar_lightning.benchmark import (
    accuracy,
    candidates,
    evaluate,
    prepare,
    session,
    timing,
    together,
)
from cifar_lightning.benchmark.candidates import BenchmarkSpec, of_network, of_run
from cifar_lightning.benchmark.contention import lock_paths
from cifar_lightning.benchmark.load import RunData, load_data
from cifar_lightning.benchmark.measure import measure, measure_missing
from cifar_lightning.benchmark.measurements import new_measurement
from cifar_lightning.benchmark.network import load_backbone
from cifar_lightning.cli import measure as measure_command
from cifar_lightning.config import protocols
from cifar_lightning.errors import DeviceLost, RunFailed
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.candidate import RECIPE_VERSIONS, REFERENCES, recipe
from cifar_lightning.runs.identity import run_name
from cifar_lightning.runs.latency import Relative
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.paired import difference
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.timed_before import CACHE, measured_before
from cifar_lightning.system import signals
from cifar_lightning.system.devices import check_usable, find_device
from cifar_lightning.variants import precision, registry
from cifar_lightning.variants.context import Kind

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def trained(made_once):
    """Outputs with two tiny finished runs, A and B."""
    import train

    def both(folder):
        for label, channels in (("A", "[8,16]"), ("B", "[8,24]")):
            given = (*TINY, f"outputs={folder}", f"id={label}", f"model.channels={channels}")
            call_once(train.main, *given, "epochs=1", "batch_size=128")

    return made_once("two-runs", both)


@pytest.fixture
def outputs(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "outputs")


def folder_of(outputs, label):
    (folder,) = [f for f in (outputs / "runs").iterdir() if Run.load(f).id == label]
    return folder


def test_measuring_again_adds_rows_without_training(again, outputs):
    folder = folder_of(outputs, "A")
    elsewhere = replace(only_measurement(folder), hardware="another-cpu")
    shutil.rmtree(folder / "measurements")
    elsewhere.save(folder)
    before = Run.load(folder)
    threads = torch.get_num_threads()
    ended = again("run=A", "threads=[1,2]")
    assert ended.status == 0, ended.err
    assert torch.get_num_threads() == threads
    # Another machine's rows stay, and are not what was asked for here.
    assert sum(line.startswith("| A ") for line in ended.out.splitlines()) == 2
    assert elsewhere.path(folder).exists()
    elsewhere.path(folder).unlink()
    assert "1 thread " in ended.out
    assert "2 threads " in ended.out
    assert Run.load(folder) == before
    rows = [row for row in write_and_read(outputs) if row.id == "A"]
    assert [row.threads for row in rows] == [1, 2]
    assert all(row.speedup == 1.0 for row in rows if row.status == "ok")
    assert all(row.test_acc == pytest.approx(before.test_acc, abs=1e-3) for row in rows)


@pytest.mark.parametrize("how", ["prefix", "folder", "name"])
def test_a_run_is_found_by(how, again, outputs):
    folder = folder_of(outputs, "B")
    query = {"prefix": folder.name[:-4], "folder": str(folder), "name": folder.name}[how]
    assert again(f"run={query}").status == 0


def records(outputs):
    """Read them in the order in which they were written; two of one second have names in any."""
    paths = sorted(
        (outputs / "benchmarks").glob("*.json"), key=lambda path: path.stat().st_mtime_ns
    )
    return [BenchmarkRecord.read(path) for path in paths]


def test_runs_are_measured_in_one_benchmark_with_the_references(again, outputs):
    earlier = len(records(outputs))
    ended = again("run=A,B", "threads=[1,2]")
    assert ended.status == 0, ended.err
    (record,) = records(outputs)[earlier:]
    assert [(one.label, one.threads) for one in record.candidates if one.role == "candidate"] == [
        ("A", 1), ("A", 2), ("B", 1), ("B", 2),
    ]  # fmt: skip
    assert [one.role for one in record.candidates[4:]] == [*REFERENCES, "floor", "floor"]
    (session,) = record.sessions
    assert sorted(session.build_order) == list(range(9))
    for label in ("A", "B"):
        folder = folder_of(outputs, label)
        rows = rows_of(folder)
        assert {row.benchmark for row in rows} == {record.id}
        for one in map(Measurement.read, (folder / "measurements").iterdir()):
            (number,) = [n for n in record.ranked if record.candidates[n].key == one.candidate]
            assert one.relative == Relative.of(record.relative(number))
            assert one.latency.n == sum(len(block.calls_ms) for block in record.blocks(number))
            assert one.rounds == len(session.rounds) >= 30
            assert one.first_call_ms > 0
            assert 0 < one.floor_ms == record.floor_ms(number) < one.latency.mean_ms
    # What is printed: rank, candidate, ...
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ended.out.splitlines()]
    drawn = [cells for cells in lines if len(cells) == 8]
    assert {tuple(cells[1:4]) for cells in drawn} >= {("A", "fp32", "1"), ("B", "fp32", "2")}
    assert "Noise floor: its double differs" in ended.out
    assert "4 candidates and 3 references in interleaved rounds" in ended.out


def test_what_is_random_is_drawn_anew_each_time(outputs):
    """The order of building, the rounds' orders, and which instance is the reference."""
    sources = [of_network("resnet8", "fp32", 1)]
    spec, data = BenchmarkSpec(["fp32"], [1], "quick"), RunData()
    found = [measure(sources, spec, CPU, outputs, data).record.sessions[0] for _ in range(3)]
    assert len({tuple(one.build_order) for one in found}) > 1
    assert found[0].rounds[0].order != found[0].rounds[1].order or len(found) > 1
    assert len({str([each.order for each in one.rounds[:9]]) for one in found}) == 3


def test_each_block_has_its_own_candidates_flags_alone(outputs, monkeypatch):
    """Whatever the blocks before it had."""

    def half_precision(variant):
        variant.switch(partial(precision.matmul_precision, "tf32"))

    monkeypatch.setitem(registry.PARTS, "half", (Kind.PRECISION, half_precision))
    real, seen = prepare.Stopwatch.block, []

    def block(*arguments, **settings):
        seen.append(precision.flags())
        return real(*arguments, **settings)

    monkeypatch.setattr(prepare.Stopwatch, "block", block)
    spec, before = BenchmarkSpec(["fp32", "half"], [1, 2], "quick"), precision.flags()
    sources = [
        of_network("resnet8", variant, threads)
        for variant in spec.variants for threads in spec.threads
    ]  # fmt: skip
    record = measure(sources, spec, CPU, outputs, RunData()).record
    order = [number for one in record.sessions[0].rounds for number in one.order]
    for number, flags in zip(order, seen[-len(order) :], strict=True):
        candidate = record.candidates[number]
        assert flags == candidate.flags
        assert flags["threads"] == candidate.threads
        wanted = "tf32" if candidate.variant == "half" else "ieee"
        assert flags["cuda.matmul.fp32_precision"] == wanted
    assert {record.candidates[number].variant for number in order} == {"fp32", "half"}
    assert precision.flags() == before


def test_seeds_are_one_candidate_and_have_its_latency(again, outputs):
    """Whatever their weights; one other run's are timed beside it. Accuracy is each run's own."""
    folder = folder_of(outputs, "A")
    twin = copy_as(folder, "twin", scaled(1.01))
    third = copy_as(folder, "third", scaled(0.99))
    earlier = len(records(outputs))
    ended = again("run=A,twin,third")
    assert ended.status == 0, ended.err
    record = records(outputs)[earlier]
    assert [one.role for one in record.candidates] == ["candidate", "check", *REFERENCES, "floor"]
    assert [one.label for one in record.candidates[:2]] == ["A", "twin"]
    if "depends on the weights" in ended.out:  # as noise can have it, once in a while
        return
    measured = [only_measurement(one) for one in (folder, twin, third)]
    assert len({one.candidate for one in measured}) == 1
    assert measured[0].latency == measured[1].latency == measured[2].latency
    assert len({one.weights for one in measured}) == 3
    assert all(one.confusion for one in measured)


def test_only_what_weights_change_is_split(again, outputs, monkeypatch):
    """Noise told another candidate's weights apart, too, once."""
    folder = folder_of(outputs, "A")
    twin = copy_as(folder, "twin", scaled(1.01))
    real = BenchmarkRecord.tells_apart

    def tells_apart(self, first, second):
        variants = {one.variant for one in self.candidates if one.key in (first, second)}
        return variants == {"fp32"} or real(self, first, second)

    monkeypatch.setattr(measuring, "told_apart", lambda record: {*keys_of(record)})
    monkeypatch.setattr(BenchmarkRecord, "tells_apart", tells_apart)
    monkeypatch.setattr(BenchmarkRecord, "differ", lambda self, first, second: False)
    earlier = len(records(outputs))
    ended = again("run=A,twin", "variants=[fp32,fused]")
    assert ended.status == 0, ended.err
    first, second = records(outputs)[earlier:]
    assert ended.out.count("depends on the weights") == 1
    found = {
        (one.variant, place.name): one
        for place in (folder, twin)
        for one in map(Measurement.read, place.glob("measurements/*"))
    }
    fp32, fused = (
        [one for (variant, _), one in found.items() if variant == name]
        for name in ("fp32", "fused")
    )
    assert len({one.candidate for one in fp32}) == 2
    assert {one.benchmark for one in fp32} == {second.id}
    assert len({one.candidate for one in fused}) == 1
    assert {one.benchmark for one in fused} == {first.id}


def test_weights_that_change_the_latency_make_candidates_of_their_own(again, outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    twin = copy_as(folder, "twin", scaled(1.01))
    real, weights = prepare.Stopwatch.block, next(load_backbone(twin).parameters())

    def block(self, call, count, discarded=0):
        found = real(self, call, count, discarded)
        # What the twin's network takes, by what its call holds.
        slower = 50.0 if call_of_the_twin(call) else 1.0  # however noisy the machine is
        return replace(found, calls_ms=[slower * ms for ms in found.calls_ms])

    def call_of_the_twin(call):
        held = dict(zip(call.__code__.co_freevars, call.__closure__, strict=True))
        network = held["prepared"].cell_contents.forward
        return torch.equal(next(network.parameters()), weights)

    monkeypatch.setattr(prepare.Stopwatch, "block", block)
    earlier = len(records(outputs))
    ended = again("run=A,twin")
    assert ended.status == 0, ended.err
    assert "the latency of A, twin depends on the weights" in ended.out
    _, record = records(outputs)[earlier:]
    assert [one.label for one in record.candidates if one.role == "candidate"] == ["A", "twin"]
    assert all(one.by_weights for one in record.candidates[:2])
    ours, theirs = map(only_measurement, (folder, twin))
    assert ours.candidate != theirs.candidate
    assert ours.benchmark == theirs.benchmark == record.id
    assert theirs.relative.centre > 5 * ours.relative.centre


def test_what_was_told_apart_once_and_not_again_is_one_candidate(again, outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    twin = copy_as(folder, "twin", scaled(1.01))
    monkeypatch.setattr(measuring, "told_apart", lambda record: {*keys_of(record)})
    monkeypatch.setattr(BenchmarkRecord, "tells_apart", lambda self, first, second: False)
    earlier = len(records(outputs))
    ended = again("run=A,twin")
    assert ended.status == 0, ended.err
    first, _ = records(outputs)[earlier:]
    ours, theirs = map(only_measurement, (folder, twin))
    assert ours.candidate == theirs.candidate
    assert ours.benchmark == theirs.benchmark == first.id
    assert "depends on the weights" not in ended.out


def interrupted():
    signals._handle(signal.SIGTERM, None)
    signals.check()


def failed():
    raise RunFailed("a measuring process ended with status -9")


# It has more candidates, and may lack the memory.
SECOND = {
    interrupted: (143, "error: interrupted\n"),
    failed: (1, "error: a measuring process ended with status -9\n"),
}


@pytest.mark.parametrize("ends", SECOND)
def test_a_second_benchmark_that_ends_early_keeps_the_first(ends, again, outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    copy_as(folder, "twin", scaled(1.01))
    monkeypatch.setattr(measuring, "told_apart", lambda record: {*keys_of(record)})
    real, calls = together.time_here, []

    def time_here(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            ends()
        return real(*arguments)

    monkeypatch.setattr(together, "time_here", time_here)
    earlier = len(records(outputs))
    ended = again("run=A,twin")
    assert (ended.status, ended.err) == SECOND[ends]
    (record,) = records(outputs)[earlier:]
    assert only_measurement(folder).benchmark == record.id


@pytest.mark.parametrize("told", [True, False])
def test_a_process_that_died_in_the_second_benchmark_is_told(told, again, outputs, monkeypatch):
    """Whether what the others measured tells anything apart or not."""
    copy_as(folder_of(outputs, "A"), "twin", scaled(1.01))
    monkeypatch.setattr(measuring, "told_apart", lambda record: {*keys_of(record)})
    monkeypatch.setattr(BenchmarkRecord, "tells_apart", lambda self, first, second: told)
    real, calls = measuring.time_together, []

    def time_together(*arguments, **settings):
        calls.append(arguments)
        return replace(real(*arguments, **settings), error="it died" if len(calls) == 2 else "")

    monkeypatch.setattr(measuring, "time_together", time_together)
    ended = again("run=A,twin")
    assert (ended.status, ended.err) == (1, "error: it died\n")


def keys_of(record):
    return [one.key for one in record.candidates]


def scaled(factor):
    return lambda weights: weights * factor if weights.is_floating_point() else weights


def copy_as(folder, label, change):
    """Make another seed of a run: other weights, another name and ID."""
    run = Run.load(folder)
    config = run.config | {"seed": len(label), "data": run.config["data"] | {"seed": len(label)}}
    name = run_name(config, run.choices)
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "measurements")
    shutil.rmtree(copy / "predictions")
    replace(run, name=name, id=label, config=config).save(copy)
    with_weights(copy, change)
    return copy


def only_measurement(folder):
    (path,) = (folder / "measurements").iterdir()
    return Measurement.read(path)


def test_a_candidate_that_was_timed_is_not_again_by_itself(outputs, monkeypatch):
    """After a training of another seed; its accuracy is evaluated."""
    folder = folder_of(outputs, "A")
    twin = copy_as(folder, "twin", scaled(1.01))
    spec, data = BenchmarkSpec(["fp32"], [1], "quick"), RunData()
    monkeypatch.setattr(together, "time_here", None)  # nothing is timed
    (measurement,) = measure_missing([twin], spec, CPU, outputs, data).measurements
    before = only_measurement(folder)
    assert measurement == only_measurement(twin)
    assert (measurement.latency, measurement.relative) == (before.latency, before.relative)
    assert measurement.benchmark == before.benchmark
    assert measurement.run == twin.name
    assert sum(map(sum, measurement.confusion)) == sum(map(sum, before.confusion))
    assert not measure_missing([twin], spec, CPU, outputs, data).measurements


def test_what_was_stopped_or_timed_otherwise_is_no_measurement(outputs):
    (path,) = (outputs / "benchmarks").glob(
        f"{only_measurement(folder_of(outputs, 'A')).benchmark}*"
    )
    record = BenchmarkRecord.read(path)
    key = record.candidates[record.ranked[0]].key

    def found(key=key, hardware=record.hardware, protocol="quick"):
        return measured_before(outputs, {key}, hardware, protocol)

    assert found()[key].id == record.id
    assert not found(hardware="other")
    assert not found(protocol="full")
    assert not found(key="0" * 16)
    session = replace(record.sessions[0], ended="stopped")
    path.write_text(replace(record, sessions=[session]).to_json())
    assert not found()
    path.write_text(replace(record, protocol="full").to_json())
    assert not found()  # a look
    path.write_text(replace(record, protocol="full", sessions=record.sessions * 3).to_json())
    assert found()
    path.write_text("{")
    assert not found()


def test_accuracy_is_not_evaluated_again(again, outputs, monkeypatch):
    """Of the same weights, executed in the same way; timing is what was asked for."""
    before = only_measurement(folder_of(outputs, "A"))
    monkeypatch.setattr(accuracy, "evaluate", None)
    assert again("run=A").status == 0
    after = only_measurement(folder_of(outputs, "A"))
    assert (after.test_acc, after.confusion) == (before.test_acc, before.confusion)
    assert after.benchmark != before.benchmark
    with_weights(folder_of(outputs, "A"), scaled(1.01))
    assert again("run=A").status == 1


def test_networks_are_ranked_before_there_is_a_run(tmp_path, call, monkeypatch):
    """Beside the real references, too, of which other tests have narrow ones."""
    real = together.references.__wrapped__
    monkeypatch.setattr(together, "references", real)
    outputs = tmp_path / "none"
    settings = (f"outputs={outputs}", "protocol=quick", "device=cpu")
    ended = call(measure_command.main, *settings, "model=[resnet8,mobilenetv3]")
    assert ended.status == 0, ended.err
    (record,) = records(outputs)
    assert [record.candidates[number].label for number in record.ranked] == [
        "resnet8",
        "mobilenetv3",
    ]
    assert "| resnet8 " in ended.out
    assert not (outputs / "runs").exists()
    first, second = record.ranked
    assert record.slower(second, first)
    assert record.candidates[record.number("reference")].key == record.candidates[first].key
    assert record.candidates[record.number("second_reference")].key == record.candidates[second].key


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("resnet9", None, "model=resnet9: no such option; did you mean resnet"),
        ("timm", None, "model=timm: model.name has no value there; measure a run of it, or give"),
        ("huge", "{defaults: [cifarnet], depth: 64, channels: [4096, 4096, 4096]}",
         "model=huge: its network has 2.9e+10 parameters, 5e+08 are the most"),
        ("none", "{defaults: [resnet8], width: -1}", "model: width=-1: must leave at least one"),
    ],
)  # fmt: skip
def test_networks_that_are_none_are_refused_before_anything_is_timed(
    name, file, message, tmp_path, call
):
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    if file is not None:
        (folder / f"{name}.yaml").write_text(file)
    ended = call(
        measure_command.main, f"--config-dir={folder.parent}", f"outputs={tmp_path / 'none'}",
        f"model=[resnet8,{name}]", "protocol=quick", "device=cpu",
    )  # fmt: skip
    assert ended.status == 2
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_networks_that_a_device_can_not_run_are_rows_with_the_reason(tmp_path, call):
    settings = (f"outputs={tmp_path / 'none'}", "protocol=quick", "device=cpu")
    ended = call(measure_command.main, *settings, "model=[resnet8]", "variants=[tf32]")
    assert ended.status == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "| resnet8 " in line]
    assert line.split("|")[-2].strip() == "unsupported: needs a GPU"
    assert "1 candidate and 3 references" in ended.out
    (record,) = records(tmp_path / "none")
    assert len(record.sessions[0].rounds) == 2  # there was nothing to relate to the references


def test_all_runs(again, outputs):
    ended = again("run=all")
    assert ended.status == 0, ended.err
    assert {one.label for one in records(outputs)[-1].candidates if one.run} == {"A", "B"}
    folder = folder_of(outputs, "B")
    replace(Run.load(folder), status="interrupted").save(folder)
    (folder_of(outputs, "A") / "weights.safetensors").write_bytes(b"damaged")
    ended = again("run=all")
    assert ended.status == 2
    assert ended.err == (
        f"error: run=all: must be used where there are finished runs; {outputs} has none "
        "that can be measured here\n"
    )
    assert "left out" in ended.out
    replace(Run.load(folder_of(outputs, "A")), status="failed").save(folder_of(outputs, "A"))
    assert again("run=all").err.endswith(f"; {outputs} has no finished run\n")


def test_runs_of_other_data_are_ranked_apart(again, outputs, image_folder):
    import train

    folder = [f"data.root={image_folder}", "data=imagefolder", "data.name=mine"]
    shape = ["data.num_classes=10", "benchmark.variants=[]", "epochs=1", "batch_size=64"]
    call_once(train.main, *TINY[1:], *folder, *shape, f"outputs={outputs}", "id=other")
    ended = again("run=A,other", f"data_root={image_folder}")
    assert ended.status == 0, ended.err
    told = "measured together, ranked apart, as they are of different data: digits: A; mine: other"
    assert ended.out.count(told) == 1


def test_it_says_how_long_it_will_take_with_what_it_knows_of_preparation(again):
    first, second = (again("run=A", "variants=[torch_export]").out for _ in range(2))
    assert "and what the preparation of torch_export takes" in first
    assert re.search(r"rounds \(quick protocol\): about [1-9]\d* s, at most \d+ \w+$", second, re.M)


def test_a_full_benchmark_is_shared_by_fresh_processes(again, monkeypatch):
    asked = []

    def time_in_processes(count, groups, device, protocol, *_):
        asked.append((count, protocol.budget_s))
        raise RunFailed("enough")

    monkeypatch.setattr(together, "time_in_processes", time_in_processes)
    assert again("run=A", "protocol=full").err == "error: enough\n"
    assert again("run=A", "protocol=full", "processes=2").status == 1
    assert asked == [(8, 2.5), (2, 10.0)]
    assert again("run=A").status == 0  # `quick` is of this process alone


def test_fresh_processes_make_one_record(again, outputs, forked):
    ended = again("run=A,B", "processes=2")
    assert ended.status == 0, ended.err
    record = records(outputs)[-1]
    assert len(record.sessions) == 2
    assert record.sessions[0].rounds != record.sessions[1].rounds
    assert all(one.first_call_ms for one in record.candidates)  # what only the first finds out
    measurement = only_measurement(folder_of(outputs, "A"))
    assert measurement.benchmark == record.id
    assert measurement.rounds == sum(len(one.rounds) for one in record.sessions)
    number = record.ranked[0]
    centres = [
        difference(one.means_ms(number), one.means_ms(record.number("reference"))).centre
        for one in record.sessions
    ]
    assert math.log(measurement.relative.centre) == pytest.approx(statistics.fmean(centres))


def test_more_threads_than_cores_are_refused(again, monkeypatch):
    monkeypatch.setattr(candidates, "usable_cores", lambda: 2)
    ended = again("run=A", "threads=[1,64]")
    assert ended.status == 2
    assert ended.err == (
        "error: threads=[1, 64]: must be numbers from 1 to 2, the cores that can be used here\n"
    )


def test_a_budget_too_short_for_thirty_rounds(again, outputs, monkeypatch):
    short = replace(protocols.PROTOCOLS["quick"], budget_s=0.001)
    monkeypatch.setitem(protocols.PROTOCOLS, "quick", short)
    ended = again("run=A")
    assert ended.status == 0, ended.err
    measurement = only_measurement(folder_of(outputs, "A"))
    assert not measurement.converged
    told = f"only {measurement.rounds} rounds in 0.001 s for each candidate, 30 are needed"
    assert ended.out.count(told) == 1
    (row,) = rows_of(folder_of(outputs, "A"))
    assert row.lat_converged is False


def test_a_busy_machine_makes_it_disturbed(again, outputs, monkeypatch):
    """More than half of its blocks were preempted: it has all figures, and says so."""
    monkeypatch.setattr(timing, "_switches", itertools.count().__next__)
    assert again("run=A").status == 0
    measurement = only_measurement(folder_of(outputs, "A"))
    assert measurement.status == "disturbed"
    assert measurement.preempted == 1
    assert measurement.reason == "something else ran in 100 % of its blocks"
    (row,) = rows_of(folder_of(outputs, "A"))
    assert row.lat_mean_ms == measurement.latency.mean_ms
    assert row.test_acc == measurement.test_acc
    assert row.speedup == 1


DRIVER = """
import os, signal, sys
name = sys.argv.pop()
from cifar_lightning.benchmark import session
real = session.interleave
def interleave(*arguments):
    *first, on_round, look = arguments
    def watched(done, expected):
        if done == 7:
            os.kill(os.getpid(), getattr(signal, name))
        return on_round(done, expected)
    return real(*first, watched, look)
session.interleave = interleave
from cifar_lightning.cli import start
start.measure()
"""


def contents(outputs):
    """What lies in outputs, but for the cache of what benchmarks are of."""
    files = [path for path in outputs.rglob("*") if path.is_file() and path.name != CACHE]
    return {path: path.read_bytes() for path in files}


def measure_with_a_signal(outputs, name):
    arguments = [f"outputs={outputs}", "protocol=quick", "device=cpu", "run=A", name]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_round_7_keeps_what_there_is(name, status, outputs, forked):
    for path in folder_of(outputs, "A").glob("measurements/*"):
        path.unlink()
    earlier = len(records(outputs))
    ended = measure_with_a_signal(outputs, name)
    assert (ended.returncode, ended.stderr) == (status, "error: interrupted\n")
    (record,) = records(outputs)[earlier:]
    assert len(record.sessions[0].rounds) == 7
    assert record.ended == "stopped"
    folder = folder_of(outputs, "A")
    measurement = only_measurement(folder)
    assert (measurement.benchmark, measurement.rounds) == (record.id, 7)
    assert not measurement.converged
    # A training's command does it again.
    assert not Measurement.exists(folder, "fp32", 1, "quick")
    (row,) = rows_of(folder)
    assert row.lat_converged is False
    assert "not converged" in ended.stdout
    assert (row.lat_rel_low, row.lat_rel_high) == (None, None)


def test_a_stopped_benchmark_replaces_no_measurement_of_one_that_ended(again, outputs, forked):
    """Its record is kept, and a line says so."""
    assert again("run=A").status == 0
    before = only_measurement(folder_of(outputs, "A"))
    ended = measure_with_a_signal(outputs, "SIGINT")
    assert ended.returncode == 130
    assert only_measurement(folder_of(outputs, "A")) == before
    assert records(outputs)[-1].ended == "stopped"
    assert "was not timed to the end; the earlier measurement stays" in ended.stdout


def test_a_kill_in_round_7_costs_nothing_but_itself(again, outputs, forked):
    before = contents(outputs)
    assert measure_with_a_signal(outputs, "SIGKILL").returncode == -signal.SIGKILL
    assert {path: path.read_bytes() for path in before} == before
    assert again("run=A").status == 0


# Sends a signal when a fresh process prepares or is in its round 7; that process imports it, too.
DRIVER_OF_PROCESSES = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, "")
from cifar_lightning.benchmark import processes, session
from cifar_lightning.system import signals
name, to, number, moment = os.environ["WHEN"].split(",")

def send():
    pids = {"command": multiprocessing.parent_process().pid, "process": os.getpid()}
    for pid in [pids[to]] if to in pids else pids.values():
        os.kill(pid, getattr(signal, name))
    end = time.monotonic() + 60
    while signals.received() is None and time.monotonic() < end:  # or until it is ended
        time.sleep(0.01)

def time_here(*arguments, share):
    def interleave(*arguments):
        *first, on_round, look = arguments
        def watched(done, expected):
            if done == 7:
                send()
            return on_round(done, expected)
        return real_interleave(*first, watched, look)
    def first_that_works(*arguments):
        send()
        return real_first(*arguments)
    if share.number == int(number) - 1:
        if moment == "rounds":
            session.interleave = interleave
        else:
            session.first_that_works = first_that_works
    return real(*arguments, share=share)

real, real_interleave, real_first = (
    processes.time_here, session.interleave, session.first_that_works
)
processes.time_here = time_here
if __name__ == "__main__":
    from cifar_lightning.cli import start
    start.measure()
"""


@pytest.fixture
def in_two_processes(outputs, tmp_path, forked):
    """Measure A in two fresh processes, one of which sends a signal."""
    for measurement in folder_of(outputs, "A").glob("measurements/*"):
        measurement.unlink()  # one that is not of a stopped benchmark would stay
    path = tmp_path / "driver.py"
    path.write_text(DRIVER_OF_PROCESSES)
    settings = f"outputs={outputs}", "protocol=quick", "device=cpu", "run=A", "processes=2"

    def measure_so(name, to, number, moment="rounds"):
        return subprocess.run(
            [sys.executable, str(path), *settings], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"WHEN": f"{name},{to},{number},{moment}"}, timeout=50,
        )  # fmt: skip

    return measure_so


# A key press in a terminal comes to all, what `kill` sends to the command alone.
SIGNALS = [("SIGINT", "all", 130), ("SIGTERM", "command", 143)]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("name", "to", "status"), SIGNALS)
def test_a_signal_in_round_7_of_a_process_keeps_what_there_is(
    name, to, status, number, in_two_processes, outputs
):
    earlier = len(records(outputs))
    ended = in_two_processes(name, to, number)
    assert (ended.returncode, ended.stderr) == (status, "error: interrupted\n")
    (record,) = records(outputs)[earlier:]
    *whole, last = record.sessions
    assert len(last.rounds) == 7
    assert [len(one.rounds) >= 30 for one in whole] == [True] * (number - 1)
    assert_stopped(outputs, record, ended.stdout)


@pytest.mark.parametrize(("name", "to", "status"), SIGNALS)
def test_a_signal_while_the_second_process_prepares_keeps_the_first(
    name, to, status, in_two_processes, outputs
):
    earlier = len(records(outputs))
    ended = in_two_processes(name, to, 2, "preparing")
    assert (ended.returncode, ended.stderr) == (status, "error: interrupted\n")
    (record,) = records(outputs)[earlier:]
    (only,) = record.sessions
    assert len(only.rounds) >= 30
    assert_stopped(outputs, record, ended.stdout)


def assert_stopped(outputs, record, told):
    """What was measured is kept, marked where it lacks something, and measured again."""
    assert record.ended == "stopped"
    folder = folder_of(outputs, "A")
    measurement = only_measurement(folder)
    rounds = sum(len(one.rounds) for one in record.sessions)
    assert (measurement.benchmark, measurement.rounds) == (record.id, rounds)
    assert not Measurement.exists(folder, "fp32", 1, "quick")  # by a training's command
    (row,) = rows_of(folder)
    assert row.lat_mean_ms > 0
    # Here a whole process is all that is asked for.
    assert row.lat_converged is (rounds >= 30)
    assert ("not converged" in told) is (rounds < 30)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("to", "status"), [("command", -signal.SIGKILL), ("process", 1)])
def test_a_kill_in_round_7_of_a_process_costs_nothing_but_itself(
    to, status, number, in_two_processes, again, outputs
):
    """Of the command, whose process ends with it, or of the process, of which the command tells.

    What a process before it has measured is kept.
    """
    before = contents(outputs)
    ended = in_two_processes("SIGKILL", to, number)
    assert ended.returncode == status
    kept = (to, number) == ("process", 2)
    if to == "process":
        more = "; kept is what 1 of 2 have measured" if kept else ""
        assert ended.stderr == f"error: a measuring process ended with status -9{more}\n"
    after = contents(outputs)
    new = [path for path in after.keys() - before.keys() if path.suffix == ".json"]
    assert len(new) == (2 if kept else 0)
    if kept:
        assert records(outputs)[-1].ended == only_measurement(folder_of(outputs, "A")).ended
        assert records(outputs)[-1].ended == "stopped"
    else:
        assert {path: after[path] for path in before} == before
    assert again("run=A").status == 0  # the device is free


@pytest.mark.parametrize("owner", ["mine", pytest.param("another's", marks=needs_root)])
def test_two_benchmarks_wait_for_each_other(owner, outputs, tmp_path, monkeypatch, forked):
    """One of them says so, and both end well; also where the lock file is another user's."""
    if owner == "another's":
        tmp_path.chmod(0o1777)  # as the system's temporary folder is
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        (lock,) = lock_paths(CPU)
        lock.touch(mode=0o644)
        os.chown(lock, NOBODY, NOBODY)
    arguments = [f"outputs={outputs}", "protocol=quick", "device=cpu", "run=A"]
    command = [sys.executable, "-m", "cifar_lightning.measure", *arguments]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    # Both, where a benchmark of another test holds the device just then.
    assert sum("waiting for another measurement on this device" in text for text in told) >= 1


@pytest.mark.slow
def test_three_fresh_processes_agree(outputs, again):
    """Relative latencies within 5 %, and no candidate is slower than itself."""
    assert again("run=A", "protocol=full", "processes=3").status == 0
    record = records(outputs)[-1]
    reference = record.number("reference")
    for number in record.ranked:
        centres = [
            difference(one.means_ms(number), one.means_ms(reference)).centre
            for one in record.sessions
        ]
        print(f"relative latencies: {[round(math.exp(centre), 3) for centre in centres]}")
        assert max(centres) - min(centres) <= math.log(1.05)


def test_what_a_device_can_not_run_is_a_row_and_the_others_go_on(again, outputs):
    folder = folder_of(outputs, "A")
    ended = again("run=A", "variants=[tf32,fused]")
    assert ended.status == 0, ended.err
    found = {one.variant: one for one in map(Measurement.read, folder.glob("measurements/*"))}
    assert found["tf32"].status == "unsupported"
    assert "GPU" in found["tf32"].reason
    assert found["fused"].has_figures
    assert {"tf32", "fused"} <= {row.variant for row in rows_of(folder)}


@pytest.mark.parametrize("moment", ["prepared", "in rounds"])
def test_a_variant_that_fails_is_a_row_and_the_others_go_on(moment, again, outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    (before,) = (folder / "measurements").iterdir()
    good = before.read_bytes()

    def fail(*arguments):
        raise RuntimeError("no memory\nfor this")

    if moment == "prepared":
        monkeypatch.setitem(registry.PARTS, "fused", (Kind.GRAPH, fail))
    else:
        real = session.interleave

        def interleave(take, *arguments):
            return real([fail, *take[1:]] if len(take) == 6 else take, *arguments)

        monkeypatch.setattr(session, "interleave", interleave)
    ended = again("run=A", "variants=[fused,fp32]")
    assert ended.status == 1
    assert ended.err == f"error: {folder.name}, fused: failed: RuntimeError: no memory\n"
    found = {one.variant: one for one in map(Measurement.read, folder.glob("measurements/*"))}
    assert (found["fused"].status, found["fused"].reason) == (
        "failed",
        "RuntimeError: no memory",
    )
    assert found["fp32"].has_figures
    assert before.read_bytes() != good


def test_a_failure_is_not_written_over_figures(outputs):
    folder = folder_of(outputs, "A")
    good = only_measurement(folder)
    bad = replace(good, status="failed", reason="no memory", test_acc=None, confusion=None)
    assert new_measurement(folder, bad)
    assert only_measurement(folder) == good
    for ended in ("stopped", "few"):
        assert new_measurement(folder, replace(good, ended=ended, rounds=7))
        assert only_measurement(folder) == good
    look = replace(good, ended="few")
    look.save(folder)
    assert new_measurement(folder, replace(good, ended="stopped", rounds=7))
    assert only_measurement(folder) == look
    assert not new_measurement(folder, good)  # of the same protocol to its end
    assert not new_measurement(folder, replace(bad, recipe={"fp32": 2}))
    (row,) = rows_of(folder)
    assert (row.status, row.error) == ("failed", "no memory")


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
    spec, source = BenchmarkSpec(["fp32"], [1], "quick"), of_run(folder, "fp32", 1)
    (measurement,) = measure([source], spec, CPU, outputs, RunData()).measurements
    assert measurement.status in ("ok", "disturbed"), measurement.reason


def test_the_record_is_whole(outputs):
    (path,) = (folder_of(outputs, "A") / "measurements").iterdir()
    measurement = Measurement.read(path)
    record = BenchmarkRecord.read(BenchmarkRecord.path(outputs, measurement.benchmark))
    assert set(record.state) == {"before", "after"}
    assert 0 <= measurement.preempted <= 1
    assert measurement.subnormals is not None
    assert measurement.peak_bytes is None or measurement.peak_bytes < 2**30
    assert measurement.environment.convolution_error < 1e-5
    assert measurement.environment.flags["threads"] == 1
    assert measurement.protocol_version >= 1
    assert measurement.rounds >= 30
    assert BenchmarkRecord.decoded(record.to_json()) == record


def test_a_measurement_by_an_earlier_recipe_is_taken_again(outputs, monkeypatch):
    folder = folder_of(outputs, "A")
    (path,) = (folder / "measurements").iterdir()
    measurement = Measurement.read(path)
    assert measurement.recipe == {"fp32": 1}
    assert measurement.engines == {"torch": metadata.version("torch")}
    assert measurement.environment.machine.processor.slug == measurement.hardware
    spec = BenchmarkSpec(["fp32"], [1], "quick")
    assert not measure_missing([folder], spec, CPU, outputs, RunData()).measurements
    monkeypatch.setitem(RECIPE_VERSIONS, "fp32", 2)
    (again,) = measure_missing([folder], spec, CPU, outputs, RunData()).measurements
    assert again.recipe == {"fp32": 2}
    assert again.candidate != measurement.candidate


def test_a_gpu_has_rows_of_its_own(outputs):
    """A run that was measured on one is measured on a CPU, too."""
    folder = folder_of(outputs, "A")
    here = only_measurement(folder)
    here.path(folder).unlink()
    there = replace(here, hardware="nvidia-h200", clock="cuda_event")
    there.save(folder)
    spec = BenchmarkSpec(["fp32"], [1], "quick")
    (made,) = measure_missing([folder], spec, CPU, outputs, RunData()).measurements
    assert made.hardware == here.hardware
    assert Measurement.read(there.path(folder)) == there
    assert not measure_missing([folder], spec, CPU, outputs, RunData()).measurements


def test_a_contradiction_of_precision_marks_the_row(again, outputs, monkeypatch):
    """It keeps all its figures: only what it is called is wrong."""
    monkeypatch.setattr(precision, "convolution_error", lambda device: 3e-4)
    ended = again("run=A")
    assert ended.status == 0, ended.err
    measurement = only_measurement(folder_of(outputs, "A"))
    assert measurement.environment.contradiction == "ran in tf32"
    assert measurement.environment.convolution_error == 3e-4
    assert measurement.has_figures
    assert "(ran in tf32)" in (outputs / "results.md").read_text()
    assert [line for line in ended.out.splitlines() if "| A " in line and "ran in tf32" in line]


def illegal_access(variant):
    raise RuntimeError("an illegal memory access was encountered")


def test_a_lost_device_ends_the_benchmark_and_all_files_stay(again, outputs, monkeypatch):
    """After some of CUDA's errors every later call fails: that says nothing of later variants."""

    def lost(device, error):
        raise DeviceLost(f"the device is lost after {error}")

    monkeypatch.setitem(registry.PARTS, "fused", (Kind.GRAPH, illegal_access))
    monkeypatch.setattr(prepare, "check_usable", lost)

    def files():
        return {path: path.read_bytes() for path in outputs.rglob("*.json")}

    before = files()
    ended = again("run=A,B", "variants=[fp32,fused,channels_last]")
    line = "error: the device is lost after an illegal memory access was encountered\n"
    assert (ended.status, ended.err) == (1, line)
    assert files() == before
    assert "| A " in ended.out  # the rows that there are


def test_a_device_that_is_lost_while_evaluating_keeps_what_was_evaluated(
    again, outputs, monkeypatch
):
    before = only_measurement(folder_of(outputs, "B"))

    def evaluate(forward, data, device):
        raise RuntimeError("an illegal memory access was encountered")

    def lost(device, error):
        raise DeviceLost("the device is lost")

    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    monkeypatch.setattr(accuracy, "check_usable", lost)
    with_weights(folder_of(outputs, "A"), scaled(1.01))  # so that its accuracy is not known
    ended = again("run=B,A")
    assert (ended.status, ended.err) == (1, "error: the device is lost\n")
    assert only_measurement(folder_of(outputs, "B")) == before


def test_an_error_may_leave_a_device_usable(monkeypatch):
    gpu, error = torch.device("cuda"), RuntimeError("no image")
    check_usable(CPU, error)

    def full(*arguments, **settings):
        raise torch.OutOfMemoryError("of memory that others have")

    def broken(*arguments, **settings):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch, "zeros", full)
    check_usable(gpu, error)
    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(DeviceLost, match=r"cuda can't be used any more .* RuntimeError: no image;"):
        check_usable(gpu, error)


def test_engines_are_what_executes_a_variant():
    assert set(registry.engines("fp32")) == {"torch"}
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    assert registry.engines("int8")["onnxruntime"]
    assert set(RECIPE_VERSIONS) <= set(registry.PARTS)
    assert recipe("fused+int8") == {"fused": 1, "int8": RECIPE_VERSIONS["int8"]}


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


def test_an_interruption_of_processes_is_passed_on(outputs, forked):
    """SIGTERM comes to the first one's parent while it prepares: nothing was there to keep."""
    before = contents(outputs)
    arguments = [f"outputs={outputs}", "protocol=full", "device=cpu", "run=A", "processes=3"]
    command = [sys.executable, "-u", "-m", "cifar_lightning.measure", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("process 1 of 3"):
                time.sleep(1)
                process.terminate()
    assert process.returncode == 143
    assert {path: path.read_bytes() for path in before} == before


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
    assert ended.err == f"error: {folder.name}, fp32: failed: the logits are NaN or infinite\n"
    (row,) = rows_of(folder)
    assert (row.status, row.lat_mean_ms) == ("failed", None)


def test_a_kill_of_all_processes_loses_nothing(outputs, forked):
    """SIGKILL while the first of the fresh processes measures."""
    folder = folder_of(outputs, "A")
    (path,) = (folder / "measurements").iterdir()
    before = path.read_bytes()
    arguments = "run=A", "processes=2", "protocol=quick", "device=cpu", f"outputs={outputs}"
    with subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning.measure", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        while process.stdout.readline() != b"process 1 of 2\n":
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert path.read_bytes() == before
    assert [entry.name for entry in (outputs / "runs").iterdir() if entry.name == folder.name]


def test_a_process_of_its_own_ends_with_a_killed_command(outputs):
    arguments = "run=A", "processes=2", "device=cpu", f"outputs={outputs}"
    with subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning.measure", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while b" interleaved rounds" not in process.stdout.readline():
            assert process.poll() is None
        while not (
            children := [
                one
                for one in psutil.Process(process.pid).children()
                if "spawn_main" in str(one.cmdline())
            ]
        ):
            time.sleep(0.1)
        time.sleep(1)
        process.kill()
        assert psutil.wait_procs(children, timeout=60)[1] == []


BAD = {
    "variants=[]": "variants=[]: must be at least one variant",
    "run=C": "run=C: no such run in",
    "run=cifarnet": "run=cifarnet: must be one of",
    "variants=[fp23]": "variants=fp23: no such variant; did you mean fp32?",
    "protocol=slow": "protocol=slow: must be full, quick",
    "threads=[0]": "threads=[0]: must be",
    "threads={a: 1}": "threads={a: 1}: must be of the kind that its default is",
    "threads=[{a: 1}]": "threads=[{'a': 1}]: must be a list of single values",
    "threads=1": "threads=1: must be a list of integers, such as [1,2]",
    "threads=[1,a]": "threads=a: must be a list of integers, such as [1,2]",
    "processes=0": "processes=0: must be",
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

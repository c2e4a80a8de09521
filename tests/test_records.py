from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated import NEED, a_run, benchmark, keep, measured, of_run
from test_results import place

from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.reproduce import measure_command, train_command
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.predictions import Predictions
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.table import write_table
from cifar_lightning.system import untrusted

TRUE = np.zeros(1000, np.uint8)
PREDICTED = (np.arange(1000) >= 900).astype(np.uint8)  # right on 900 of 1,000


@pytest.fixture
def outputs(tmp_path):
    """Two runs in two benchmarks, one with predictions."""
    for number, name in enumerate("ab"):
        run = a_run(name)
        record = keep(tmp_path, benchmark([(of_run(run), 1.0 + number)], number=number))
        place(tmp_path, run, measured(run, record, 90))
    Predictions(PREDICTED, TRUE).save(RunFolder.of(tmp_path, a_run("a").name).path, "fp32")
    return tmp_path


def folder_of(outputs, name):
    return RunFolder.of(outputs, a_run(name).name)


def test_each_benchmark_is_read_once_and_the_table_reads_none(outputs, monkeypatch):
    taken = []
    decoded = BenchmarkRecord.decoded.__func__

    def counted(cls, content):
        taken.append(cls)
        return decoded(cls, content)

    monkeypatch.setattr(BenchmarkRecord, "decoded", classmethod(counted))
    write_table(outputs)
    assert not taken
    records = Records.read([outputs])
    assert len(taken) == len(records.benchmarks) == 2
    assert list(records.right) == [(a_run("a").name, "fp32")]
    assert not records.damaged


def test_damaged_and_misnamed_benchmarks_are_left_out(outputs):
    first, second = sorted((outputs / "benchmarks").iterdir())
    first.write_text("{")
    second.rename(second.with_name("other.json"))
    (outputs / "benchmarks" / "notes.txt").write_text("mine")
    records = Records.read([outputs])
    assert not records.benchmarks
    assert [line.partition(" is damaged")[0] for line in records.damaged] == [
        str(first), str(second.with_name("other.json")),
    ]  # fmt: skip
    # Milliseconds stay, and relative latencies as the measurements hold them.
    (found,) = compare(records, NEED).leaderboards
    a, b = found.entries
    assert found.slower(b, a)
    assert (a.timings.timed, a.latency.mean_ms > 0) == ((), True)


def test_what_is_being_written_is_no_damage(outputs):
    ready, _ = sorted((outputs / "benchmarks").iterdir())
    measured = folder_of(outputs, "a").measurements
    for folder in (ready.parent, measured):
        (folder / ".cifar-lightning-7-next.json").write_text("{")
    records = Records.read([outputs])
    assert len(records.benchmarks) == 2
    assert not records.damaged


def test_records_of_benchmarks_may_be_larger_than_others(outputs):
    path, _ = sorted((outputs / "benchmarks").iterdir())
    path.write_bytes(path.read_bytes() + b" " * untrusted.MAX_BYTES)
    assert not Records.read([outputs]).damaged


def test_predictions_of_other_weights_or_machines_are_not_taken(outputs):
    Predictions(TRUE, TRUE).save(folder_of(outputs, "a").path, "fp32")
    records = Records.read([outputs])
    assert (records.right, records.damaged) == ({}, [])
    folder_of(outputs, "a").prediction("fp32").write_bytes(b"PK")
    (line,) = Records.read([outputs]).damaged
    assert line.startswith(f"{folder_of(outputs, 'a').prediction('fp32')} is damaged")


def test_a_row_can_be_made_again(outputs):
    said = """
- experiment=b1
- "id='a'"
- seed=3
- outputs=/home/me/out
- data.root=/data
- data.mirrors=[https://me:SECRET@host/x]
- 'augment=[crop,flip]'
- hydra.job.name=x
- +init=/home/me/w.safetensors
"""
    folder = folder_of(outputs, "a")
    folder.overrides.parent.mkdir()
    folder.overrides.write_text(said)
    (found,) = compare(Records.read([outputs]), NEED).leaderboards
    a, b = found.entries
    assert train_command(a.group) == (
        "python train.py experiment=b1 id=a 'augment=[crop,flip]' precision=32-true seed=0"
    )
    assert "was not recorded" in train_command(b.group)
    assert measure_command([a, b]) == (
        "python -m cifar_lightning.measure run=a,b 'variants=[fp32]' device=cpu"
    )


def test_seeds_are_trained_again_together(tmp_path):
    for seed in (0, 1):
        run = a_run("a", seed)
        place(tmp_path, run, measured(run))
        path = RunFolder.of(tmp_path, run.name).overrides
        path.parent.mkdir()
        path.write_text(f"[optim=sgd, seed={seed}]")
    (found,) = compare(Records.read([tmp_path]), NEED).leaderboards
    (only,) = found.entries
    assert train_command(only.group) == "python train.py -m optim=sgd seed=0,1"
    # One ID means both: a run's name means one.
    assert f"run={a_run('a').name} " in measure_command([only])


HARDWARE = {
    "cpu": ({}, " device=cpu"),
    "gpu": ({"hardware": "nvidia-h200", "clock": "cuda_event"}, ""),
    "mps": ({"hardware": "a-cpu-mps"}, ""),  # by the same clock
}


@pytest.mark.parametrize("device", HARDWARE)
def test_a_row_is_measured_again_on_its_device(device):
    """A command that names none takes a GPU where there is one."""
    changed, said = HARDWARE[device]
    run = a_run("a")
    record = benchmark([(of_run(run), 1.0)], processes=8, rounds=30, **changed)
    (only,) = entries_of([run], [record], **changed)
    assert measure_command([only]) == (
        f"python -m cifar_lightning.measure run=a 'variants=[fp32]'{said}"
    )


@pytest.mark.parametrize("other", [{"seed": 1}, {"fingerprint": "e" * 16}])
def test_an_id_that_another_run_has_is_not_said(other):
    """Though that was never measured, or is of other data: `measure` would mean both."""
    run, twin = a_run("B1"), a_run("B1", **other)
    made = measured(run)
    results = [
        RunResults(Path("outputs", "runs", one.name), one, [(None, made)] if one is run else [], [])
        for one in (run, twin)
    ]
    ((only,),) = (one.entries for one in compare(Records(results, {}, {}), NEED).leaderboards)
    assert only.label == "B1"
    assert f"run={run.name} " in measure_command([only])
    ((alone,),) = (one.entries for one in compare(Records(results[:1]), NEED).leaderboards)
    assert "run=B1 " in measure_command([alone])


@pytest.mark.parametrize(
    ("processes", "protocol", "said"),
    [
        (1, "full", "processes=1"),
        (8, "full", ""),
        (16, "full", "processes=16"),
        (1, "quick", "protocol=quick"),
        (2, "quick", "protocol=quick processes=2"),
    ],
)
def test_a_row_is_measured_again_in_as_many_processes(processes, protocol, said):
    run = a_run("a")
    record = benchmark([(of_run(run), 1.0)], processes=processes, protocol=protocol, rounds=30)
    (only,) = entries_of([run], [record])
    assert measure_command([only]).partition(" device=cpu")[2].strip() == said
    # A stopped one does not tell, nor one that is missing.
    sessions = [*record.sessions[:-1], replace(record.sessions[-1], ended="stopped")]
    for unknown in ([replace(record, sessions=sessions)], []):
        (only,) = entries_of([run], unknown, protocol=protocol)
        assert "processes=" not in measure_command([only])


@pytest.mark.parametrize(
    ("processes", "together", "said"),
    [
        (1, True, ""),
        (4, True, ""),
        (8, True, "processes=16"),
        (1, False, ""),
        (16, False, "processes=16"),
    ],
)
def test_what_is_open_is_measured_in_more_processes(processes, together, said):
    """Twice as many as have left it open; what was never together in as many as each was."""
    runs = a_run("a"), a_run("b")
    ones = [(of_run(run), 1.0) for run in runs]
    parts = [ones] if together else [[one] for one in ones]
    records = [
        benchmark(part, number=number, processes=processes, rounds=30)
        for number, part in enumerate(parts)
    ]
    command = measure_command(entries_of(runs, records))
    assert command.partition(" device=cpu")[2].strip() == said


def entries_of(runs, records, **changed):
    """Make the entries of runs; without any record the measurements are all there is."""
    known = {record.id: record for record in records}
    results = []
    for run in runs:
        key = of_run(run).key
        there = [one for one in records if key in [one.candidates[n].key for n in one.ranked]]
        taken = measured(run, *there[-1:], **changed)
        results.append(RunResults(Path("outputs", "runs", run.name), run, [(None, taken)], []))
    (found,) = compare(Records(results, known, {}), NEED).leaderboards
    return found.entries


@pytest.mark.parametrize("content", ["{}", "[1, [2]]", "- [", "", "a: &a [*a]"])
def test_commands_that_can_not_be_read_are_not_recorded(outputs, content):
    folder = folder_of(outputs, "a")
    folder.overrides.parent.mkdir()
    folder.overrides.write_text(content)
    assert Records.read([outputs]).overrides == {}

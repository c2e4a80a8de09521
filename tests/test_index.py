"""The table's index is a cache: whatever happens to it or to the files, the table is right."""

import os
import shutil
from dataclasses import replace

import pytest
from conftest import write_and_read
from simulated import benchmark, candidate, keep
from test_results import MEASUREMENT, RUN, place

from cifar_lightning.comparison.records import Records
from cifar_lightning.config.protocols import PROTOCOL_VERSION
from cifar_lightning.runs import cache, index
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.index import INDEX, Index
from cifar_lightning.runs.interleaved import BenchmarkHead
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.table import write_table
from cifar_lightning.runs.timed_before import measured_before, prepared_before


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Let times of change count at once; one test is about those that are too recent."""
    monkeypatch.setattr(cache, "RECENT_NS", 0)


@pytest.fixture
def outputs(tmp_path):
    for day, name in enumerate(("a-1", "b-2", "c-3"), 1):
        run = replace(RUN, name=name, id=f"run{day}", started=f"2026-01-0{day}T00:00:00+00:00")
        place(
            tmp_path,
            run,
            replace(MEASUREMENT, run=name),
            replace(MEASUREMENT, run=name, variant="fused", recipe={"fused": 1}),
        )
    write_table(tmp_path)
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """List the folders that are read."""
    found = []

    def listed(folder):
        found.append(folder.name)
        return original(folder)

    original = RunResults.listed
    monkeypatch.setattr(RunResults, "listed", listed)
    return found


def texts(outputs):
    return [(outputs / name).read_text() for name in ("results.csv", "results.md")]


def anew(outputs):
    """Write the tables without an index."""
    (outputs / INDEX).unlink()
    write_table(outputs)
    return texts(outputs)


def in_place(path, old, new):
    """Change a file without replacing it, its size and time of change being as before."""
    seen = path.stat()
    with path.open("r+") as stream:
        text = stream.read()
        assert old in text
        assert len(old) == len(new)
        stream.seek(0)
        stream.write(text.replace(old, new))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def measurement_of(outputs, name, variant="fp32"):
    (path,) = (outputs / "runs" / name / "measurements").glob(f"{variant}@*.json")
    return path


CHANGES = {
    "edited": lambda o: in_place(measurement_of(o, "b-2"), "90.0", "12.0"),
    "renamed": lambda o: in_place(o / "runs" / "b-2" / "run.json", "run2", "RUN2"),
    "longer": lambda o: replace(
        RUN, name="b-2", id="a-much-longer-one", started="2026-01-02T00:00:00+00:00"
    ).save(o / "runs" / "b-2"),
    "measured again": lambda o: replace(MEASUREMENT, run="b-2", test_acc=1.0).save(
        o / "runs" / "b-2"
    ),
    "one more": lambda o: replace(MEASUREMENT, run="b-2", threads=4).save(o / "runs" / "b-2"),
    "one less": lambda o: measurement_of(o, "b-2").unlink(),
    "deleted": lambda o: shutil.rmtree(o / "runs" / "b-2"),
    "copied": lambda o: shutil.copytree(o / "runs" / "b-2", o / "runs" / "copy"),
    "copied over": lambda o: shutil.copy2(measurement_of(o, "a-1"), measurement_of(o, "b-2")),
    "damaged": lambda o: (o / "runs" / "b-2" / "run.json").write_text("{"),
    "no measurements": lambda o: shutil.rmtree(o / "runs" / "b-2" / "measurements"),
    "under way": lambda o: replace(RUN, name="b-2", status="running").save(o / "runs" / "b-2"),
    "started earlier": lambda o: replace(RUN, name="b-2", started="2025-01-01T00:00:00").save(
        o / "runs" / "b-2"
    ),
    "a file there": lambda o: (o / "runs" / "notes.txt").write_text("x"),
    "all gone": lambda o: shutil.rmtree(o / "runs"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_is_read_and_nothing_else(change, outputs, read):
    change(outputs)
    write_table(outputs)
    assert set(read) <= {"b-2", "copy", "notes.txt"}
    assert texts(outputs) == anew(outputs)
    assert not list(outputs.glob("*kept*"))


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in ("all gone",)])
def test_a_change_is_seen(change, outputs, caplog):
    before = texts(outputs)
    CHANGES[change](outputs)
    write_table(outputs)
    seen = texts(outputs) != before or "left out" in caplog.text
    assert seen == (change != "a file there")


def test_nothing_is_written_where_nothing_changed(outputs, read):
    before = {path.name: path.stat().st_ino for path in outputs.iterdir()}
    write_table(outputs)
    assert {path.name: path.stat().st_ino for path in outputs.iterdir()} == before
    assert read == []


def test_rows_are_as_wide_as_the_widest_again(outputs):
    before = texts(outputs)
    run = replace(RUN, name="b-2", started="2026-01-02T00:00:00+00:00")
    replace(run, id="x" * 60).save(outputs / "runs" / "b-2")
    write_table(outputs)
    assert len({len(line) for line in texts(outputs)[1].splitlines()}) == 1
    replace(run, id="run2").save(outputs / "runs" / "b-2")
    write_table(outputs)
    assert texts(outputs) == before


def damage(path, **how):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + how.get("more", b""))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: (o / INDEX).unlink(),
        lambda o: (o / INDEX).write_text(""),
        lambda o: damage(o / INDEX),
        lambda o: in_place(o / INDEX, "a-1", "z-1"),
        lambda o: (o / INDEX).write_text((o / INDEX).read_text().replace("a-1", "z-1")),
        lambda o: (o / "results.md").unlink(),
        lambda o: (o / "results.csv").unlink(),
        lambda o: (o / ".results.sha256").unlink(),
    ],
)
def test_an_index_that_does_not_fit_is_made_anew(spoil, outputs, read):
    before = texts(outputs)
    spoil(outputs)
    write_table(outputs)
    assert texts(outputs) == before
    write_table(outputs)
    assert set(read) <= {"a-1", "b-2", "c-3"}
    assert len(read) <= 3


def test_other_tables_than_the_indexs_are_said(outputs, caplog, read):
    caplog.set_level("INFO")
    shutil.copy(outputs / INDEX, outputs / "older")
    replace(MEASUREMENT, run="b-2", test_acc=1.0).save(outputs / "runs" / "b-2")
    write_table(outputs)
    right = texts(outputs)
    (outputs / "older").rename(outputs / INDEX)
    write_table(outputs)
    assert f"{outputs / INDEX} does not fit the table: both are made anew" in caplog.messages
    assert sorted(read) == ["a-1", "b-2", "b-2", "c-3"]
    assert texts(outputs) == right


def test_an_index_of_other_code_is_none(outputs, monkeypatch):
    assert Index.read(outputs).folders
    monkeypatch.setattr(cache, "_code", lambda: b"other")
    assert not Index.read(outputs).folders
    before = texts(outputs)
    write_table(outputs)
    assert texts(outputs) == before


@pytest.mark.parametrize("moment", ["results.csv", "results.md", INDEX, ".results.sha256"])
def test_a_kill_at_any_point(moment, outputs, monkeypatch):
    replace(MEASUREMENT, run="b-2", test_acc=1.0).save(outputs / "runs" / "b-2")
    with monkeypatch.context() as patch:

        def killed(path, target):
            replace_file(path, target)
            if target.name == moment:
                raise SystemExit

        replace_file = type(outputs).replace
        patch.setattr(type(outputs), "replace", killed)
        with pytest.raises(SystemExit):
            write_table(outputs)
    write_table(outputs)
    assert texts(outputs) == anew(outputs)
    assert "1.00" in texts(outputs)[1]
    assert not list(outputs.glob("*kept*"))


def test_what_changed_just_now_is_not_trusted(outputs, monkeypatch, read):
    """It may change again without another time: file systems tell times in steps."""
    monkeypatch.setattr(cache, "RECENT_NS", 60 * 10**9)
    write_table(outputs)
    write_table(outputs)
    assert sorted(read) == ["a-1", "a-1", "b-2", "b-2", "c-3", "c-3"]
    monkeypatch.setattr(cache, "RECENT_NS", 0)
    write_table(outputs)
    write_table(outputs)
    assert len(read) == 9


def test_a_damaged_file_is_said_each_time(outputs, caplog):
    measurement_of(outputs, "b-2").write_text("{")
    for _ in range(2):
        caplog.clear()
        write_table(outputs)
        assert caplog.text.count("left out") == 1


def test_finding_reads_only_the_records_that_changed(outputs, monkeypatch):
    opened = []

    def listed(folder):
        opened.append(folder.name)
        return original(folder)

    original = index.listed_run
    monkeypatch.setattr(index, "listed_run", listed)
    assert find_run(outputs, "run1").name == "a-1"
    assert opened == []
    replace(RUN, name="b-2", id="new").save(outputs / "runs" / "b-2")
    place(outputs, replace(RUN, name="d-4", id="later"))
    assert find_run(outputs, "new").name == "b-2"
    assert find_run(outputs, "later").name == "d-4"
    assert set(opened) == {"b-2", "d-4"}
    (outputs / INDEX).write_text("")
    assert find_run(outputs, "run1").name == "a-1"


def test_a_damaged_index_is_said(outputs, caplog):
    caplog.set_level("INFO")
    (outputs / INDEX).write_text("")
    write_table(outputs)
    assert f"{outputs / INDEX} is damaged or by other code: made anew" in caplog.messages


def test_benchmarks_are_not_read_again(tmp_path, monkeypatch):
    """But those that changed are; and what can't be read is tried each time."""
    read = []
    monkeypatch.setattr(BenchmarkHead, "read", spied(BenchmarkHead.read, read))
    first, second = candidate("a"), candidate("b")
    of_now = {"protocol_version": PROTOCOL_VERSION}
    keep(tmp_path, benchmark([(first, 1.0)], number=0, **of_now))
    later = keep(tmp_path, benchmark([(first, 1.0), (second, 2.0)], number=1, **of_now))

    def known(*wanted, hardware=later.hardware):
        keys = {one.key for one in wanted}
        found = measured_before(tmp_path, keys, hardware, "full")
        return {key: record.id for key, record in found.items()}

    both = {first.key: later.id, second.key: later.id}
    assert known(first, second) == both
    assert len(read) == 2
    assert known(first, second) == both
    assert known(first, hardware="another") == {}
    assert len(read) == 2
    keep(tmp_path, replace(later, protocol_version=1000))  # a later one of other rules
    assert known(first, second).keys() == {first.key}
    path = later.path(tmp_path, later.id)
    path.write_text("{")
    count = len(read)
    assert known(second) == known(second) == {}
    assert len(read) == count + 2
    path.unlink()
    assert known(second) == {}
    (tmp_path / ".benchmarks.index").write_text("damaged")
    assert known(first).keys() == {first.key}
    # A later look of too few processes spares nothing.
    look = keep(tmp_path, benchmark([(first, 1.0)], number=2, processes=2, **of_now))
    assert known(first)[first.key] < look.id


def test_how_long_variants_took_to_prepare(tmp_path):
    """By the latest benchmark that had each; exports of some take long, so by the mean."""
    ones = [
        candidate(label, variant=variant, preparation_s=seconds, first_call_ms=500.0)
        for label, variant, seconds in (("a", "fp32", 0.5), ("a", "onnx", 1.5), ("b", "onnx", 9.5))
    ]
    keep(tmp_path, benchmark([(one, 1.0) for one in ones], number=0))
    later = replace(ones[0], preparation_s=2.5)
    record = keep(tmp_path, benchmark([(later, 1.0)], number=1))
    for _ in range(2):  # the second time by the cache
        assert prepared_before(tmp_path, record.hardware) == {"fp32": 3.0, "onnx": 6.0}
    assert prepared_before(tmp_path, "another") == {}


def spied(method, calls):
    def read(cls, path):
        if cls is BenchmarkHead:  # and not the whole record of what was asked for
            calls.append(path)
        return method.__func__(cls, path)

    return classmethod(read)


def test_many_are_announced(outputs, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(index, "MANY", 2)
    (outputs / INDEX).unlink()
    write_table(outputs)
    assert "reading 3 runs" in caplog.messages


def test_rows_that_are_written_are_those_that_are_read(outputs):
    rows = write_and_read(outputs)
    assert [(row.run, row.variant) for row in rows] == [
        (name, variant) for name in ("a-1", "b-2", "c-3") for variant in ("fp32", "fused")
    ]
    assert {row.lat_mean_ms for row in rows} == {1.23456}


@pytest.mark.slow
def test_generated_runs_are_as_real_ones(tmp_path):
    """They can be read whole, and no two are alike."""
    from perf.generated_runs import generate

    generate(tmp_path, 12)
    records = Records.read([tmp_path])
    assert not records.damaged
    assert len(records.right) == 36
    rows = write_and_read(tmp_path)
    assert len(rows) == 36
    for column in ("run", "id", "val_acc"):
        assert len({getattr(row, column) for row in rows}) == 12, column
    assert len({row.lat_p95_ms for row in rows}) > 24
    timed = {key: one for one in records.benchmarks.values() for key in keys_of(one)}
    measurements = [found for one in records.runs for _, found in one.lines]
    assert {one.candidate for one in measurements} == timed.keys()


def keys_of(record):
    return [record.candidates[number].key for number in record.ranked]

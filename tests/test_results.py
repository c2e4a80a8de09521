import csv
import io
import json
from dataclasses import replace

import pytest

from cifar_lightning.files import write_atomically
from cifar_lightning.results import (
    CSV_COLUMNS,
    Measurement,
    Run,
    markdown,
    rows_of,
    write_table,
)

RUN = Run(
    name="net-sgd-cosine-e3-s0-0123abcd",
    id=None,
    choices={"model": "net", "optim": "sgd", "scheduler": "cosine"},
    config={
        "epochs": 3,
        "seed": 0,
        "data": {"name": "digits", "seed": 0},
        "augment": {},
        "trainer": {},
    },
    status="finished",
    started="2026-01-01T00:00:00+00:00",
    data_fingerprint="f" * 16,
    code={"commit": "abc", "dirty": False},
    versions={"torch": "2"},
    machine={"cpu": "x"},
    params=1_500_000,
    macs=17_510_000,
    val_acc=91.5,
    test_acc=90.0,
)
MEASUREMENT = Measurement(
    run=RUN.name,
    variant="fp32",
    status="ok",
    reason=None,
    device="A | CPU",
    hardware="a-cpu",
    threads=1,
    clock="perf_counter",
    protocol="full",
    protocol_version=1,
    test_acc=90.0,
    latency={
        "mean_ms": 1.23456,
        "p50_ms": 1.2,
        "p95_ms": 2.0,
        "std_ms": 0.1,
        "n": 3,
        "converged": True,
    },
    size_bytes=6_100_000,
    code={"commit": "abc", "dirty": False},
    environment={"versions": {"torch": "2"}},
    samples_ms=[1.0, 2.0, 3.0],
)


def place(outputs, run=RUN, *measurements):
    folder = outputs / "runs" / run.name
    run.save(folder)
    for measurement in measurements:
        measurement.save(folder)
    return folder


def read_csv(outputs):
    return list(csv.DictReader(io.StringIO((outputs / "results.csv").read_text())))


def test_round_trip(tmp_path):
    folder = place(tmp_path, RUN, MEASUREMENT)
    assert Run.load(folder) == RUN
    (path,) = (folder / "measurements").iterdir()
    assert path.name == "fp32@a-cpu-t1-full.json"
    assert Measurement.read(path) == MEASUREMENT


def test_table_holds_what_was_measured(tmp_path):
    place(tmp_path, RUN, MEASUREMENT)
    rows = write_table(tmp_path)
    (stored,) = read_csv(tmp_path)
    assert tuple(stored) == CSV_COLUMNS
    assert stored["id"] == "0123abcd"
    assert float(stored["lat_mean_ms"]) == 1.23456
    assert float(stored["size_mb"]) == 6.1
    assert stored["macs"] == "17510000"
    drawn = (tmp_path / "results.md").read_text()
    assert drawn == markdown(rows)
    cells = [cell.strip() for cell in drawn.splitlines()[2].strip("|").split("|")]
    assert cells == [
        "0123abcd",
        "fp32",
        "90.00",
        "1.235",
        "2.000",
        "6.10",
        "1.50",
        "17.51",
        "A / CPU, 1 thread",
    ]
    assert len({len(line) for line in drawn.splitlines()}) == 1


def test_the_id_names_the_row(tmp_path):
    place(tmp_path, replace(RUN, id="B1"), MEASUREMENT)
    assert write_table(tmp_path)[0]["id"] == "B1"


def test_measuring_again_replaces_and_full_outranks_quick(tmp_path):
    quick = replace(MEASUREMENT, protocol="quick", test_acc=1.0)
    folder = place(tmp_path, RUN, quick)
    assert "(quick)" in markdown(rows_of(folder))
    MEASUREMENT.save(folder)
    replace(MEASUREMENT, test_acc=2.0).save(folder)
    assert [row["test_acc"] for row in rows_of(folder)] == [2.0]
    replace(quick, threads=4).save(folder)
    assert len(rows_of(folder)) == 2


def test_a_failed_run_has_a_row_and_one_under_way_has_none(tmp_path):
    place(tmp_path, replace(RUN, name="a-1", status="failed", error="ValueError: x"))
    place(tmp_path, replace(RUN, name="b-2", status="running"))
    place(tmp_path, replace(RUN, name="c-3", status="interrupted"))
    (row,) = write_table(tmp_path)
    assert (row["run"], row["status"], row["error"]) == ("a-1", "failed", "ValueError: x")
    assert "(failed)" in (tmp_path / "results.md").read_text()


def test_a_damaged_record_is_named_and_left_out(tmp_path, caplog):
    folder = place(tmp_path, RUN, MEASUREMENT)
    (folder / "measurements" / "bad.json").write_text('{"run": ')
    other = place(tmp_path, replace(RUN, name="other-run"))
    (other / "run.json").write_text(json.dumps({"name": "no more"}))
    assert len(write_table(tmp_path)) == 1
    assert "bad.json" in caplog.text
    assert "other-run" in caplog.text


def test_rows_come_in_the_order_of_starting(tmp_path):
    for name, day in (("z-1", 1), ("a-2", 2), ("m-3", 3)):
        run = replace(RUN, name=name, started=f"2026-01-0{day}T00:00:00+00:00")
        place(tmp_path, run, replace(MEASUREMENT, run=name))
    assert [row["run"] for row in write_table(tmp_path)] == ["z-1", "a-2", "m-3"]


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"

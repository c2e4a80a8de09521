import csv
import io
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, write_and_read

from cifar_lightning.comparison.publish import seeds_table
from cifar_lightning.config.protocols import PROTOCOL_VERSION
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.interleaved import BenchmarkHead
from cifar_lightning.runs.latency import LatencyStats, Relative
from cifar_lightning.runs.layout import markdown, sweep_table
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import CSV_COLUMNS, rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.table import write_table
from cifar_lightning.system.environment import Code, Machine
from cifar_lightning.system.files import write_atomically
from cifar_lightning.system.processor import Processor

MACHINE = Machine("Linux x86_64", Processor("A CPU"), 2, "A CPU")
RUN = Run(
    name="net-sgd-cosine-e3-s0-0123abcd",
    id=None,
    choices={"model": "net", "optim": "sgd", "scheduler": "cosine"},
    config={
        "model": {},
        "optim": {},
        "scheduler": {},
        "data": {
            "name": "digits",
            "num_classes": 2,
            "val_fraction": 0.1,
            "split_seed": 0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "seed": 0,
        },
        "augment": {},
        "trainer": {},
        "distill": None,
        "callbacks": None,
        "logger": {
            "tensorboard": {"_target_": "cifar_lightning.training.loggers.TensorBoardLogger"}
        },
        "benchmark": {},
        "epochs": 3,
        "batch_size": 64,
        "seed": 0,
        "precision": "32-true",
        "ema": None,
        "label_smoothing": 0.1,
        "channels_last": True,
        "compile": False,
        "id": None,
        "outputs": "outputs",
        "rerun": False,
    },
    status="finished",
    started="2026-01-01T00:00:00+00:00",
    data_fingerprint="f" * 16,
    code=Code("abc", False),
    versions={"torch": "2"},
    machine=MACHINE,
    params=1_500_000,
    macs=17_510_000,
    val_acc=91.5,
    test_acc=90.0,
)
LATENCY = LatencyStats(
    n=3,
    mean_ms=1.23456,
    std_ms=0.1,
    min_ms=1.0,
    p50_ms=1.2,
    max_ms=3.0,
    p95_ms=2.0,
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
    protocol_version=PROTOCOL_VERSION,
    test_acc=90.0,
    size_bytes=6_100_000,
    code=Code("abc", False),
    environment=Environment({"torch": "2"}, MACHINE),
    recipe={"fp32": 1},
    engines={"torch": "2"},
    candidate="0123456789abcdef",
    benchmark="20260101-000000-abcdef",
    latency=LATENCY,
    relative=Relative(1.5, 1.49, 1.51),
    rounds=126,
    ended="converged",
    converged=True,
    preempted=0.1,
)


def with_seed(seed):
    """Make the run's configuration with another seed."""
    return RUN.config | {"seed": seed, "data": RUN.config["data"] | {"seed": seed}}


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
    rows = write_and_read(tmp_path)
    (stored,) = read_csv(tmp_path)
    assert tuple(stored) == CSV_COLUMNS
    assert stored["id"] == "0123abcd"
    assert float(stored["lat_mean_ms"]) == 1.23456
    assert float(stored["size_mb"]) == 6.1
    assert stored["macs"] == "17510000"
    drawn = (tmp_path / "results.md").read_text()
    assert drawn == markdown(rows)
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", drawn.splitlines()[2])[1:-1]]
    assert cells == [
        "0123abcd",
        "net",
        "sgd-cosine-e3-s0-0123abcd",
        "fp32",
        "90.00",
        "1.235",
        "2.000",
        "6.10",
        "1.50",
        "17.51",
        r"A \| CPU, 1 thread",
    ]
    assert len({len(line) for line in drawn.splitlines()}) == 1


def test_the_id_names_the_row(tmp_path):
    place(tmp_path, replace(RUN, id="B1"), MEASUREMENT)
    assert write_and_read(tmp_path)[0].id == "B1"


def test_measuring_again_replaces_and_full_outranks_quick(tmp_path):
    quick = replace(MEASUREMENT, protocol="quick", test_acc=1.0)
    folder = place(tmp_path, RUN, quick)
    assert "(quick)" in markdown(rows_of(folder))
    MEASUREMENT.save(folder)
    replace(MEASUREMENT, test_acc=2.0).save(folder)
    # What came without its benchmark was measured elsewhere, and outranks nothing.
    assert {row.test_acc for row in rows_of(folder)} == {1.0, 2.0}
    record = BenchmarkHead.path(tmp_path, MEASUREMENT.benchmark)
    record.parent.mkdir()
    record.touch()
    assert [row.test_acc for row in rows_of(folder)] == [2.0]
    replace(quick, threads=4).save(folder)
    assert len(rows_of(folder)) == 2


def test_a_failed_run_has_a_row_and_one_under_way_has_none(tmp_path):
    place(tmp_path, replace(RUN, name="a-1", status="failed", error="ValueError: x"))
    place(tmp_path, replace(RUN, name="b-2", status="running"))
    place(tmp_path, replace(RUN, name="c-3", status="interrupted"))
    (row,) = write_and_read(tmp_path)
    assert (row.run, row.status, row.error) == ("a-1", "failed", "ValueError: x")
    assert "(failed)" in (tmp_path / "results.md").read_text()


def test_a_damaged_record_is_named_and_left_out(tmp_path, caplog):
    folder = place(tmp_path, RUN, MEASUREMENT)
    (folder / "measurements" / "bad.json").write_text('{"run": ')
    other = place(tmp_path, replace(RUN, name="other-run"))
    (other / "run.json").write_text(json.dumps({"name": "no more"}))
    assert len(write_and_read(tmp_path)) == 1
    assert "bad.json" in caplog.text
    assert "other-run" in caplog.text


def test_rows_come_in_the_order_of_starting(tmp_path):
    for name, day in (("z-1", 1), ("a-2", 2), ("m-3", 3)):
        run = replace(RUN, name=name, started=f"2026-01-0{day}T00:00:00+00:00")
        place(tmp_path, run, replace(MEASUREMENT, run=name))
    assert [row.run for row in write_and_read(tmp_path)] == ["z-1", "a-2", "m-3"]


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def edited(path):
    path.write_text(path.read_text().replace("90.0", "99.9"))


def test_a_lost_table_is_rebuilt(tmp_path):
    place(tmp_path, RUN, MEASUREMENT)
    write_table(tmp_path)
    before = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").unlink()
    (tmp_path / "results.md").write_text("")
    write_table(tmp_path)
    assert (tmp_path / "results.csv").read_text() == before


@pytest.mark.parametrize("name", ["results.csv", "results.md"])
def test_a_table_changed_by_hand_is_kept(name, tmp_path, caplog):
    place(tmp_path, RUN, MEASUREMENT)
    write_table(tmp_path)
    path = tmp_path / name
    for number in (1, 2):
        edited(path)
        ours = path.read_text()
        write_table(tmp_path)
        kept = path.with_name(f"{path.stem}.kept-{number}{path.suffix}")
        assert kept.read_text() == ours
        assert kept.name in caplog.text
        assert "99.9" not in path.read_text()


def test_a_foreign_table_is_kept(tmp_path):
    place(tmp_path, RUN, MEASUREMENT)
    (tmp_path / "results.csv").write_text("time,money\n1,2\n")
    write_table(tmp_path)
    assert (tmp_path / "results.kept-1.csv").read_text() == "time,money\n1,2\n"
    header = (tmp_path / "results.csv").read_text().splitlines()[0]
    assert header == ",".join(CSV_COLUMNS)


def test_an_older_table_of_ours_is_not_kept(tmp_path):
    folder = place(tmp_path, RUN, MEASUREMENT)
    write_table(tmp_path)
    replace(MEASUREMENT, test_acc=2.0).save(folder)
    write_table(tmp_path)
    assert not list(tmp_path.glob("*kept*"))


@pytest.mark.parametrize("moment", ["results.csv", "results.md", ".results.sha256"])
def test_a_kill_between_the_views_is_no_change_by_hand(moment, tmp_path, monkeypatch):
    folder = place(tmp_path, RUN, MEASUREMENT)
    write_table(tmp_path)
    replace(MEASUREMENT, test_acc=2.0).save(folder)
    with monkeypatch.context() as patch:

        def killed(path, target):
            replace_file(path, target)
            if target.name == moment:
                raise SystemExit

        replace_file = Path.replace
        patch.setattr(Path, "replace", killed)
        with pytest.raises(SystemExit):
            write_table(tmp_path)
    write_table(tmp_path)
    assert not list(tmp_path.glob("*kept*"))


def test_means_over_the_seeds(tmp_path):
    folders = []
    for seed, acc in enumerate((90.0, 91.0, 95.0)):
        run = replace(RUN, name=f"net-sgd-cosine-e3-s{seed}-{seed:08x}", config=with_seed(seed))
        one = replace(MEASUREMENT, run=run.name, test_acc=acc)
        folders.append(place(tmp_path, run, one))
    other = replace(RUN, name="another", config=RUN.config | {"epochs": 4})
    alone = place(tmp_path, other, replace(MEASUREMENT, run=other.name))
    header, _, line = seeds_table([*folders, alone], {}).splitlines()
    names, cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in (header, line))
    shown = dict(zip(names, cells, strict=True))  # no name twice
    assert len(shown) == len(names)
    assert (shown["ID"], shown["Variant"], shown["Seeds"]) == ("00000000+2", "fp32", "3")
    assert shown["Acc. (%)"] == "92.00 ± 2.65"
    assert shown["Lat. mean (ms)"] == "1.235"  # they execute alike
    assert shown["Lat. p95 (ms)"] == "2.000"
    assert seeds_table([alone], {}) == ""
    replace(one, status="disturbed").save(folders[-1])
    assert "92.00 ± 2.65" in seeds_table(folders, {})  # load does not touch accuracy


def test_the_table_of_a_sweep(tmp_path):
    """What varies in it has a column each; one ID is told apart, in the other table, too."""
    runs = [replace(RUN, name=f"net-sgd-cosine-e3-s0-a{n}", id="B1") for n in range(3)]
    folders = [
        place(tmp_path, run, replace(MEASUREMENT, run=run.name, candidate=str(n) * 16))
        for n, run in enumerate(runs)
    ]
    seed = replace(runs[2], name="net-sgd-cosine-e3-s1-b", config=with_seed(1))
    folders.append(place(tmp_path, seed, replace(MEASUREMENT, run=seed.name, candidate="2" * 16)))
    told = [{"optim.lr": "0.1", "id": "B1"}, {"optim.lr": "0.2", "ema": "0.9"}, {"model": "net"}]
    varied = {run.name: values for run, values in zip([*runs, seed], [*told, {}], strict=True)}
    rows = [row for folder in folders for row in rows_of(folder)]
    header, _, *lines = cells_of(sweep_table(rows, varied))
    assert header[:6] == ["ID", "Network", "optim.lr", "ema", "Seed", "Variant"]
    assert [line[2:5] for line in lines] == [
        ["0.1", "-", "0"],
        ["0.2", "0.9", "0"],
        ["-", "-", "0"],
        ["-", "-", "1"],
    ]
    header, _, *lines = cells_of(seeds_table(folders, varied))
    assert header[:4] == ["ID", "Network", "optim.lr", "ema"]
    assert len(lines[0]) == len(header)
    header, _, *lines = cells_of(markdown(rows))
    assert len({tuple(line[:3]) for line in lines}) == len(lines) == 4


def cells_of(table):
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()]


def test_a_disturbed_measurement_keeps_its_speed(tmp_path):
    """Relative latency is what load does not touch; milliseconds of two moments are not divided."""

    def speedups(status):
        slow = replace(LATENCY, mean_ms=9 * LATENCY.mean_ms)
        fused = replace(MEASUREMENT, variant="fused", recipe={"fused": 1}, latency=slow)
        place(tmp_path, RUN, fused)
        place(tmp_path, RUN, replace(MEASUREMENT, relative=Relative(3.0), status=status))
        return {row.variant: row.speedup for row in write_and_read(tmp_path)}

    assert speedups("ok") == {"fp32": 1.0, "fused": 2.0}
    assert speedups("disturbed") == {"fp32": 1.0, "fused": 2.0}


WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.table import write_table
outputs, number, start = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
run, measurement = Run.decoded(sys.argv[4]), Measurement.decoded(sys.argv[5])
run = replace(run, name=f"{run.name}-{number}")
folder = outputs / "runs" / run.name
run.save(folder)
time.sleep(max(0, start - time.time()))  # all at once
path = replace(measurement, run=run.name).save(folder)
print(path, flush=True)
while True:  # until somebody ends it
    write_table(outputs)
    print("table", flush=True)
    time.sleep(0.01)  # without a pause the same one would have the lock again and again
"""


def write_together(outputs, rounds, seed):
    """Eight writers a round, some killed at a random moment; return how many were."""
    chance = random.Random(seed)
    records = [RUN.to_json(), MEASUREMENT.to_json()]
    killed = 0
    for number in range(rounds):
        start = str(time.time() + 0.5)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(outputs), str(8 * number + k), start, *records],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for k in range(8)
        ]
        doomed = set(chance.sample(range(8), 3))
        for k, writer in enumerate(writers):
            assert writer.stdout.readline().endswith(".json\n")  # measured
            if k not in doomed:
                assert writer.stdout.readline() == "table\n"
        for k in doomed:
            time.sleep(chance.random() * 0.02)
            writers[k].kill()
            killed += 1
        for writer in writers:
            writer.kill()
            writer.communicate()
        yield killed


def assert_whole(outputs, runs):
    with (outputs / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["run"] for row in rows}) == len(rows) == runs
    assert all(row["test_acc"] == "90.0" and None not in row.values() for row in rows)
    lines = (outputs / "results.md").read_text().splitlines()
    assert len(lines) == runs + 2
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_many_writers_some_of_them_killed(rounds, tmp_path, forked):
    for number, _ in enumerate(write_together(tmp_path, rounds, seed=0), 1):
        write_table(tmp_path)
        assert_whole(tmp_path, 8 * number)
    assert not list(tmp_path.glob("*kept*"))
    assert not list(tmp_path.glob(".cifar-lightning-*"))

"""What ships of a study, its tables, and its networks ranked on another machine."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT
from simulated import a_run, benchmark, keep, measured, of_run
from test_results import place

from cifar_lightning.cli import report as report_command
from cifar_lightning.comparison.records import Records
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.run import Run
from cifar_lightning.system.processor import processor

sys.path.append(str(ROOT / "docs"))
import ship
import tables

PUBLISHED = (
    "network,accuracy,epochs,how,source\n"
    "fast,91.0,400,a | b,somebody/fast\nslow,92.5,200,,somebody/slow\n"
)


@pytest.fixture
def outputs(tmp_path):
    """A fast network with two seeds, one that is slow, and one that is only worse."""
    outputs = tmp_path / "outputs"
    fast = [a_run("fast", seed, epochs=7) for seed in (1, 0)]
    slow, worse = a_run("slow", epochs=8), a_run("worse", epochs=9)
    variants = [(fast[0], 1.0), (slow, 2.0), (worse, 3.0)]
    timed = [(of_run(run), truth) for run, truth in variants]
    timed += [(of_run(run, variant="onnx"), truth / 4) for run, truth in variants]
    record = keep(outputs, benchmark(timed, noise=0.001))
    for run, acc in ((fast[0], 86), (fast[1], 87), (slow, 92), (worse, 80)):
        rows = [measured(run, record, acc, variant=variant) for variant in ("fp32", "onnx")]
        folder = place(outputs, run, *rows)
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"large")
    return outputs


def test_what_ships_is_outputs_of_their_own(outputs, tmp_path, call):
    shipped = tmp_path / "docs" / "results"
    shipped.mkdir(parents=True)
    (shipped / "published.csv").write_text(PUBLISHED)
    for _ in range(2):  # again in place of what was there
        ship.ship(outputs, shipped)
    runs = {folder: Run.load(folder) for folder in (shipped / "runs").iterdir()}
    assert len(runs) == 4
    with_weights = {
        (run.id, run.config["seed"])
        for folder, run in runs.items()
        if (folder / "weights.safetensors").exists()
    }
    assert with_weights == {("fast", 0), ("slow", 0)}
    assert not [*shipped.rglob("*.ckpt")]
    for path in [*shipped.rglob("*.json"), *shipped.rglob("*.yaml")]:
        assert str(outputs) not in path.read_text()  # where it lay is the machine's own
    assert (shipped / "published.csv").read_text() == PUBLISHED
    reports = []
    for folder in (outputs, shipped):
        ended = call(report_command.main, f"outputs={folder}", f"to={folder}/report")
        assert ended.status == 0, ended.err
        reports.append((folder / "report" / "report.md").read_text())
    assert reports[0].replace(str(outputs), "") == reports[1].replace(str(shipped), "")
    assert [*(outputs / "report").glob("latency-*.svg")]
    assert not [*(shipped / "report").glob("latency-*.svg")]  # means are no calls
    ended = call(report_command.main, f"outputs={shipped}", "max_ms=1000", "stat=p95")
    assert "There is no row whose p95 is surely below" in ended.out


def test_means_rank_as_the_calls_do(outputs):
    (means,) = Records.read([outputs]).benchmarks.values()
    record = means.whole()
    small = BenchmarkRecord.decoded(ship.with_means_only(record).to_json())
    assert small.means_only
    for first in record.ranked:
        for second in record.ranked:
            before, after = record.difference(first, second), small.difference(first, second)
            assert after.centre == pytest.approx(before.centre)
            assert (after.low, after.high) == pytest.approx((before.low, before.high))


@pytest.mark.parametrize("limit", ["LARGEST", "LARGEST_FILE"])
def test_too_much_does_not_ship(limit, outputs, tmp_path, monkeypatch):
    shipped = tmp_path / "results"
    ship.ship(outputs, shipped)
    before = sorted(shipped.rglob("*"))
    monkeypatch.setattr(ship, limit, 1000)
    with pytest.raises(ValueError, match=" MB"):
        ship.ship(outputs, shipped)
    assert sorted(shipped.rglob("*")) == before


@pytest.fixture
def study(outputs):
    (outputs / "published.csv").write_text(PUBLISHED)
    return tables.Study.read(outputs)


def test_what_to_take_eager_and_with_an_engine(study):
    lines = tables.taken(study).splitlines()[2:5]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == ["at least 85 %", "at least 90 %", "at least 93 %"]
    assert cells[0][1].startswith("fast fp32: 86.50 ± ")
    assert cells[1][2].startswith("slow onnx: 92.00 ± ")
    assert cells[2][1:] == ["none", "none"]
    (benchmark,) = study.records.benchmarks
    assert tables.taken(study).endswith(f"\nTimed in benchmark {benchmark}.\n")


def test_what_to_take_with_further_engines_is_of_a_benchmark_of_its_own(study, tmp_path):
    run = a_run("new")
    record = benchmark([(of_run(run, variant="ncnn"), 0.1)], number=5)
    keep(tmp_path, record)
    place(tmp_path, run, replace(measured(run, record, 93, variant="ncnn"), floor_ms=0.01))
    study = replace(study, engines=Records.read([tmp_path]))
    header, _, *rows, _, told = tables.taken(study).splitlines()
    assert "| with further engines, 1 of the networks " in header
    assert all("| new ncnn: 93.00 ± " in row for row in rows)
    assert told.endswith(f"; with further engines in {record.id}.")
    drawn = tables.engines(study)
    assert f"Benchmark {record.id}." in drawn
    (floor,) = [line for line in drawn.splitlines() if line.startswith("| ncnn ")]
    assert floor.split("|")[-2].strip() == "0.010"


def test_what_was_found_since_stands_among_the_study(study, outputs):
    """With all seeds that were trained, be they timed or not."""
    run, other = (a_run("found", seed, epochs=7) for seed in (0, 1))
    record = benchmark([(of_run(run), 0.1)], number=9)
    found = outputs / "found"
    keep(found, record)
    place(found, replace(run, test_acc=93.5), measured(run, record, 93.5))
    place(found, replace(other, test_acc=94.5))
    study = tables.Study.read(outputs)  # again
    assert tables.taken(study).count("| found fp32: 93.50 ± ") == 3
    assert record.id in tables.taken(study).splitlines()[-1]
    (row,) = [line for line in tables.trained(study).splitlines() if line.startswith("| found")]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert (cells[0], cells[1], cells[3]) == ("2", "7", "94.00")


def test_processors_stand_beside_each_other(study, tmp_path):
    """With what is taken on each; a row that one of them lacks is in no comparison."""
    run = next(one.run for one in study.records.runs if one.run.label == "fast")
    record = benchmark([(of_run(run, variant="fp32"), 0.25)], number=7)
    keep(tmp_path, record)
    there = replace(measured(run, record, 86.5), device="Another CPU", hardware="other")
    place(tmp_path, run, there)
    (theirs,) = study.records.benchmarks.values()
    keep(tmp_path, theirs.whole())  # that of `make rank` holds the study's own, too
    place(tmp_path, run, measured(run, theirs.whole(), 86.5))
    drawn = tables.processors(replace(study, elsewhere=[Records.read([tmp_path])]))
    lines = [[cell.strip() for cell in line.split("|")] for line in drawn.splitlines()]
    assert lines[0][-2] == "Another CPU"
    assert lines[2][1].startswith("at least 85 %")
    assert lines[2][-2].startswith("fast fp32, ")
    assert lines[3][-2] == "none"
    rows = [line for line in lines if len(line) > 2 and line[1].startswith(("fast", "slow"))]
    assert [line[1] for line in rows] == ["fast fp32"]
    assert f"Benchmark {record.id}." in drawn


def test_verdicts_that_the_budget_decides_are_named(study):
    """The fast one is limited, and would be taken for 90 %; the slow one is near enough."""
    told = tables.budget(study)
    assert "| fast" in told
    assert told.count("budget-limited") == 1
    assert r"a \| b" in told
    assert [line.split(":")[0] for line in tables.dependent(study)] == [
        "At least 90 %, PyTorch, eager",
        "At least 90 %, with an engine",
    ]
    assert "fast fp32 has 86.50 % here, but 91 % in somebody/fast and is faster." in told
    near = replace(study, published={"fast": replace(study.published["fast"], accuracy=87.0)})
    assert "budget-limited" not in tables.budget(near)
    assert "No verdict depends on the budget" in tables.budget(near)


def test_fast_presets_have_their_speed_in_the_table(study):
    speeds = {"train_seconds": 450.0, "macs": 1_000_000, "val_acc": 86.0}
    seeds = [
        replace(a_run("fast", seed, epochs=10), **speeds, test_acc=85.0 + seed) for seed in (1, 0)
    ]
    drawn = tables.presets(replace(study, presets=seeds))
    (row,) = [line for line in drawn.splitlines() if "| fast " in line]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    # 6 x 1 million MACs x 450,000 images in 450 s.
    assert cells == ["2", "10", "7.50", "86.00", "85.50", "85.00, 86.00", "1,000", "0.003", "6"]


def test_tables_stand_between_their_marks(study):
    page = "a\n<!-- taken -->\nold\n<!-- end -->\nb\n<!-- trained -->\n<!-- end -->\nc\n"
    text = tables.rewritten(page, study)
    assert text.startswith("a\n<!-- taken -->\n| Test accuracy")
    assert "old" not in text
    assert text.endswith("<!-- end -->\nc\n")
    assert tables.rewritten(text, study) == text
    assert tables.rewritten("without marks\n", study) == "without marks\n"


def test_the_pages_hold_the_tables_of_what_ships():
    pages = [page.read_text() for page in tables.PAGES]
    for name in tables.TABLES:
        assert any(f"<!-- {name} -->\n" in page for page in pages), name
    if (ROOT / "docs" / "results" / "runs").is_dir():
        study = tables.Study.read(ROOT / "docs" / "results")
        old = [
            page.name
            for page in tables.PAGES
            if tables.rewritten(page.read_text(), study) != page.read_text()
        ]
        assert not old, "run `make results`"
        assert (
            sum(
                path.stat().st_size
                for part in ("runs", "benchmarks")
                for path in (ROOT / "docs" / "results" / part).rglob("*")
            )
            <= ship.LARGEST
        )


@pytest.mark.parametrize(
    ("protocol", "kept", "first"),
    [("full", True, True), ("quick", True, True), ("quick", False, False)],
)
def test_this_machines_ranking_comes_first(protocol, kept, first, outputs, call):
    """However many rows another one has, and be it but a look.

    What came without its benchmark was timed on another machine, though of the same processor.
    """
    mine = a_run("mine", epochs=3)
    how = {"protocol": protocol, "device": "Mine", "hardware": "mine"}
    record = benchmark([(of_run(mine), 1.0)], number=30, **how)
    one = measured(mine, keep(outputs, record) if kept else record, acc=85)
    here = replace(one.environment.machine, processor=processor())
    there = replace(here, processor=replace(here.processor, name="another"))
    for path in outputs.glob("runs/*/measurements/*.json"):
        measurement = type(one).read(path)
        elsewhere = replace(measurement.environment, machine=there)
        path.write_text(replace(measurement, environment=elsewhere).to_json())
    environments = replace(one.environment, machine=here)
    place(outputs, mine, replace(one, environment=environments))
    ended = call(report_command.main, f"outputs={outputs}")
    assert ended.status == 0, ended.err
    assert ended.out.lstrip().startswith("Overall answer (Mine on") == first
    assert ended.out.count("Overall answer (Mine on") == 2 * first


def test_make_rank_copies_each_run_once_and_says_what_is_missing(tmp_path):
    """The recipe's own lines, with another interpreter in place of the commands'."""
    for name in ("requirements.lock", "pyproject.toml", "installed"):
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "BIN=bin", "INSTALLED=installed", "rank"]

    def make():
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert "the study's runs are not there yet" in make().stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/echo")
    (tmp_path / "docs" / "results" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "runs" / "a" / "run.json").write_text("theirs")
    ended = make()
    assert ended.returncode == 0, ended.stderr
    assert "run=all variants=[fused,onnx,int8] rerun=false" in ended.stdout
    copy = tmp_path / "outputs" / "rank" / "runs" / "a" / "run.json"
    assert copy.read_text() == "theirs"
    # What a search found is ranked, too.
    (tmp_path / "docs" / "results" / "found" / "runs" / "b").mkdir(parents=True)
    assert make().returncode == 0
    assert {path.name for path in copy.parent.parent.iterdir()} == {"a", "b"}
    copy.write_text("mine")
    assert make().returncode == 0
    assert copy.read_text() == "mine"
    assert [path.name for path in copy.parent.iterdir()] == ["run.json"]

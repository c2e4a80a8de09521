import csv
import errno
import json
import os
import random
import re
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
from plotly.offline import get_plotlyjs
from simulated import a_run, benchmark, entry, keep, leaderboard, measured, of_run
from test_results import place
from torch.utils.tensorboard import SummaryWriter

from cifar_lightning.cli import report as report_command
from cifar_lightning.comparison.columns import COLUMNS
from cifar_lightning.comparison.drawing import Drawing
from cifar_lightning.comparison.tables import SUMMARY, in_order, over_seeds
from cifar_lightning.runs.latency import Relative
from cifar_lightning.system.formatting import relative

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def outputs(tmp_path):
    """Three networks on one device, one of them with two seeds, and one row apart."""
    outputs = tmp_path / "outputs"
    good, rough = a_run("good"), a_run("rough", epochs=9)
    pair = [a_run("pair", seed, epochs=7) for seed in (0, 1)]
    truths = ((good, 1.0), (rough, 3.0), (pair[0], 2.0))
    timed = [(of_run(run), truth) for run, truth in truths]
    record = keep(outputs, benchmark([*timed, (of_run(good, variant="int8"), 0.5)], noise=0.001))
    place(
        outputs,
        good,
        measured(good, record, 90, peak_bytes=9, first_call_ms=3.0),
        measured(good, record, 88, variant="int8"),
    )
    bad = measured(rough, variant="tf32", status="unsupported", reason="needs a GPU")
    place(outputs, rough, measured(rough, record, 70), bad)
    for seed, run in enumerate(pair):
        folder = place(outputs, run, measured(run, record, 80 + seed))
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for step in range(5):
                writer.add_scalar("train/loss", 2.0 - step / 5, step)
                writer.add_scalar("val/acc", step / 5, step)
    return outputs


@pytest.fixture
def undrawn(monkeypatch):
    """Write files without the drawings, which take most of a report's time."""
    monkeypatch.setattr(Drawing, "of", lambda draw: Drawing(draw, "<svg/>", b""))
    monkeypatch.setattr(Drawing, "narrow", "<svg/>")


@pytest.fixture
def reported(call, outputs):
    return lambda *arguments: call(report_command.main, f"outputs={outputs}", *arguments)


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_the_old_report_whole(reported, outputs, monkeypatch):
    assert reported("min_acc=85").status == 0
    folder = outputs / "report"
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = []
    fsync = os.fsync

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = reported("min_acc=70")
    assert ended.status == 1
    assert "no space left" in ended.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert reported("min_acc=70").status == 0
    assert (folder / "index.html").read_bytes() != before["index.html"]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("undrawn")
def test_a_link_out_of_the_outputs_is_not_followed(reported, outputs, tmp_path):
    (tmp_path / "mine").mkdir()
    (outputs / "report").symlink_to(tmp_path / "mine")
    ended = reported("min_acc=85")
    assert ended.status == 2
    assert f"error: {outputs / 'report'}: leads out of {outputs}" in ended.err
    assert not list((tmp_path / "mine").iterdir())
    assert reported("min_acc=85", f"to={tmp_path / 'mine'}").status == 0  # as the user says


def test_everything_is_written_and_said(reported, outputs):
    ended = reported("baseline=good", "min_acc=85")
    assert (ended.status, ended.err) == (0, "")
    assert "Take good int8 (88.00 ± " in ended.out
    assert "rough fp32 is dominated: " in ended.out
    assert (
        "- pair fp32 [2 changes at once]: model.name good → pair; epochs 3 → 7. Accuracy -9.50 "
        in ended.out
    )
    ending = "Benchmark 2026-01-01T00-00-00-abcd ended by its rule after 100 rounds. Its noise"
    assert f"{ending} floor: the reference's double" in ended.out
    again = "python -m cifar_lightning.measure run=good 'variants=[int8]' device=cpu"
    assert f"was not recorded)` (commit abc, torch 2), then `{again}` (commit abc" in ended.out
    assert "rough tf32 on A | CPU is unsupported: needs a GPU" in ended.out
    folder = outputs / "report"
    assert str(folder / "index.html") in ended.out
    names = {path.name.partition("-")[0].partition(".")[0] for path in folder.glob("[!.]*")}
    assert names == {
        "accuracy", "latency", "curves", "classes", "confusion", "index", "report", "table",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".svg").read_text().startswith("<?xml")
    assert (folder / "report.md").read_text() in ended.out
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["id"] for row in rows] == ["good", "good", "pair", "rough"]
    (pair,) = [row for row in rows if row["id"] == "pair"]
    assert (float(pair["test_acc"]), pair["seeds"]) == (80.5, "2")
    assert float(pair["baseline_speedup"]) == pytest.approx(0.5, rel=0.01)
    assert float(pair["slower_pct"]) == pytest.approx(300, rel=0.01)
    assert float(pair["slower_low_pct"]) < 300 < float(pair["slower_high_pct"])


@pytest.mark.usefixtures("undrawn")
def test_a_table_for_a_thesis(reported, outputs):
    """Each number of threads is a table; its caption says how it came about."""
    assert reported().status == 0
    tex = (outputs / "report" / "table.tex").read_text()
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 1
    assert r"good & fp32" in " ".join(tex.split())
    assert r"\usepackage" not in tex
    caption = tex.partition(r"\caption{")[2].partition("\n")[0]
    said = ("full protocol (version", "interleaved rounds", "torch 2", "commit", "seeds 0, 1")
    for text in (*said, "Trained on"):
        assert text in caption, text
    cells = re.findall(r"\d=?\$\^\{(.*?)\}\$ *\\\\", tex)
    raised = {sign for cell in cells for sign in cell.split(",")}
    explained = re.findall(r"\$\^\{(\w)\}\$([a-z ]+)", caption)
    assert raised == {sign for sign, _ in explained}
    assert "front" in {mark for _, mark in explained}
    told = (outputs / "report" / "report.md").read_text()
    assert "Measured with commit" in told
    rows = list(csv.DictReader((outputs / "report" / "table.csv").open()))
    assert all("torch 2" in row["measured_with"] for row in rows)
    assert all("commit" in row["trained_with"] for row in rows)


@pytest.mark.usefixtures("undrawn")
def test_the_table_for_people_fits_into_a_terminal(reported, outputs):
    """Its ± is the verdict's; every further column is on the page and in table.csv."""
    ended = reported("min_acc=85")
    lines = [line for line in ended.out.splitlines() if line.startswith("| ")]
    assert len(lines) == 5  # a header and four rows
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].count("|") <= 12
    assert max(map(len, lines)) <= 170
    taken = re.search(r"Take good int8 \((88.00 ± \d\.\d\d) %", ended.out)
    assert taken is not None
    (row,) = [line for line in lines if "good" in line and "int8" in line]
    assert f" {taken.group(1)} " in row
    assert row.endswith("| 1, front    |")
    assert "- good int8: taken\n" in ended.out
    assert re.search(r"- good fp32: \+\d+\.\d \(\+\d+\.\d to \+\d+\.\d\)\n", ended.out)
    page = (outputs / "report" / "index.html").read_text()
    for header in ("Peak (MB)", "First call (ms)", "Lat. min (ms)", "MACs (M)", "Std over seeds"):
        assert f">{header}</button>" in page


@pytest.mark.parametrize(
    "columns", [COLUMNS.values(), SUMMARY, over_seeds({"run": {"optim.lr": "0.1"}})]
)
def test_no_two_columns_have_one_name(columns):
    headers = [column.header for column in columns if column.header]
    assert len({*headers}) == len(headers)


def test_the_page_needs_nothing_else_and_trusts_no_name(reported, outputs):
    run = a_run("evil", epochs=8)
    run = replace(run, config=run.config | {"data": run.config["data"] | {"name": EVIL}})
    place(outputs, run, measured(run, device=EVIL, confusion=None))
    assert reported().status == 0
    page = (outputs / "report" / "index.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    for part in ('src="http', "src='http", 'href="http', "@import", "url(http"):
        assert part not in page.replace(get_plotlyjs(), "")


def test_the_same_runs_give_the_same_report(reported, outputs):
    def written():
        folder = outputs / "report"
        # Plotly numbers nothing, matplotlib and the tables take no clock.
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    reported()
    first = written()
    reported()
    assert written() == first


@pytest.mark.usefixtures("undrawn")
def test_a_long_report_is_summed_up_in_a_terminal(reported, outputs, monkeypatch):
    whole = reported("min_acc=85").out
    monkeypatch.setattr(report_command, "MOST_LINES", 20)
    short = reported("min_acc=85").out
    assert len(short) < 2 / 3 * len(whole)
    assert "Take good int8 (88.00 ± " in short
    assert "| good " in short
    assert "rough tf32 on A | CPU is unsupported: needs a GPU" in short
    assert not re.search(r"cifar_lightning\.measure run=good|is dominated", short)
    assert f"commands for each row: {outputs / 'report' / 'report.md'}\n" in short
    assert "rough fp32 is dominated: " in (outputs / "report" / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_several_outputs_are_one_report(call, outputs, tmp_path):
    run = a_run("far")
    place(tmp_path / "other", run, measured(run, device="Another CPU", hardware="x"))
    ended = call(
        report_command.main, f"outputs={outputs},{tmp_path / 'other'}", f"to={tmp_path / 'to'}"
    )
    assert "## A | CPU" in ended.out
    assert "## Another CPU" in ended.out
    # One overall answer first: that of the leaderboard with most rows.
    assert ended.out.index("Overall answer (A | CPU on digits, full protocol, 1 thread): Take") < (
        ended.out.index("## A | CPU")
    )
    assert "Overall answer (A | CPU on " in (tmp_path / "to" / "index.html").read_text()
    assert (tmp_path / "to" / "index.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_commands_say_where_the_runs_are(call, outputs, tmp_path, monkeypatch):
    """As the report was told; a path of this machine is not passed on, only printed."""
    here, other = outputs.rename(tmp_path / "my outputs"), tmp_path / "other"
    run = a_run("far", epochs=4)
    place(other, run, measured(run, device="Another CPU", hardware="x"))
    folder = place(here, near := a_run("near", epochs=5), measured(near, acc=95, truth=0.5))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("[model=resnet8, outputs=elsewhere]")
    told = "the commands need outputs="
    for said, where in (("my outputs", tmp_path), (here, tmp_path), (here, tmp_path.parent)):
        monkeypatch.chdir(where)
        ended = call(report_command.main, f"outputs=[{said},{other}]", f"to={tmp_path / 'to'}")
        assert ended.status == 0, ended.err
        shown = relative(here)
        assert f"python train.py model=resnet8 seed=0 'outputs='\"'\"'{shown}" in ended.out
        assert (
            f" run=near 'variants=[fp32]' device=cpu 'outputs='\"'\"'{shown}'\"'\"''`" in ended.out
        )
        assert f" run=far 'variants=[fp32]' device=cpu outputs={relative(other)}`" in ended.out
        assert told not in ended.out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ended = call(report_command.main, f"outputs=[{here},{other}]", f"to={tmp_path / 'to'}")
    assert f"{told}{here} or outputs={other}\n" in ended.out
    assert str(tmp_path) not in (tmp_path / "to" / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_real_data_come_before_toys(call, outputs, tmp_path):
    """Each data set has training curves of its own, and the overall answer is about real images."""
    real = a_run("real", fingerprint="a" * 16)
    data = real.config["data"] | {"name": "<photos>"}
    real = replace(real, config=real.config | {"data": data})
    place(tmp_path / "real", real, measured(real, acc=60))
    pair = outputs / "runs" / a_run("pair", epochs=7).name / "tensorboard"
    shutil.copytree(pair, tmp_path / "real" / "runs" / real.name / "tensorboard")
    to = tmp_path / "to"
    ended = call(report_command.main, f"outputs=[{outputs},{tmp_path / 'real'}]", f"to={to}")
    assert ended.out.startswith("\nOverall answer (A | CPU on &lt;photos>, full protocol"), ended
    page = (to / "index.html").read_text()
    assert page.index("Training on &lt;photos&gt;") < page.index("Training on digits")
    assert {path.name for path in to.glob("curves*.svg")} == {"curves.svg", "curves-ffffffff.svg"}


@pytest.mark.usefixtures("undrawn")
def test_the_most_accurate_within_a_latency(reported, outputs):
    out = reported("max_ms=1000", "stat=p95").out
    assert "Take good fp32 (90.00 ± " in out
    assert "of 4 rows whose p95 is surely below 1000 ms it is the most accurate" in out
    assert "There is no row whose mean is surely below 0.001 ms" in reported("max_ms=0.001").out


@pytest.mark.usefixtures("undrawn")
def test_a_disturbed_row_keeps_its_place(call, tmp_path):
    run, other = a_run("a"), a_run("b", epochs=9)
    timed = [(of_run(run), 1.0), (of_run(other), 2.0)]
    record = keep(tmp_path, benchmark(timed, preempted=True))
    for one in (run, other):
        place(tmp_path, one, measured(one, record))
    ended = call(
        report_command.main,
        f"outputs={tmp_path}", "baseline=b", "detail=a", "filter=id=a", "min_acc=50",
    )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    assert "| 1, front, disturbed |" in ended.out
    assert {"classes.png", "confusion.png"} <= {p.name for p in (tmp_path / "report").iterdir()}


@pytest.mark.usefixtures("undrawn")
def test_filters_and_sorting(reported):
    out = reported("filter=variant=int8").out
    assert "good int8" in out
    assert "| rough" not in out
    out = reported("filter=test_acc>=75,id!=good").out
    assert "| pair" in out
    assert "| good" not in out
    out = reported("sort=-test_acc").out
    assert out.index("| rough") < out.index("| good")


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_sorts_best_first(name):
    found = leaderboard(entry("a", 90, 1.0), entry("b", 80, 2.0, epochs=9), entry("c", 85, 0.5))
    column = COLUMNS[name]
    values = [column.value(found, one) for one in in_order(found, name)]
    texts = [value for value in values if isinstance(value, str | bool)]
    assert bool(texts) != column.numeric
    assert values == sorted(values, key=lambda v: (v is None, v), reverse=column.highest)
    assert [column.value(found, one) for one in in_order(found, f"-{name}")] == values[::-1]


def test_every_run_of_outputs_is_reported_as_it_is(finished_run, call, tmp_path):
    ended = call(report_command.main, f"outputs={finished_run}", f"to={tmp_path}", "min_acc=0")
    assert ended.status == 0, ended.err
    assert "tiny fp32" in ended.out  # ranked, or apart if the machine was busy
    assert (tmp_path / "curves.png").exists() or "disturbed" in ended.out


# --- Mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sort=lat_mean", "error: sort=lat_mean: no such column; did you mean lat_mean_ms?"),
        ("filter=tset_acc=3", "error: filter=tset_acc=3: no such column; did you mean test_acc?"),
        ("filter=baseline_speedup>=2", "error: filter=baseline_speedup>=2: no such column"),
        ("filter=variant", "error: filter=variant: must be column=value"),
        ("filter=variant>=3", "error: filter=variant>=3: must be variant=..."),
        ("filter=test_acc>=much", "error: filter=test_acc>=much: must be test_acc>= and a num"),
        ("filter=id=nobody", "error: filter=id=nobody: must be what at least one row"),
        ("baseline=god", "error: baseline=god: no such row; did you mean good?"),
        ("detail=god", "error: detail=god: no such row; did you mean good?"),
        ("detail=net", "error: detail=net: must be one of good, pair, rough: it means them all"),
        ("min_acc=101", "error: min_acc=101.0: must be 0 to 100, percent"),
        ("min_acc=high", "error: min_acc=high: must be a number"),
        ("max_ms=0", "error: max_ms=0.0: must be a number above 0"),
        ("stat=p99", "error: stat=p99: must be mean, p95"),
        ("stat=p95", "error: stat=p95: must be mean where no max_ms is asked for"),
        ("outputs=nowhere", "error: outputs=nowhere: there is no folder runs in it"),
        ("to={outputs}/results.csv/report", "error: to={outputs}/results.csv/report: Not a dir"),
        ("mni_acc=3", "error: mni_acc: no such key; did you mean min_acc?"),
        ("-m", "error: -m: report takes no sweep"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(reported, outputs, argument, message):
    (outputs / "results.csv").write_text("")
    ended = reported(argument.format(outputs=outputs))
    assert ended.status == 2
    assert ended.err.startswith(message.format(outputs=outputs))
    assert ended.err.count("\n") == 1
    assert not (outputs / "report").exists()


def test_only_keys_of_the_report_are_offered(reported):
    allowed = reported("mni_acc=3").err.partition("allowed: ")[2].strip().split(", ")
    assert allowed == [
        "baseline", "detail", "filter", "max_ms", "min_acc", "outputs", "sort", "stat", "to",
    ]  # fmt: skip


def test_a_filter_that_fits_nothing(call, tmp_path):
    run = a_run("a")
    place(tmp_path, run, measured(run))
    ended = call(report_command.main, f"outputs={tmp_path}", "filter=device=A (R) CPU @ 2.20GHz")
    assert ended.err == (
        "error: filter=device=A (R) CPU @ 2.20GHz: must be what at least one row fulfils\n"
    )


def test_awkward_names(call, tmp_path):
    run = a_run("27929e10")
    run = replace(run, config=run.config | {"data": run.config["data"] | {"name": "my$set^$"}})
    place(tmp_path, run, measured(run, device="Intel(R) CPU @ 2.20GHz"))
    (tmp_path / "runs" / ".DS_Store").write_text("")
    ended = call(
        report_command.main,
        f"outputs={tmp_path}",
        "baseline=27929e10",
        "detail=27929e10",
        "filter=device=Intel(R) CPU @ 2.20GHz",
    )
    assert (ended.status, ended.err) == (0, "")
    assert "my$set^$" in (tmp_path / "report" / "index.html").read_text()


def test_rows_of_earlier_versions_and_without_validation(call, tmp_path):
    old, last = a_run("old"), replace(a_run("last", epochs=9), val_acc=None)
    place(tmp_path, old, measured(old, confusion=None, size_bytes=None))
    place(tmp_path, last, measured(last, relative=Relative(1.0)))
    ended = call(report_command.main, f"outputs={tmp_path}", "min_acc=50")
    assert (ended.status, ended.err) == (0, "")
    assert "| old " in ended.out
    assert "inf" not in (tmp_path / "report" / "table.csv").read_text()
    ended = call(report_command.main, f"outputs={tmp_path}", "detail=old")
    assert ended.err == (
        "error: detail=old: its confusion matrix was not recorded; measure again\n"
    )


@pytest.mark.usefixtures("undrawn")
def test_plots_of_rows_that_are_gone_are_removed(reported, outputs):
    sold = a_run("sold", epochs=8)
    folder = place(outputs, sold, measured(sold, device="Sold", hardware="sold"))
    reported()
    stale = list((outputs / "report").glob("accuracy-latency-sold-*"))
    assert len(stale) == 2
    stale.pop().write_text("changed")
    mine = [outputs / "report" / name for name in ("notes.png", "latency-mine.png")]
    for path in mine:
        path.write_text("")
    shutil.rmtree(folder)
    reported()
    assert not stale[0].exists()
    assert all(path.exists() for path in mine)
    assert len(list((outputs / "report").glob("*-ffffffff*.png"))) in (2, 3)
    assert [path.read_text() for path in (outputs / "report").glob("accuracy-latency-sold-*")] == [
        "changed"
    ]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("earlier", [False, True])
def test_what_somebody_else_wrote_is_kept(earlier, reported, outputs, tmp_path):
    to = tmp_path / "site"
    to.mkdir()
    if earlier:
        reported(f"to={to}")
    names = ("index.html", "report.md", "table.csv", "curves.png")
    for name in names:
        (to / name).write_text(f"my {name}")
    for _ in range(2):
        ended = reported(f"to={to}")
        assert ended.status == 0
    for path in map(to.joinpath, names):
        kept = path.with_name(f"{path.stem}.kept-1{path.suffix}")
        assert kept.read_text() == f"my {path.name}"
        assert path.read_bytes() != f"my {path.name}".encode()
    assert len(list(to.glob("*kept*"))) == len(names)


def test_no_finished_run(call, tmp_path):
    (tmp_path / "runs").mkdir()
    ended = call(report_command.main, f"outputs={tmp_path}")
    assert (ended.status, ended.err) == (2, f"error: outputs={tmp_path}: no finished run in it\n")


@pytest.mark.usefixtures("undrawn")
def test_damaged_files_are_named_skipped_and_counted(reported, outputs):
    folder = outputs / "runs" / a_run("rough", epochs=9).name
    (folder / "measurements" / "fp32@a-cpu-t1-full.json").write_text("{")
    run = a_run("good")
    place(outputs, run, measured(run, variant="odd", latency={}))
    shutil.copytree(folder, outputs / "runs" / "torn")
    (outputs / "runs" / "torn" / "run.json").write_text(json.dumps({"name": "torn"}))
    ended = reported()
    assert ended.status == 0
    assert ended.out.count("is damaged and left out") == 3
    assert ended.out.splitlines()[-1].endswith("; 3 damaged, left out")
    assert "Take good" in ended.out


def test_only_damaged_files(call, tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    ended = call(report_command.main, f"outputs={tmp_path}")
    assert ended.status == 2
    assert ended.err.endswith(": nothing that can be read\n")


# --- In a browser ---------------------------------------------------------------------------


@pytest.fixture
def browser():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver (Debian's chromium and chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


# What reaches out of the window or of its drawing; a table may be scrolled on a phone.
CUT = """
const found = [], wide = innerWidth > 1000, page = document.documentElement;
if (page.scrollWidth > innerWidth) found.push("the page");
for (const box of document.querySelectorAll(".scroll, figure.drawing")) {
  const table = box.classList.contains("scroll"), before = box.scrollLeft;
  if (box.scrollWidth > box.clientWidth && (wide || !table)) found.push(box.className);
  box.scrollLeft = 500;
  for (const cell of box.querySelectorAll("td:first-child"))
    if (cell.getBoundingClientRect().left < 0) found.push("the first column");
  box.scrollLeft = before;
}
for (const text of document.querySelectorAll("svg text")) {
  const inner = text.getBoundingClientRect();
  const outer = text.closest("svg").parentElement.getBoundingClientRect();
  if (inner.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1))
    found.push(text.textContent);
}
return found.join(", ");
"""
SMALLEST_LETTERS = """
const sizes = [];
for (const element of document.querySelectorAll("body *")) {
  const told = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!told || !element.getClientRects().length || element.closest("script")) continue;
  const scale = element.getScreenCTM ? element.getScreenCTM().a : 1;
  const turned = element.getScreenCTM ? Math.abs(element.getScreenCTM().b) : 0;
  sizes.push(parseFloat(getComputedStyle(element).fontSize) * Math.hypot(scale, turned));
}
return Math.min(...sizes);
"""


def test_the_page_works_in_a_browser(reported, outputs, browser):
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    reported("baseline=good")
    browser.get((outputs / "report" / "index.html").as_uri())

    def column(number):
        cells = browser.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({number})")
        return [cell.text for cell in cells]

    assert column(1) == ["good", "good", "pair", "rough"]
    header = browser.find_element(By.XPATH, "//th[.='Acc. (%)']/button")
    header.click()
    assert column(1) == ["rough", "pair", "good", "good"]
    header.click()
    assert column(1) == ["good", "good", "pair", "rough"]
    assert column(3)[0] == "fp32"  # the more accurate one of the two

    def headers():
        shown = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "th button")]
        return [text for text in shown if text]

    first = headers()
    browser.find_element(By.CSS_SELECTOR, "input.all").click()
    everything = headers()
    assert len(everything) == len({*everything}) > len(first) > 10
    browser.find_element(By.CSS_SELECTOR, "input.all").click()
    assert headers() == first
    names = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".annotation-text")]
    assert names == ["good int8", "good fp32"]  # the front, the fastest first
    legend = browser.find_element(By.CSS_SELECTOR, "figcaption").text.split()
    assert legend == ["net", "fp32", "int8", "Pareto", "front"]

    plot = browser.find_element(By.CSS_SELECTOR, ".plotly-graph-div")
    browser.execute_script("arguments[0].scrollIntoView()", plot)
    point = browser.find_element(By.CSS_SELECTOR, ".plotly-graph-div .points path.point")
    ActionChains(browser).move_to_element(point).perform()
    # The first point is the first measurement's; on its way the pointer may meet another.
    WebDriverWait(browser, 10).until(
        lambda b: "good fp32" in b.find_element(By.CSS_SELECTOR, ".hoverlayer").text
    )

    for size in (1400, 400):
        screen = {"width": size, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        # Plots follow the window a moment later.
        with suppress(TimeoutException):
            WebDriverWait(browser, 10).until(lambda b: not b.execute_script(CUT))
        assert not browser.execute_script(CUT)
        assert browser.execute_script(SMALLEST_LETTERS) >= 11
    ink = "return getComputedStyle(document.querySelector('figure.drawing svg text')).fill"
    colors = set()
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        colors.add(browser.execute_script(ink))
    assert len(colors) == 2
    assert browser.get_log("browser") == []


# --- Many rows ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(made_once):
    """A hundred networks, the larger the slower, the more accurate: most of them are dominated."""

    def fill(outputs):
        chance = random.Random(0)
        runs = [a_run(f"n{number}", epochs=3 + number) for number in range(100)]
        truths = [0.5 + number / 25 for number in range(100)]
        accuracies = [50 + 15 * truth**0.5 - 12 * chance.random() for truth in truths]
        for part in range(0, 100, 20):
            here = slice(part, part + 20)
            timed = [
                (of_run(run), truth) for run, truth in zip(runs[here], truths[here], strict=True)
            ]
            record = keep(outputs, benchmark(timed, number=part, rounds=40, noise=0.001))
            for run, acc in zip(runs[here], accuracies[here], strict=True):
                place(outputs, run, measured(run, record, acc))

    return made_once("many-rows", fill)


@pytest.fixture
def report_of_many(many, tmp_path, call):
    ended = call(report_command.main, f"outputs={many}", f"to={tmp_path}", "min_acc=70")
    assert ended.status == 0, ended.err
    return tmp_path


def test_of_many_rows_the_front_and_the_nearest_are_listed(report_of_many):
    """What lacks most beside what is not slower is only in the table of all."""
    with (report_of_many / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 100
    text = (report_of_many / "report.md").read_text()
    assert "Listed are the 40 rows" in text
    assert "60 more are in the plot" in text
    table = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| n")]
    assert len(table) == 40
    best, lacking = 0.0, {}
    for row in sorted(rows, key=lambda row: float(row["lat_rel"])):
        best = max(best, float(row["test_acc"]))
        lacking[row["id"]] = best - float(row["test_acc"])
    assert {name for name, points in lacking.items() if points == 0} <= {*table}
    taken = {"n0"} | {row["id"] for row in rows if row["slower_pct"] == "0.0"}
    nearest = sorted(lacking.values())
    assert all(lacking[name] <= nearest[40] for name in {*table} - taken)
    assert text.count(" is dominated: ") < 40
    assert text.count("`python train.py") == 40
    assert (report_of_many / "table.tex").read_text().count(r"\\") < 60


def test_of_many_rows_few_are_named_in_plots(report_of_many):
    (svg,) = report_of_many.glob("accuracy-latency-*.svg")
    names = re.findall(r">(n\d+ fp32)<", svg.read_text())
    assert 2 <= len(names) <= 13
    (svg,) = report_of_many.glob("latency-*.svg")
    assert 2 <= len(re.findall(r">(n\d+ fp32)<", svg.read_text())) <= 14


def test_many_rows_are_filtered_and_paged_in_a_browser(report_of_many, browser):
    from selenium.webdriver.common.by import By

    browser.get((report_of_many / "index.html").as_uri())

    def shown():
        rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr:not([hidden]) td:first-child")
        return [row.text for row in rows]

    def told():
        return browser.find_element(By.CSS_SELECTOR, ".find output").text

    find = browser.find_element(By.CSS_SELECTOR, ".find [type=search]")

    def search(text):
        find.clear()
        find.send_keys(text or " ")
        return shown()

    assert (len(shown()), told()) == (40, "1 to 40 of 40")  # those that are listed
    browser.find_element(By.CSS_SELECTOR, ".find [type=checkbox]").click()
    first = shown()
    assert (len(first), told()) == (50, "1 to 50 of 100")
    back, forth = browser.find_elements(By.CSS_SELECTOR, ".find button")
    assert not back.is_enabled()
    forth.click()
    assert (len(shown()), told()) == (50, "51 to 100 of 100")
    assert not {*first} & {*shown()}
    assert not forth.is_enabled()
    assert search("n77") == ["n77"]
    assert search("n77 onnx") == []
    assert told() == "none"
    fast = search("rellatency<1.5 acc>=60")
    assert 0 < len(fast) < 40
    assert all(0.5 + int(name[1:]) / 25 < 1.55 for name in fast)
    search("")
    browser.find_element(By.XPATH, "//th[.='Acc. (%)']/button").click()
    header = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "th")]
    cells = browser.find_elements(
        By.CSS_SELECTOR, f"tbody tr:not([hidden]) td:nth-child({header.index('Acc. (%)') + 1})"
    )
    accuracies = [float(cell.text.split()[0]) for cell in cells]
    assert len(accuracies) == 50
    assert accuracies == sorted(accuracies)
    assert browser.get_log("browser") == []

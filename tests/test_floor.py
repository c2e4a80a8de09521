"""What a call takes by itself: timed beside what is ranked, and in no ranking."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from simulated import NEED, a_run, benchmark, candidate, measured, of_run
from test_results import place

from cifar_lightning.benchmark.candidates import of_network
from cifar_lightning.benchmark.floors import floors
from cifar_lightning.benchmark.rounds import rounds_needed
from cifar_lightning.benchmark.summary import summary
from cifar_lightning.comparison import scatter
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.floors import Floor
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.scatter import accuracy_latency
from cifar_lightning.comparison.section import Section
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.runs.candidate import floor_of
from cifar_lightning.runs.results import RunResults, rows_of


def floor(variant="fp32", threads=1):
    return candidate("floor", {"num_classes": 10}, variant, threads, "floor")


@pytest.fixture
def record():
    timed = [(candidate("a"), 1.0), (candidate("b", variant="fused+onnx"), 0.2)]
    timed += [(candidate("a", threads=2), 0.8)]
    return benchmark([*timed, (floor(), 0.03), (floor("onnx"), 0.01)], noise=0.001, drift=0)


def test_there_is_one_for_each_engine_and_number_of_threads():
    asked = [
        of_network("resnet8", "fused", 1),
        of_network("mobilenetv3", "fp32", 1),
        of_network("mobilenetv3", "fused+onnx", 1),
        of_network("mobilenetv3", "fp32", 2),
        of_network("resnet8", "bf16", 1, "check"),
    ]
    made = floors([[one] for one in asked])
    assert [(one.candidate.variant, one.candidate.threads) for one in made] == [
        ("fp32", 1),
        ("onnx", 1),
        ("fp32", 2),
    ]
    network = made[0].build()
    assert sum(parameter.numel() for parameter in network.parameters()) == 40
    images = torch.randn(2, 3, 32, 32)
    expected = torch.nn.functional.linear(images.mean((2, 3)), *network[2].parameters())
    torch.testing.assert_close(network(images), expected)
    assert torch.equal(network(images), made[1].build()(images))


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [("fp32", "fp32"), ("fused", "fp32"), ("fused+bf16+onnx", "bf16+onnx"), ("onnx", "onnx")],
)
def test_it_has_no_batchnorms_to_fold(variant, wanted):
    assert floor_of(variant) == wanted


def test_it_is_in_no_ranking(record):
    assert record.ranked == [0, 1, 2]
    assert record.floors == [3, 4]
    assert 3 not in record.rivals(0)
    assert record.floor_ms(0) == pytest.approx(0.03, rel=0.01)
    assert record.floor_ms(1) == pytest.approx(0.01, rel=0.01)
    assert record.floor_ms(2) is None  # of two threads there is none
    lines = [line for line in summary(record).splitlines() if "| floor " in line]
    assert len(lines) == 2
    assert all(line.startswith("|      - |") for line in lines)
    assert all("what a call takes by itself" in line for line in lines)


def test_nothing_waits_for_it_to_be_certain():
    protocol = PROTOCOLS["full"]
    steady, wild = [1.0, 1.001] * 150, [0.01, 0.1] * 150
    asked = rounds_needed([steady, wild], [9999, 9999], 0, protocol, exempt=[1])
    assert asked <= 300 < rounds_needed([steady, wild], [9999, 9999], 0, protocol)


def test_rows_and_report_show_it(tmp_path):
    run = a_run("good")
    timed = [(of_run(run), 1.0), (of_run(run, variant="onnx"), 0.2)]
    record = benchmark([*timed, (floor(), 0.03), (floor("onnx"), 0.01)], noise=0.001, drift=0)
    ones = [
        measured(run, record, 90, variant=record.candidates[number].variant, floor_ms=ms)
        for number, ms in ((0, 0.03), (1, 0.01))
    ]
    folder = place(tmp_path, run, *ones)
    assert [row.floor_ms for row in rows_of(folder)] == [0.03, 0.01]
    found = compare(Records([RunResults.read(folder)], {record.id: record}), NEED)
    (leaderboard,) = found.leaderboards
    assert {entry.variant for entry in leaderboard.entries} == {"fp32", "onnx"}
    marks = Marks.of(leaderboard.entries)
    notes = " ".join(Section.of(leaderboard, "lat_rel", NEED, marks).notes)
    assert "what a call takes by itself with hardly any network: " in notes
    assert notes.count("fp32 0.030 ms") == notes.count("onnx 0.010 ms") == 1
    (axes,) = accuracy_latency(leaderboard, 1, NEED, marks).axes
    assert "of which a call by itself: fp32 0.03" in axes.get_xlabel()


def test_the_floors_of_many_engines_stay_within_the_plot(monkeypatch):
    many = [Floor(f"engine_{number}", 1.0, 0.012) for number in range(20)]
    monkeypatch.setattr(scatter, "floors", lambda entries: many)
    figure = Figure(figsize=(6.4, 4))
    axes = figure.add_subplot()
    axes.set_xlabel("\n".join(scatter._floors([], axes)))
    box = axes.xaxis.label.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert box.width < figure.bbox.width
    assert all(one.name in axes.get_xlabel() for one in many)

"""The hundred benchmarks of `make bench-latency`, with pretended ones."""

import json
import random
from dataclasses import asdict

import pytest

from cifar_lightning.system.processor import processor
from perf import ranking
from perf.ranking_goals import (
    BENCHMARKS,
    EAGER,
    EXTRA,
    ONNX,
    Found,
    One,
    counted,
    next_operations,
    read,
    tables,
)

TWO, THREE = EXTRA


class Machine:
    """Pretends to benchmark: an operation costs so much, in percent, and all but pilots err."""

    def __init__(self, costs=0.125, noise=0.3, apart=(), missed=()):
        self.costs, self.noise, self.apart, self.missed = costs, noise, apart, missed
        self.made = []

    def benchmark(self, number, busy, operations):
        self.made.append((number, busy, operations))
        chance = random.Random(f"{number} {operations}")

        def found(count, wrong):
            error = 0 if "pilot" in operations else chance.gauss(0, self.noise)
            percent = self.costs * count + error
            return Found(percent, 0.5, wrong if count == 0 else not wrong, count > 0 and not wrong)

        names = ("a fp32", "b fp32", "a onnx", "b onnx", *operations)
        return One(
            number=number,
            busy=busy,
            started=f"2026-01-01T00:{len(self.made) // 60:02}:{len(self.made) % 60:02}+00:00",
            processor=processor().title,
            operations=operations,
            rounds=240,
            ended="converged",
            seconds=1.0,
            noise_floor_percent=0.0,
            relative={name: [1.0, 1.01, 1.02, 1.5] for name in names},
            pairs={name: found(0, number in self.apart) for name in (EAGER, ONNX)}
            | {name: found(count, number in self.missed) for name, count in operations.items()},
        )


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the program on a machine, in this process; return what it wrote and told."""

    def of(machine, *arguments):
        monkeypatch.setattr(ranking, "benchmark", machine.benchmark)
        monkeypatch.setattr(ranking, "fresh", lambda *one: ranking.main([*one]))
        capsys.readouterr()
        ranking.main([f"folder={tmp_path}", *arguments])
        return capsys.readouterr()

    return of


@pytest.fixture
def folder(tmp_path):
    return tmp_path / processor().slug


def goals(text):
    """Read what is said of each goal: what was seen, and whether that is enough."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    told = [row for row in rows if len(row) == 4 and row[3].startswith(("yes", "no"))]
    return {(pair, goal.split()[0]): rest for pair, goal, *rest in told}


def operations_of(folder):
    return [one.operations for one in read(folder)]


def test_pilots_find_how_many_operations_cost_as_much_as_they_should(run, folder):
    machine = Machine(noise=0)
    run(machine, "benchmarks=1")
    assert machine.made == [
        *((number, False, {"pilot": 40}) for number in range(3)),
        (1, True, {TWO: 16, THREE: 24}),
    ]
    # They are known from then on, also where no benchmark came to its end.
    (folder / "001.json").unlink()
    run(machine, "benchmarks=1")
    assert [number for number, *_ in machine.made] == [0, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("percent", "operations"), [(5, 24), (2, 60), (0.5, 80), (-1, 80), (9e9, 1)]
)
def test_operations_are_rescaled_in_proportion_within_bounds(percent, operations):
    """A pilot that noise has turned asks for no million of them, nor for none."""
    assert ranking.rescaled(40, percent, 3.0) == operations


def test_a_few_benchmarks_make_a_table_that_says_so(run, folder):
    out, err = run(Machine(apart={3}, missed={4, 5, 6}), "benchmarks=7")
    assert "7 of 100 benchmarks, so nothing is proved yet" in out
    assert err.splitlines()[-1] == "7 of 7"
    said = goals(out)
    assert said[EAGER, "told"] == said[ONNX, "told"] == ["1 of 7", "yes so far"]
    assert said[f"{TWO} (16 operations)", "found"] == ["4 of 7", "yes so far"]
    # Of 100, 98 can't be found any more.
    assert said[f"{THREE} (24 operations)", "found"] == ["4 of 7", "no"]
    seen, met = said[f"{THREE} (24 operations)", "costs"]
    assert seen.startswith(("2.", "3."))
    assert " ± 0.1" in seen
    assert met == "yes so far"
    assert "costs 2.7 to 3.3 % more on average" in out
    assert f"| {EAGER} | quiet | 3 |" in out
    assert f"| {EAGER} | beside a burner | 4 |" in out
    assert "Three fresh processes, 3 times: equal networks are in each within 3 % in 3" in out


@pytest.mark.parametrize("benchmarks", [1, 2])
def test_the_first_benchmarks_have_a_table(benchmarks, run):
    assert f"{benchmarks} of 100 benchmarks" in run(Machine(), f"benchmarks={benchmarks}").out


def test_a_hundred_meet_the_goals_or_do_not(run):
    out, _ = run(Machine(apart={9, 10, 11}, missed={1, 2, 3}))
    assert "100 of 100 benchmarks\n" in out
    said = goals(out)
    assert said[EAGER, "told"] == ["3 of 100", "yes"]
    assert said[f"{TWO} (16 operations)", "found"] == ["97 of 100", "yes"]
    assert said[f"{THREE} (24 operations)", "found"] == ["97 of 100", "no"]
    assert {met for (_, what), (_, met) in said.items() if what == "costs"} == {"yes"}


def test_the_same_command_goes_on(run, folder):
    whole, parts = Machine(), Machine()
    run(parts, "benchmarks=3")
    (folder / "002.json").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run(parts, "benchmarks=5")
    assert [number for number, *_ in parts.made[3:]] == [1, 2, 3, 2, 4, 5]
    assert before.items() <= {path: path.read_bytes() for path in folder.iterdir()}.items()
    run(parts, "benchmarks=5")
    assert len(parts.made) == 3 + 6
    run(whole, "benchmarks=5")
    assert whole.made == []
    assert len(operations_of(folder)) == 5


def test_a_mean_that_is_surely_out_of_its_range_changes_the_operations(run, folder):
    """For that network alone, after ten benchmarks; those count no longer, and all stay."""
    pilots = Machine()
    run(pilots, "benchmarks=1")
    (folder / "001.json").unlink()
    # The pilots' machine was another one: 24 operations cost 3.6 % now, 16 cost 2.4 %.
    machine = Machine(costs=0.15, noise=0.1)
    out, err = run(machine, "benchmarks=20")
    made = [operations for *_, operations in machine.made]
    assert made[:10] == 10 * [{TWO: 16, THREE: 24}]
    assert made[10:] == 20 * [{TWO: 13, THREE: 20}]
    assert f"{THREE}: 20 operations from now on; those of 24 miss their goal" in err.splitlines()
    assert "20 of 100 benchmarks" in out
    said = goals(out)
    assert said[EAGER, "told"][0] == "0 of 30"
    assert said[f"{THREE} (20 operations)", "found"] == ["20 of 20", "yes so far"]
    assert f"\n{THREE}: 10 with 24 operations, which cost 3." in out
    assert len(read(folder)) == 30


def test_only_the_network_that_misses_is_changed(run, folder):
    machine = Machine(costs=0.125, noise=0.05)
    folder.mkdir()
    for number in range(3):  # of pilots that say so of the one alone
        one = machine.benchmark(number, False, {"pilot": 40})
        (folder / f"pilot-{number}.json").write_text(json.dumps(asdict(one)))
    for number in range(1, 11):
        write(folder, machine.benchmark(number, number % 2 == 1, {TWO: 16, THREE: 30}))
    out, err = run(machine, "benchmarks=12")
    assert operations_of(folder)[10:] == 12 * [{TWO: 16, THREE: 24}]
    said = goals(out)
    assert said[f"{TWO} (16 operations)", "found"][0] == "22 of 22"
    assert said[f"{THREE} (24 operations)", "found"][0] == "12 of 12"
    assert "12 of 100 benchmarks" in out
    assert TWO not in err


def test_noise_changes_nothing_before_it_is_sure(run, folder):
    """The mean is out of its range, but not by what its standard error allows."""
    machine = Machine(costs=0.125 * 1.12, noise=1.0)
    for number in range(1, 13):
        folder.mkdir(exist_ok=True)
        write(folder, machine.benchmark(number, False, {TWO: 16, THREE: 24}))
    run(machine, "benchmarks=13")
    assert operations_of(folder) == 13 * [{TWO: 16, THREE: 24}]


def test_after_a_hundred_the_mean_has_to_be_in_its_range(run, folder):
    """By however little it is out of it; then all are repeated with other operations."""
    machine = Machine(costs=3.4 / 24, noise=0.6)  # a mean of 3.40 ± 0.06 %
    folder.mkdir()
    for number in range(1, 101):
        write(folder, machine.benchmark(number, False, {TWO: 14, THREE: 24}))
    ones = read(folder)
    assert goals(tables(ones))[f"{THREE} (24 operations)", "costs"][1] == "no"
    assert next_operations(ones[1:], THREE) == 24
    out, _ = run(machine)
    assert len(read(folder)) == 200
    ((two, three),) = {(one[TWO], one[THREE]) for one in operations_of(folder)[100:]}
    assert two == 14
    assert three in (21, 22)
    said = goals(out)
    assert {met for _, met in said.values()} == {"yes"}
    # Of the other pairs the first hundred count.
    assert said[f"{TWO} (14 operations)", "found"][0] == "100 of 100"
    assert said[EAGER, "told"][0] == "0 of 100"


def test_operations_that_missed_are_not_taken_again(run, folder):
    """Else two numbers, one too few and one too many, would take turns for ever."""
    machine = Machine(costs=2.0, noise=0.05)  # 1 costs 2 %, 2 cost 4 %
    folder.mkdir()
    for number in range(1, 11):
        write(folder, machine.benchmark(number, False, {TWO: 1, THREE: 1}))
    out, _ = run(machine, "benchmarks=15")
    assert {one[THREE] for one in operations_of(folder)} == {1, 2}
    assert goals(out)[f"{THREE} (2 operations)", "costs"][1] == "no so far"


def test_files_of_other_operations_are_not_mixed(folder):
    """As an earlier program left them, whose pilots were made anew: the latest count."""
    machine = Machine()
    folder.mkdir(parents=True)
    for number in range(1, 9):
        operations = {TWO: 22, THREE: 33} if number < 6 else {TWO: 16, THREE: 24}
        write(folder, machine.benchmark(number, False, operations))
    ones = read(folder)
    assert [one.number for one in counted(ones, THREE)] == [6, 7, 8]
    text = tables(ones)
    assert "3 of 100 benchmarks" in text
    assert f"{THREE}: 5 with 33 operations" in text
    assert len(counted(ones, EAGER)) == 8 < BENCHMARKS


def test_each_processor_has_a_table(folder):
    folder.mkdir(parents=True)
    machine = Machine()
    for number, name in enumerate("AAB", 1):
        one = machine.benchmark(number, False, {TWO: number, THREE: 24})
        write(folder, ranking.One(**vars(one) | {"processor": name}))
    text = tables(read(folder.parent))
    assert "A: 1 of 100" in text  # the second has another number of operations
    assert "B: 1 of 100" in text
    assert tables([]) == ""


def write(folder, one):
    (folder / f"{one.number:03}.json").write_text(json.dumps(asdict(one)))

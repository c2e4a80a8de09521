from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from simulated import (
    NEED,
    a_run,
    benchmark,
    entry,
    leaderboard,
    measured,
    of_run,
    stop,
)
from test_results import MEASUREMENT, RUN, place

from cifar_lightning.comparison import markdown
from cifar_lightning.comparison.changes import changes, effect
from cifar_lightning.comparison.choice import choose
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.entry import Group
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.verdict import verdict
from cifar_lightning.config.rules import DERIVED_KEYS
from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.errors import UserError
from cifar_lightning.runs.identity import NON_IDENTITY_KEYS
from cifar_lightning.runs.results import RunResults


def recorded(tmp_path, *pairs):
    """Write runs with measurements and read them again."""
    for run, *measurements in pairs:
        place(tmp_path, run, *measurements)
    return Records([RunResults.read(path) for path in sorted((tmp_path / "runs").iterdir())])


def compared(tmp_path, *pairs, baseline=None, **options):
    return compare(recorded(tmp_path, *pairs), NEED, baseline, **options)


# --- Leaderboards ---------------------------------------------------------------------------


def test_what_differs_in_conditions_never_meets(tmp_path):
    run = a_run("a")
    other = a_run("b", fingerprint="e" * 16, epochs=9)
    found = compared(
        tmp_path,
        (
            run,
            measured(run),
            measured(run, device="B", hardware="b"),
            measured(run, variant="fused", protocol="quick"),
            measured(run, variant="tf32", clock="cuda_event"),
            measured(run, variant="bf16", protocol_version=9),
        ),
        (other, measured(other)),
    )
    assert [len(leaderboard.entries) for leaderboard in found.leaderboards] == [1] * 6
    assert len({leaderboard.conditions for leaderboard in found.leaderboards}) == 6
    assert len({leaderboard.conditions.slug for leaderboard in found.leaderboards}) == 6
    assert len({leaderboard.name for leaderboard in found.leaderboards}) == 6


def test_threads_are_candidates_of_one_table(tmp_path):
    run = a_run("a")
    (found,) = compared(tmp_path, (run, measured(run), measured(run, threads=2))).leaderboards
    assert {e.name for e in found.entries} == {"a fp32", "a fp32 (2 threads)"}
    assert (found.threads, [*found.choices]) == ([1, 2], [1, 2])
    (found,) = compared(
        tmp_path / "gpu",
        (run, measured(run, clock="cuda_event"), measured(run, variant="fp16", threads=2,
                                                          clock="cuda_event")),
    ).leaderboards  # fmt: skip
    assert found.threads == [0]


def test_the_overall_answer_is_of_real_data_by_the_full_protocol(tmp_path):
    """Then of the leaderboard with most entries, whatever the names are."""
    real = {"data": RUN.config["data"] | {"name": "cifar10"}}
    pairs = []
    for number in range(3):
        toy = a_run(f"toy{number}", epochs=number + 1)
        pairs.append((toy, measured(toy, device="A first")))
    runs = [a_run(f"r{number}", fingerprint="e" * 16, **real) for number in range(3)]
    pairs += [(run, measured(run, protocol="quick", device="A")) for run in runs]
    pairs[3] += (measured(runs[0], device="B", hardware="b"),)
    for run, *measurements in (pairs[4], pairs[5]):
        measurements.append(measured(run, device="Z", hardware="z"))
        place(tmp_path, run, *measurements)
    found = compared(tmp_path, *pairs[:4])
    assert [(b.conditions.device, len(b.entries)) for b in found.leaderboards] == [
        ("Z", 2), ("B", 1), ("A", 3), ("A first", 3),
    ]  # fmt: skip


def test_other_processors_and_torch_versions_are_other_leaderboards(tmp_path):
    """Whatever the processor is called: `AMD EPYC` is Zen 3 on one day and Zen 4 on the next."""
    pairs = []
    for number, (hardware, torch) in enumerate(
        (("epyc-25-1-1-avx2", "2.14"), ("epyc-25-17-1-avx512f", "2.14"), ("epyc-25-1-1-avx2", "3"))
    ):
        run = a_run(f"r{number}", epochs=4 + number)
        environment = replace(MEASUREMENT.environment, versions={"torch": torch})
        pairs.append((run, measured(run, hardware=hardware, environment=environment)))
    found = compared(tmp_path, *pairs).leaderboards
    assert [len(leaderboard.entries) for leaderboard in found] == [1] * 3
    names = {leaderboard.name for leaderboard in found}
    assert len(names) == len({leaderboard.conditions.slug for leaderboard in found}) == 3
    assert any("torch 3" in name for name in names)
    assert any("epyc-25-17-1-avx512f" in name for name in names)


def test_other_recipes_and_engines_are_other_candidates(tmp_path):
    """Also over seeds: a mean over two recipes would be of neither."""
    made = (
        ({"int8": 1}, {"torch": "2", "onnxruntime": "1.31"}),
        ({"int8": 2}, {"torch": "2", "onnxruntime": "1.31"}),
        ({"int8": 2}, {"torch": "2", "onnxruntime": "1.32"}),
        ({"int8": 2}, {"torch": "2", "onnxruntime": "1.32"}),
    )
    pairs = []
    for seed, (parts, engines) in enumerate(made):
        run = a_run("a", seed)
        one = measured(run, variant="int8", recipe=parts, engines=engines)
        pairs.append((run, measured(run), one))
    (found,) = compared(tmp_path, *pairs).leaderboards
    assert {entry.name: len(entry.group.runs) for entry in found.entries} == {
        "a fp32": 4,
        "a int8 (int8 recipe 1, onnxruntime 1.31)": 1,
        "a int8 (int8 recipe 2, onnxruntime 1.31)": 1,
        "a int8 (int8 recipe 2, onnxruntime 1.32)": 2,
    }


def test_seeds_are_one_entry_and_data_seeds_do_not_matter(tmp_path):
    runs = [a_run("a", seed) for seed in (0, 1, 2)]
    accs = zip(runs, (89.0, 90.0, 91.0), strict=True)
    (found,) = compared(
        tmp_path, *((run, measured(run, acc=acc)) for run, acc in accs)
    ).leaderboards
    (only,) = found.entries
    assert (only.label, len(only.group.runs)) == ("a", 3)
    assert only.accuracy.mean == pytest.approx(90.0)
    assert only.accuracy.std == pytest.approx(1.0)
    assert only.group.confusion == [[2700, 300], [0, 0]]


def test_a_candidate_is_represented_by_validation_and_never_by_the_test_split(tmp_path):
    """What executes alike is one row: the README's B1 and B1-45min."""
    model = {"model": {"width": 1}}
    best = replace(a_run("B1", epochs=30, **model), val_acc=88.10)
    lucky = replace(a_run("B1-45min", epochs=18, **model), val_acc=86.28)
    blind = replace(a_run("blind", epochs=99, **model), val_acc=None)
    pairs = [
        (best, measured(best, acc=87.36, images=10_000)),
        (lucky, measured(lucky, acc=99.0, images=10_000)),
        (blind, measured(blind, acc=99.5, images=10_000)),
    ]
    (found,) = compared(tmp_path, *pairs).leaderboards
    (only,) = found.entries
    assert [group.label for group in only.groups] == ["B1", "B1-45min", "blind"]
    assert (only.label, only.accuracy.mean) == ("B1", pytest.approx(87.36))
    # Without any validation split, the most epochs.
    shorter = replace(a_run("shorter", epochs=9, **model), val_acc=None)
    (found,) = compared(
        tmp_path / "blind", (blind, measured(blind)), (shorter, measured(shorter, acc=99))
    ).leaderboards
    assert found.entries[0].label == "blind"


def test_runs_that_weights_tell_apart_are_rows_of_their_own():
    runs = [a_run("a", seed) for seed in (0, 1)]
    timed = [
        (replace(of_run(run), by_weights=True, weights=f"{seed}" * 64), 1.0 + seed)
        for seed, run in enumerate(runs)
    ]
    record = benchmark(timed)
    results = []
    for (one, _), run in zip(timed, runs, strict=True):
        timing = record.timing([c.key for c in record.candidates].index(one.key))
        taken = measured(run, candidate=one.key, relative=timing.relative, benchmark=record.id)
        results.append(RunResults(".", run, [(None, taken)], []))
    (found,) = compare(Records(results, {record.id: record}), NEED).leaderboards
    first, second = found.entries
    assert (first.name, second.name) == ("a fp32 (seed 0)", "a fp32 (seed 1)")
    assert first.told_apart
    assert found.slower(second, first)


def test_seeds_without_a_common_id_are_named_after_the_first(tmp_path):
    first, second = a_run(None, 0), replace(a_run(None, 1), started="2027-01-01T00:00:00+00:00")
    (found,) = compared(tmp_path, (first, measured(first)), (second, measured(second))).leaderboards
    assert found.entries[0].label == f"{first.label}+1"


def test_one_id_for_two_groups_is_told_apart(tmp_path):
    first, second = a_run("a"), a_run("a", epochs=9)
    (found,) = compared(tmp_path, (first, measured(first)), (second, measured(second))).leaderboards
    assert len({group.label for one in found.entries for group in one.groups}) == 2


def test_a_run_measured_twice_under_the_same_conditions_counts_once(tmp_path):
    run = a_run("a")
    one = recorded(tmp_path / "here", (run, measured(run)))
    two = recorded(tmp_path / "there", (run, measured(run)))
    (found,) = compare(Records([*one.runs, *two.runs]), NEED).leaderboards
    assert [len(e.group.runs) for e in found.entries] == [1]


@pytest.mark.parametrize("less", [{"processes": 1}, {"rounds": 5, "stopped": True}])
def test_of_a_run_measured_twice_the_one_that_says_more_counts(tmp_path, less):
    """Whichever outputs are named first, and whichever is later."""
    run, less = a_run("a"), dict(less)
    cut = stop if less.pop("stopped", False) else lambda record: record
    for numbers in ((0, 1), (1, 0)):
        whole = benchmark([(of_run(run), 1.0)], number=numbers[0])
        look = cut(benchmark([(of_run(run), 1.3)], number=numbers[1], **less))
        places = [
            recorded(tmp_path / f"{number}-{record.ended}", (run, measured(run, record)))
            for number, record in zip(numbers, (whole, look), strict=True)
        ]
        for one, two in (places, places[::-1]):
            known = {record.id: record for record in (whole, look)}
            (found,) = compare(Records([*one.runs, *two.runs], known, {}), NEED).leaderboards
            assert [entry.measurement.benchmark for entry in found.entries] == [whole.id]
            assert found.entries[0].relative == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("status", ["unsupported", "failed"])
def test_what_can_not_be_ranked_is_apart(tmp_path, status):
    run = a_run("a")
    bad = measured(run, variant="int8", status=status, reason="why")
    found = compared(tmp_path, (run, measured(run), bad))
    assert [e.variant for e in found.leaderboards[0].entries] == ["fp32"]
    assert [(row.variant, row.status) for row in found.unranked] == [("int8", status)]


def test_what_was_disturbed_is_ranked_and_marked():
    found = leaderboard(entry("a", 90, 1.0), entry("b", 95, 2.0), preempted=True)
    a, b = found.entries
    assert (a.marks, b.marks) == (["disturbed"], ["disturbed"])
    assert (found.latency_rank(a), found.latency_rank(b)) == ((1, False), (2, False))
    assert "disturbed)" in verdict(found, 1, NEED).advice
    assert a.group.confusion is not None


def test_failed_and_unmeasured_runs_are_apart(tmp_path):
    failed = replace(a_run("a"), status="failed", error="out of luck")
    found = compared(tmp_path, (failed,), (a_run("b", epochs=9),))
    assert not found.leaderboards
    assert {row.id for row in found.unranked} == {"a", "b"}


@pytest.mark.parametrize("different", [3, markdown.UNRANKED + 3])
def test_each_row_that_is_not_ranked_is_named_or_counted(different, tmp_path):
    """Rows of which the same is said, as seeds of one ID, have one line."""
    failed = replace(a_run("a"), status="failed", error="out of luck")
    found = compared(tmp_path, (failed,))
    (row,) = found.unranked
    others = tuple(replace(row, error=f"reason {number}") for number in range(different))
    found = replace(found, unranked=(row, *others, row))
    first, *lines = markdown.unranked_lines(found)
    assert first == "a is failed: out of luck (2 rows)"
    assert lines[1] == "a is failed: reason 1"
    if different == 3:
        assert len(lines) == 3
    else:
        assert (len(lines), lines[-1]) == (markdown.UNRANKED, "4 more, which results.csv lists")


def test_the_baseline_is_its_plain_variant(tmp_path):
    runs = [a_run("a"), a_run("b", epochs=9)]
    pairs = [(run, measured(run, variant="fused"), measured(run)) for run in runs]
    (found,) = compared(tmp_path, *pairs, baseline="b").leaderboards
    assert found.baseline[1].name == "b fp32"
    with pytest.raises(UserError, match="baseline=c: no such row"):
        compared(tmp_path, *pairs, baseline="c")
    with pytest.raises(UserError, match="baseline=net: must be one of a, b: it means them all"):
        compared(tmp_path, *pairs, baseline="net")
    # One ID on two data sets is in two leaderboards: the error names what can be said instead.
    other = a_run("b", fingerprint="e" * 16, epochs=8)
    pairs.append((other, measured(other)))
    with pytest.raises(UserError, match=f"one of {other.name}, {runs[1].name}: it means") as told:
        compared(tmp_path / "two", *pairs, baseline="b")
    assert compared(tmp_path / "two", *pairs, baseline=other.name).leaderboards
    assert told.value.key == "baseline"
    pairs.pop()
    # A filter does not take the baseline away.
    (only,) = compared(
        tmp_path, *pairs, baseline="b", keep=lambda _, one: one.label == "a"
    ).leaderboards
    assert (only.baseline[1].name, [e.label for e in only.entries]) == ("b fp32", ["a", "a"])


def test_names_are_those_of_the_runs_that_were_measured_there(tmp_path):
    first, second = a_run(None, 0), replace(a_run(None, 1), started="2027-01-01T00:00:00+00:00")
    found = compared(
        tmp_path,
        (first, measured(first)),
        (second, measured(second), measured(second, device="Z", hardware="z")),
    )
    assert [leaderboard.entries[0].label for leaderboard in found.leaderboards] == [
        f"{first.label}+1",
        second.label,
    ]


def test_two_data_sets_of_one_name_are_told_apart(tmp_path):
    runs = [a_run("a"), a_run("b", fingerprint="e" * 16, epochs=9)]
    found = compared(tmp_path, *((run, measured(run)) for run in runs))
    assert len({leaderboard.name for leaderboard in found.leaderboards}) == 2


def test_predictions_are_taken_where_all_seeds_have_them():
    import numpy as np

    right = np.arange(1000) < 900
    plans = [entry("a", 90, 1.0), entry("b", 90, 2.0)]
    names = [plan.run.name for plan in plans]
    found = leaderboard(*plans, right={(names[0], "fp32"): right, (names[1], "onnx"): right})
    assert [len(one.accuracy.right) for one in found.entries] == [1, 0]


# --- Ranks, front, verdict ------------------------------------------------------------------


def test_ranks_count_what_is_surely_better():
    found = leaderboard(entry("a", 90, 1.0), entry("b", 90, 1.002), entry("c", 90, 2.0))
    assert [found.latency_rank(one) for one in found.entries] == [(1, True), (1, True), (3, False)]
    assert [found.accuracy_rank(one) for one in found.entries] == [(1, True)] * 3
    found = leaderboard(entry("a", 95, 1.0), entry("b", 90, 1.0), entry("c", 89, 1.0))
    assert [found.accuracy_rank(one) for one in found.entries] == [(1, False), (2, True), (2, True)]


def test_the_front_holds_what_nothing_dominates():
    found = leaderboard(
        entry("fast", 80, 1.0),
        entry("accurate", 95, 3.0),
        entry("slow", 79, 2.0),
        entry("tied", 80, 1.003),
        entry("rather", 81, 2.0),  # perhaps more accurate than fast, surely slower
    )
    # By its relative latency `tied` may come first.
    assert {one.label for one in found.pareto_front(1)} == {"fast", "tied", "rather", "accurate"}
    assert {one.label: better.label for one, better in found.dominated_by.items()} == {
        "slow": "fast"
    }


def test_an_imprecise_row_dominates_no_precise_one():
    """Neither is surely slower than the other; the accurate one has the larger latency."""
    found = leaderboard(
        entry("noisy", 99, 1.15), entry("fast", 90, 1.0), rounds=30, noise=0.5, drift=0, seed=1
    )
    noisy, fast = found.entries
    assert noisy.relative > fast.relative
    assert found.dominated_by == {}
    assert found.pareto_front(1) == [fast, noisy]


points = st.tuples(
    st.floats(50, 99), st.floats(0.1, 10), st.floats(0, 2), st.sampled_from([20, 500, 100000])
)


@settings(deadline=None, max_examples=50)
@given(st.lists(points, min_size=1, max_size=8), st.floats(0.001, 0.3))
def test_every_front_is_sound(drawn, noise):
    plans = [
        entry(str(i), acc, truth, images=images) for i, (acc, truth, _, images) in enumerate(drawn)
    ]
    found = leaderboard(*plans, rounds=30, calls=2, noise=noise)
    assert found.pareto_front(1)
    for one, better in found.dominated_by.items():
        assert better.accuracy.mean >= one.accuracy.mean
        assert found.slower(one, better) or found.above(better, one)
        assert not found.slower(better, one)
    for one in found.entries:
        rank, tied = found.latency_rank(one)
        assert 1 <= rank <= len(found.entries)
        others = [other for other in found.entries if other is not one]
        neither = [o for o in others if not found.slower(one, o) and not found.slower(o, one)]
        assert tied == bool(neither)
        for other in others:
            assert not (found.slower(one, other) and found.slower(other, one))
            assert not (found.above(one, other) and found.above(other, one))
    for min_acc in (0, 70, 90, 98):
        choice = choose(found, 1, replace(NEED, min_acc=min_acc))
        eligible = [one for one in found.entries if one.accuracy.mean >= min_acc]
        assert choice.eligible == eligible
        if eligible:
            assert choice.entry in choice.best
            fastest = min(eligible, key=lambda one: one.relative)
            slower = [one for one in eligible if found.slower(choice.entry, one)]
            assert not slower or choice.best == [fastest]


def test_the_verdict_takes_the_fastest_that_is_accurate_enough():
    plans = entry("rough", 80, 0.5), entry("good", 90, 1.0), entry("best", 95, 3.0)
    found = leaderboard(*plans, drift=0, noise=0.001)
    told = verdict(found, 1, NEED)
    assert told.advice.startswith("Take good fp32 (90.00 ± 1.61 %, 1.000 ms, 1.000 times the ref")
    assert "of 2 rows with at least 85 % it is the fastest" in told.advice
    assert (
        told.pareto_front.index("rough")
        < told.pareto_front.index("good")
        < told.pareto_front.index("best")
    )
    assert told.dominated == []


def test_the_more_accurate_of_two_equal_networks_is_taken():
    """Two that cost the same, measured on two days: noise does not turn the verdict."""
    plans = entry("B1-45min", 85.70, 2.0), entry("B1", 87.36, 2.001)
    days = [
        benchmark([(of_run(plan.run), plan.truth)], number=number + 1)
        for number, plan in enumerate(plans)
    ]
    found = leaderboard(*plans, records=days)
    assert verdict(found, 1, NEED).advice.startswith("Take B1 fp32")


def test_why_others_are_dominated():
    found = leaderboard(entry("a", 90, 1.0), entry("b", 92, 1.002), entry("c", 70, 2.0))
    (why,) = verdict(found, 1, NEED).dominated
    assert why.startswith("c fp32 is dominated: ")
    assert "2.00 times as fast" in why or "1.99 times as fast" in why


# --- One change at a time -------------------------------------------------------------------


def two(*plans, **options):
    """Compare two entries: the baseline's place, and the other's with the leaderboard."""
    found = leaderboard(*plans, **options)
    base, other = found.entries
    return found, base.group, (other, other.group)


def test_one_change_and_its_effect():
    same = {"model": {"name": "one"}}
    found, base, place = two(entry("a", 90, 1.0), entry("b", 95, 2.0, epochs=9), noise=0.001)
    assert changes(base, base) == []
    assert changes(base, place[1]) == ["model.name a → b", "epochs 3 → 9"]
    assert effect(found, place) == "accuracy +5.00 points, latency +100 %, size +0 %"
    found, base, place = two(entry("a", 90, 1.0), entry("c", 90.1, 1.001, epochs=4))
    assert effect(found, place).count("(tie)") == 2
    found, _, place = two(entry("a", 90, 1.0), entry("d", 90, 1.0, size_bytes=None))
    assert "size" not in effect(found, place)
    # Another training run of the same network executes alike.
    plans = entry("a", 90, 1.0, **same), entry("b", 95, 1.0, epochs=9, **same)
    record = benchmark([(of_run(plans[0].run), 1.0)])
    found = leaderboard(*plans, records=[record], baseline="a")
    (only,) = found.entries
    (other,) = [group for group in only.groups if group.label == "b"]
    told = effect(found, (only, other))
    assert told == "accuracy +5.00 points, latency the same: one candidate, size +0 %"


def test_the_seed_and_where_it_ran_are_no_change():
    same = {"model": {"name": "one"}}
    base = a_run("a", **same)
    other = a_run("b", seed=7, outputs="elsewhere", trainer={"accelerator": "gpu"}, **same)
    groups = [Group("x", (run,), (measured(run),)) for run in (base, other)]
    assert changes(*groups) == []


def test_features_variants_and_augmentation():
    def group(variant="fp32", **config):
        run = a_run("a", **config)
        return Group("a", (run,), (measured(run, variant=variant),))

    base = group(augment={"crop": {"padding": 4}})
    other = group("fused", ema=0.99, augment={"crop": {"padding": 2}})
    assert changes(base, other) == [
        "augment.crop.padding 4 → 2",
        "ema off → 0.99",
        "variant fp32 → fused",
    ]
    more = group(augment={"crop": {"padding": 4}, "flip": {}})
    assert changes(base, more) == ["augment crop → crop, flip"]


def test_another_network_with_its_defaults_is_one_change(resolved):
    def made(*overrides):
        config, choices = resolved("data=digits", *overrides)
        run = replace(RUN, config=config, choices=choices)
        return Group("x", (run,), (MEASUREMENT,))

    base = made()
    assert changes(base, made("model=shufflenetv2")) == ["model mobilenetv3 → shufflenetv2"]
    assert changes(base, made("optim=adamw")) == ["optim sgd → adamw"]
    assert changes(base, made("model=shufflenetv2", "model.output_stride=16")) == [
        "model mobilenetv3 → shufflenetv2",
        "model.output_stride 8 → 16",
    ]
    assert changes(base, made("epochs=60", "batch_size=64")) == [
        "batch_size 128 → 64",
        "epochs 30 → 60",
    ]


def test_following_keys_are_those_that_interpolate():
    found = {}
    for group in ("model", "optim", "scheduler", "data", "augment", "trainer", "distill"):
        for path in (CONF_DIR / group).glob("*.yaml"):
            nodes = OmegaConf.to_container(OmegaConf.load(path))
            stack = [(group, nodes)]
            while stack:
                prefix, node = stack.pop()
                if isinstance(node, dict):
                    stack += [(f"{prefix}.{key}", value) for key, value in node.items()]
                elif isinstance(node, str) and node.startswith("${"):
                    found[prefix] = node[2:-1]
    assert {
        key: source for key, source in found.items() if key not in NON_IDENTITY_KEYS
    } == DERIVED_KEYS

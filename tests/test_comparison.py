import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_results import LATENCY, MEASUREMENT, RUN, place, with_seed

from cifar_lightning.comparison.changes import changes, effect
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.entry import Conditions, Entry, Estimate
from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.comparison.verdict import verdict
from cifar_lightning.config.rules import DERIVED_KEYS
from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.errors import UserError
from cifar_lightning.runs.identity import NON_IDENTITY_KEYS, run_name
from cifar_lightning.runs.measurement import recipe
from cifar_lightning.runs.results import RunResults

CONDITIONS = Conditions("digits", "f" * 16, "A CPU", 1, "perf_counter", "full", 1)


def recorded(tmp_path, *pairs):
    """Write runs with measurements and read them again."""
    for run, *measurements in pairs:
        place(tmp_path, run, *measurements)
    return [RunResults.read(path) for path in sorted((tmp_path / "runs").iterdir())]


def a_run(label, seed=0, fingerprint="f" * 16, **config):
    config = with_seed(seed) | config
    name = run_name(config, RUN.choices)
    return replace(RUN, id=label, name=name, config=config, data_fingerprint=fingerprint)


def measured(run, acc=90.0, mean=1.0, width=0.1, images=1000, **changed):
    right = round(acc * images / 100)
    latency = replace(LATENCY, mean_ms=mean, mean_ci_ms=width, p95_ms=2 * mean)
    return replace(
        MEASUREMENT,
        **{
            "run": run.name,
            "test_acc": 100 * right / images,
            "latency": latency,
            "confusion": [[right, images - right], [0, 0]],
            "recipe": recipe(changed.get("variant", "fp32")),
        }
        | changed,
    )


MEASURED = {"confusion", "mean_ci_ms", "size_bytes"}


def entry(label, acc, mean, width=0.1, images=1000, variant="fp32", **changed):
    run = a_run(label, **{key: value for key, value in changed.items() if key not in MEASURED})
    one = measured(run, acc, mean, changed.pop("mean_ci_ms", width), images, variant=variant)
    one = replace(one, **{key: value for key, value in changed.items() if key in MEASURED})
    return Entry(label, (run,), (one,))


def leaderboard(*entries):
    return Leaderboard(CONDITIONS.name, CONDITIONS, tuple(entries), entries[0])


# --- Intervals ------------------------------------------------------------------------------


def test_one_seeds_accuracy_has_wilsons_interval():
    # Wilson's interval of 90 of 100, computed by hand: (0.8256, 0.9448).
    found = entry("a", 90.0, 1.0, images=100).accuracy
    assert (found.low, found.high) == (
        pytest.approx(82.56, abs=0.01),
        pytest.approx(94.48, abs=0.01),
    )


def test_several_seeds_have_students_interval():
    # t(0.975, 2) = 4.3027; three means with a standard deviation of 1.
    found = Estimate.over_seeds([9.0, 10.0, 11.0], [(v, v) for v in (9.0, 10.0, 11.0)])
    assert found.mean == 10.0
    assert found.std == pytest.approx(1.0)
    assert found.reach[0] == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.reach[0] == pytest.approx(found.reach[1])


def test_seeds_that_agree_by_chance_keep_their_own_width():
    found = Estimate.over_seeds([10.0, 10.0], [(9.0, 11.0), (9.5, 12.0)])
    assert (found.low, found.high) == (9.0, 12.0)


def test_intervals_stay_possible():
    found = Estimate.over_seeds([99.0, 99.6], [(98.0, 99.5), (99.0, 99.9)], 100.0)
    assert (found.low, found.high) == (pytest.approx(95.49, abs=0.01), 100.0)
    assert Estimate.over_seeds([1.0, 9.0], [(0.9, 1.1), (8.9, 9.1)]).low == 0.0


def test_an_unknown_interval_ties_with_everything():
    old = entry("old", 99, 0.1, confusion=None, mean_ci_ms=None)
    good = entry("good", 50, 9.0)
    assert not old.accuracy.known
    assert old.accuracy.overlaps(good.accuracy)
    assert old.mean_ms.overlaps(good.mean_ms)
    assert old.accuracy.reach == (0.0, 0.0)
    assert len(leaderboard(old, good).pareto_front) == 2
    assert "was not recorded: measure it again" in verdict(leaderboard(old, good), 85).advice


# --- Arenas ---------------------------------------------------------------------------------


def test_what_differs_in_conditions_never_meets(tmp_path):
    run = a_run("a")
    other = a_run("b", fingerprint="e" * 16, epochs=9)
    found = compare(
        recorded(
            tmp_path,
            (
                run,
                measured(run),
                measured(run, threads=2),
                measured(run, device="B", hardware="b"),
                measured(run, variant="fused", protocol="quick"),
                measured(run, variant="tf32", clock="cuda_event"),
                measured(run, variant="bf16", protocol_version=2),
            ),
            (other, measured(other)),
        )
    )
    assert [len(leaderboard.entries) for leaderboard in found.leaderboards] == [1] * 7
    assert len({leaderboard.conditions for leaderboard in found.leaderboards}) == 7
    assert len({leaderboard.conditions.slug for leaderboard in found.leaderboards}) == 7
    assert len({leaderboard.name for leaderboard in found.leaderboards}) == 7


def test_other_processors_and_torch_versions_are_other_leaderboards(tmp_path):
    """Whatever the processor is called: `AMD EPYC` is Zen 3 on one day and Zen 4 on the next."""
    pairs = []
    for number, (hardware, torch) in enumerate(
        (("epyc-25-1-1-avx2", "2.14"), ("epyc-25-17-1-avx512f", "2.14"), ("epyc-25-1-1-avx2", "3"))
    ):
        run = a_run(f"r{number}", epochs=4 + number)
        environment = replace(MEASUREMENT.environment, versions={"torch": torch})
        pairs.append((run, measured(run, hardware=hardware, environment=environment)))
    found = compare(recorded(tmp_path, *pairs)).leaderboards
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
    (found,) = compare(recorded(tmp_path, *pairs)).leaderboards
    assert {entry.name: len(entry.runs) for entry in found.entries} == {
        "a fp32": 4,
        "a int8 (int8 recipe 1, onnxruntime 1.31)": 1,
        "a int8 (int8 recipe 2, onnxruntime 1.31)": 1,
        "a int8 (int8 recipe 2, onnxruntime 1.32)": 2,
    }


def test_seeds_are_one_entry_and_data_seeds_do_not_matter(tmp_path):
    runs = [a_run("a", seed) for seed in (0, 1, 2)]
    pairs = [(run, measured(run, acc)) for run, acc in zip(runs, (89.0, 90.0, 91.0), strict=True)]
    (found,) = compare(recorded(tmp_path, *pairs)).leaderboards
    (only,) = found.entries
    assert (only.label, len(only.runs)) == ("a", 3)
    assert only.accuracy.mean == pytest.approx(90.0)
    assert only.accuracy.std == pytest.approx(1.0)
    assert only.confusion == [[2700, 300], [0, 0]]


def test_seeds_without_a_common_id_are_named_after_the_first(tmp_path):
    first, second = a_run(None, 0), replace(a_run(None, 1), started="2027-01-01T00:00:00+00:00")
    (found,) = compare(
        recorded(tmp_path, (first, measured(first)), (second, measured(second)))
    ).leaderboards
    assert found.entries[0].label == f"{first.label}+1"


def test_one_id_for_two_groups_is_told_apart(tmp_path):
    first, second = a_run("a"), a_run("a", epochs=9)
    (found,) = compare(
        recorded(tmp_path, (first, measured(first)), (second, measured(second)))
    ).leaderboards
    assert len({one.label for one in found.entries}) == 2


def test_a_run_measured_twice_under_the_same_conditions_counts_once(tmp_path):
    run = a_run("a")
    one = recorded(tmp_path / "here", (run, measured(run)))
    two = recorded(tmp_path / "there", (run, measured(run)))
    (found,) = compare([*one, *two]).leaderboards
    assert [len(e.runs) for e in found.entries] == [1]


@pytest.mark.parametrize("status", ["disturbed", "unsupported", "failed"])
def test_what_can_not_be_ranked_is_apart(tmp_path, status):
    run = a_run("a")
    bad = measured(run, variant="int8", status=status, reason="why")
    found = compare(recorded(tmp_path, (run, measured(run), bad)))
    assert [e.variant for e in found.leaderboards[0].entries] == ["fp32"]
    assert [(row.variant, row.status) for row in found.unranked] == [("int8", status)]


def test_failed_and_unmeasured_runs_are_apart(tmp_path):
    failed = replace(a_run("a"), status="failed", error="out of luck")
    found = compare(recorded(tmp_path, (failed,), (a_run("b", epochs=9),)))
    assert not found.leaderboards
    assert {row.id for row in found.unranked} == {"a", "b"}


def test_the_baseline_is_its_plain_variant(tmp_path):
    runs = [a_run("a"), a_run("b", epochs=9)]
    pairs = [(run, measured(run, variant="fused"), measured(run)) for run in runs]
    (found,) = compare(recorded(tmp_path, *pairs), "b").leaderboards
    assert found.baseline.name == "b fp32"
    with pytest.raises(UserError, match="baseline=c: no such row"):
        compare(recorded(tmp_path, *pairs), "c")
    with pytest.raises(UserError, match="baseline=net: must be one of a, b: it means them all"):
        compare(recorded(tmp_path, *pairs), "net")
    # A filter does not take the baseline away.
    (only,) = compare(recorded(tmp_path, *pairs), "b", lambda _, one: one.label == "a").leaderboards
    assert (only.baseline.name, [e.label for e in only.entries]) == ("b fp32", ["a", "a"])


def test_names_are_those_of_the_runs_that_were_measured_there(tmp_path):
    first, second = a_run(None, 0), replace(a_run(None, 1), started="2027-01-01T00:00:00+00:00")
    found = compare(
        recorded(
            tmp_path,
            (first, measured(first)),
            (second, measured(second), measured(second, device="Z", hardware="z")),
        )
    )
    assert [leaderboard.entries[0].label for leaderboard in found.leaderboards] == [
        f"{first.label}+1",
        second.label,
    ]


def test_two_data_sets_of_one_name_are_told_apart(tmp_path):
    runs = [a_run("a"), a_run("b", fingerprint="e" * 16, epochs=9)]
    found = compare(recorded(tmp_path, *((run, measured(run)) for run in runs)))
    assert len({leaderboard.name for leaderboard in found.leaderboards}) == 2


# --- Ranks, front, verdict ------------------------------------------------------------------


def test_overlapping_intervals_share_a_rank():
    entries = [entry("a", 90, 1.0), entry("b", 90, 1.1), entry("c", 90, 2.0)]
    ranks = [leaderboard(*entries).rank(e, lambda one: one.mean_ms, highest=False) for e in entries]
    assert ranks == [(1, True), (1, True), (3, False)]
    ranks = [leaderboard(*entries).rank(e, lambda one: one.accuracy, highest=True) for e in entries]
    assert ranks == [(1, True)] * 3


def test_the_front_holds_what_nothing_dominates():
    fast, accurate = entry("fast", 80, 1.0), entry("accurate", 95, 3.0)
    slow, tied = entry("slow", 79, 2.0), entry("tied", 80, 1.05)
    rather = entry("rather", 81, 2.0, width=0.01)  # perhaps more accurate than fast, surely slower
    found = leaderboard(fast, accurate, slow, tied, rather)
    assert found.pareto_front == [fast, tied, rather, accurate]
    assert found.dominated_by == {slow: fast}


def test_an_imprecise_row_dominates_no_precise_one():
    noisy, fast = entry("noisy", 99, 1.15, width=3.0), entry("fast", 90, 0.15, width=0.001)
    assert leaderboard(noisy, fast).pareto_front == [fast, noisy]


points = st.tuples(
    st.floats(50, 99), st.floats(0.1, 10), st.floats(0, 2), st.sampled_from([20, 500, 100000])
)


@settings(deadline=None)
@given(st.lists(points, min_size=1, max_size=12))
def test_every_front_is_sound(drawn):
    found = leaderboard(*(entry(str(i), *values) for i, values in enumerate(drawn)))
    assert found.pareto_front
    for one, better in found.dominated_by.items():
        assert better.accuracy.mean >= one.accuracy.mean
        assert better.mean_ms.mean <= one.mean_ms.mean
        assert better.accuracy.mean > one.accuracy.mean or better.mean_ms.mean < one.mean_ms.mean
    fastest = min(found.entries, key=lambda one: one.mean_ms.high)
    assert not any(one.mean_ms.significantly_below(fastest.mean_ms) for one in found.entries)
    for one in found.entries:
        rank, _ = found.rank(one, lambda e: e.mean_ms, highest=False)
        assert 1 <= rank <= len(found.entries)
    for min_acc in (0, 70, 90, 98):
        chosen = found.recommend(min_acc)
        assert chosen is None or chosen in found.pareto_front


def test_the_verdict_takes_the_fastest_that_is_accurate_enough():
    found = leaderboard(entry("rough", 80, 0.5), entry("good", 90, 1.0), entry("best", 95, 3.0))
    told = verdict(found, 85)
    assert told.advice.startswith("Take good fp32: 90.00 % (87.98 to 91.71) in 1.000 ms")
    assert "fastest of 2 rows with at least 85 %" in told.advice
    assert (
        told.pareto_front.index("rough")
        < told.pareto_front.index("good")
        < told.pareto_front.index("best")
    )
    assert told.dominated == []
    assert "No row reaches 99 %; the most accurate is best" in verdict(found, 99).advice


def test_the_verdict_names_what_is_uncertain():
    found = leaderboard(
        entry("a", 90, 1.0), entry("b", 92, 1.05), entry("c", 70, 2.0), entry("d", 89, 0.5)
    )
    told = verdict(found, 89.5)
    (why,) = told.dominated
    assert "Whether it truly reaches 89.5 % is within the uncertainty." in told.advice
    assert "Not slower for sure: b fp32" in told.advice
    assert "Below 89.5 % only within the uncertainty: d fp32." in told.advice
    assert why.startswith("c fp32 is dominated: ")
    assert "4.00 times as fast" in why


def test_one_network_at_two_speeds_is_the_machines_doing():
    found = leaderboard(
        entry("a", 90, 1.0, model={"width": 1}), entry("b", 90, 2.0, model={"width": 1}, epochs=9)
    )
    assert "b fp32 and a fp32 are one network, yet differ by 100 %" in verdict(found, 85).advice
    others = leaderboard(
        entry("a", 90, 1.0, model={"width": 1}), entry("b", 90, 2.0, model={"width": 2})
    )
    assert "one network" not in verdict(others, 85).advice


# --- One change at a time -------------------------------------------------------------------


def test_one_change_and_its_effect():
    base = entry("a", 90, 1.0)
    one = entry("b", 95, 2.0, epochs=9)
    assert changes(base, base) == []
    assert changes(base, one) == ["epochs 3 → 9"]
    assert effect(base, one) == "accuracy +5.00 points, latency +100 %, size +0 %"
    tie = entry("c", 90.1, 1.01, epochs=4)
    assert effect(base, tie).count("(tie)") == 2
    assert "size" not in effect(base, entry("d", 90, 1.0, size_bytes=None))


def test_the_seed_and_where_it_ran_are_no_change():
    base = entry("a", 90, 1.0)
    other = entry("b", 90, 1.0, seed=7, outputs="elsewhere", trainer={"accelerator": "gpu"})
    assert changes(base, other) == []


def test_features_variants_and_augmentation():
    base = entry("a", 90, 1.0, augment={"crop": {"padding": 4}})
    other = entry("b", 90, 1.0, variant="fused", ema=0.99, augment={"crop": {"padding": 2}})
    assert changes(base, other) == [
        "augment.crop.padding 4 → 2",
        "ema off → 0.99",
        "variant fp32 → fused",
    ]
    more = entry("c", 90, 1.0, augment={"crop": {"padding": 4}, "flip": {}})
    assert changes(base, more) == ["augment crop → crop, flip"]


def test_another_network_with_its_defaults_is_one_change(resolved):
    def made(*overrides):
        config, choices = resolved("data=digits", *overrides)
        run = replace(RUN, config=config, choices=choices)
        return Entry("x", (run,), (MEASUREMENT,))

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

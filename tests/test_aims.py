"""Which networks a search for a front is after."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cifar_lightning.sweeps.aims import Guess, aimed, guesses, in_play, in_turns
from cifar_lightning.sweeps.found import Rungs, Trained
from cifar_lightning.sweeps.ladder import Point

RUNGS = [4, 12, 36]
networks = st.dictionaries(
    st.integers(0, 30),
    st.builds(
        lambda latency, accuracy, more: Guess(latency, accuracy, accuracy + more),
        st.floats(0.05, 5.0), st.floats(10, 95), st.floats(0, 5),
    ),
)  # fmt: skip


@given(networks, st.floats(50, 95))
def test_the_fastest_that_reaches_a_target_comes_first(found, target):
    order = aimed(found, target)
    reaching = [one for one in found.values() if one.accuracy >= target]
    if reaching:
        assert found[order[0]].latency == min(one.latency for one in reaching)
    elif order:
        assert found[order[0]].accuracy == max(
            one.accuracy for one in found.values() if one.most >= target
        )
    assert all(found[n].most >= target for n in order)
    assert {n for n, one in found.items() if one.most >= target} == {*order}


@given(networks)
def test_each_target_s_first_one_is_among_the_first(found):
    targets = [70, 80, 90]
    order = in_turns(found, targets)
    assert len({*order}) == len(order)
    for target in targets:
        if one := aimed(found, target):
            assert one[0] in order[: len(targets)]


def test_a_final_run_counts_and_no_guess():
    found = {
        0: Guess(0.1, 90, 91, final=84, complete=True),
        1: Guess(0.2, 83, 84, final=86, complete=True),
        2: Guess(0.3, 88, 89),
        3: Guess(0.15, 84, 86),
    }
    assert aimed(found, 85) == [1, 3]  # what is slower is of no use any more
    assert aimed(found, 88) == [2]


def known(*rungs, seconds=1.0, finals=None):
    """Make what is known of networks, by their latencies and accuracies."""
    seconds = seconds if isinstance(seconds, dict) else dict.fromkeys(range(99), seconds)
    return Rungs(
        [
            {n: Trained("r", acc, 5000, seconds[n] * epochs) for n, (_, acc) in rung.items()}
            for rung, epochs in zip(rungs, RUNGS, strict=False)
        ],
        [{n: Point(*one, 5000) for n, one in rung.items()} for rung in rungs],
        quiet_ms={n: one[0] for n, one in rungs[0].items()},
        finals=finals or {},
    )


def settings(**other):
    return OmegaConf.create(
        {"targets": [85], "final_minutes": 1, "final_seeds": [0, 1], "max_ms": None} | other
    )


def test_fast_networks_that_learn_little_are_not_trained_longer():
    rung = {0: (0.01, 12), 1: (0.2, 60), 2: (0.22, 61), 3: (0.3, 65), 4: (0.4, 70)}
    found = guesses(known(rung), RUNGS, settings())
    assert in_turns(found, [85])[:1] == [4]
    assert {0, 1, 2}.isdisjoint(in_turns(found, [85]))
    assert in_turns(found, [72, 85])[:2] == [1, 4]


def test_epochs_of_a_final_run_are_what_fits_and_at_least_one():
    now = known({0: (1, 50), 1: (2, 50), 2: (3, 50)}, seconds={0: 0.5, 1: 25.0, 2: 90.0})
    found = guesses(now, RUNGS, settings())
    assert [found[n].epochs for n in range(3)] == [120, 2, 1]
    assert found[2].accuracy < 50 < found[0].accuracy
    assert guesses(now, RUNGS, settings(final_minutes=2))[0].epochs == 240


def test_all_seeds_together_decide():
    rung = {0: (0.1, 70)}

    def final(**by_seed):
        finals = {(0, 60): {int(seed[1:]): acc for seed, acc in by_seed.items()}}
        return guesses(known(rung, finals=finals), RUNGS, settings())[0]

    assert (final(s0=86).final, final(s0=86).complete) == (86, False)
    assert (final(s0=86, s1=82).final, final(s0=86, s1=82).complete) == (84, True)
    assert (final(s0=86, s7=82).final, final(s0=86, s7=82).complete) == (86, False)
    failed = final(s0=86, s1=float("-inf"))
    assert failed.complete
    assert not failed.may_reach(1)
    # Of another length it is another run.
    other = guesses(known(rung, finals={(0, 50): {0: 86}}), RUNGS, settings())[0]
    assert other.final is None


def test_guesses_are_as_wrong_as_the_final_runs_say():
    """By the median, so that one that failed is not all."""
    rung = {n: (0.1 + n, 70) for n in range(4)}
    fair = 100 - guesses(known(rung), RUNGS, settings())[3].accuracy
    for final, ratio in {(1.2,): 1.2, (0.5,): 0.5, (1.1, 1.2, 3.0): 1.2}.items():
        finals = {(n, 60): {0: 100 - fair * one} for n, one in enumerate(final)}
        found = guesses(known(rung, finals=finals), RUNGS, settings())[3]
        assert 100 - found.accuracy == pytest.approx(ratio * fair)


def test_only_what_is_surely_less_accurate_is_out_of_play():
    close = {0: (0.29, 80.02), 1: (0.2901, 80.0), 2: (0.31, 70.0), 3: (0.2, 70.0)}
    assert in_play(known(close), None) == {0, 1, 3}
    assert in_play(known(close), 0.29) == {0, 3}
    # Compared at the highest rung; what was trained to the end stays.
    assert in_play(known(close, {3: (0.2, 74.0), 2: (0.31, 90.0)}), None) == {0, 1, 2, 3}
    assert in_play(known(close, finals={(2, 60): {0: 80.0}}), None) == {0, 1, 2, 3}


def test_what_is_out_itself_puts_nothing_out():
    """Too slow for a lower limit, or one whose final run can't be trained."""
    rung = {0: (0.30, 84.0), 1: (0.31, 79.0)}
    assert in_play(known(rung), None) == {0}
    slow = known(rung)
    slow.quiet_ms.update({0: 0.51, 1: 0.49})
    assert in_play(slow, 0.5) == {1}
    failed = known(rung, finals={(0, 60): {0: -math.inf}})
    assert 1 in in_play(failed, None)
    assert aimed(guesses(failed, RUNGS, settings(targets=[80])), 80) in ([], [1])


def test_the_first_seed_decides_whether_the_others_are_trained():
    """Those of an earlier command with other seeds don't."""
    rung = {0: (0.30, 84.0)}
    (only,) = guesses(known(rung, finals={(0, 15): {1: 90.0}}), RUNGS, settings()).values()
    assert only.epochs == 60
    now = known(rung, finals={(0, 60): {1: 90.0}})
    assert guesses(now, RUNGS, settings())[0].final is None
    now = known(rung, finals={(0, 60): {0: 80.0}})
    assert guesses(now, RUNGS, settings())[0].final == 80.0
    now = known(rung, finals={(0, 60): {0: 80.0, 1: 90.0}})
    found = guesses(now, RUNGS, settings())[0]
    assert (found.final, found.complete) == (85.0, True)

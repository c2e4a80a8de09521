"""The replay of a search on the networks of docs/results/search."""

import math
import random

import pytest

from perf.search import Network, at_once, best, by_halving, effects, fastest, read


@pytest.fixture(scope="module")
def networks():
    return read()


def test_only_random_networks_with_both_accuracies_are_read(networks):
    assert len(networks) == 81
    assert all(len(one.accuracies) == 2 and one.relative > 0 for one in networks)


@pytest.mark.parametrize("way", [at_once, by_halving])
@pytest.mark.parametrize("hours", [0.0, 0.5, 2.0])
def test_no_way_takes_more_time_than_it_has(way, hours, networks):
    order = random.Random(0).sample(networks, len(networks))
    trained = way(order, hours)
    assert sum(one.hours(12) for one in trained) <= hours
    assert best(trained, math.inf) == max([10.0, *(one.accuracies[-1] for one in trained)])


def test_halving_is_after_the_targets(networks):
    """What reaches them is found with less training."""
    targets = (70, 80)
    trained = by_halving(networks, math.inf, targets)
    for target in targets:
        assert fastest(trained, target) == fastest(networks, target)
    assert len(trained) < len(networks) / 3
    assert fastest(trained, 99) == 1.0


def test_with_time_for_all_nothing_is_missed(networks):
    """Halving leaves out only what was worse after the first rung."""
    assert at_once(networks, math.inf) == networks
    promoted = by_halving(networks, math.inf)
    fastest = min(networks, key=lambda one: one.relative)
    assert fastest in promoted
    assert max(networks, key=lambda one: one.accuracies[0]) in promoted
    assert len(promoted) < len(networks)


def test_an_effect_is_found_where_there_is_one(networks):
    """Errors are halved by a residual connection, and by nothing else."""
    made = [
        Network(
            one.relative,
            one.images_s,
            (50.0, 100 - 20 / (1 + (one.settings["residual"] is True))),
            one.settings,
        )
        for one in networks
    ]
    found, left = effects(made)
    assert left < 1e-6
    assert found.pop("residual")[0] == pytest.approx(100 * math.log(2))
    assert found.pop("1")[0] == pytest.approx(-100 * math.log(20))
    assert all(abs(effect) < 1e-6 for effect, _ in found.values())

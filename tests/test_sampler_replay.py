"""The replay of Optuna's sampler against random draws, on networks made up after real ones."""

import math
from itertools import islice

import numpy as np
import pytest

from cifar_lightning.errors import UserError
from perf.sampler import SLOWEST, SPACE, Landscape, drawn, regressors
from perf.search import read


@pytest.fixture(scope="module")
def landscape():
    return Landscape(read())


def test_sizes_are_of_the_network_as_it_is_executed():
    """A convolution a stage, each behind a stride of 2, and a linear layer."""
    plain = {"channels": [16, 32], "depth": 1, "downsample": "stride", "stem": None}
    settings = dict(read()[0].settings) | plain | {"whiten": False, "resolution": None}
    filters, linear = (3 * 16 * 9, 16 * 32 * 9), 32 * 10
    for branches in (None, True):
        macs, squared, parameters, convolutions = regressors(settings | {"branches": branches})[-4:]
        assert math.exp(macs) == pytest.approx(filters[0] * 16**2 + filters[1] * 8**2 + linear)
        assert squared == macs**2
        assert sum(filters) + linear < math.exp(parameters) < sum(filters) + linear + 150
        assert convolutions == 2


@pytest.mark.parametrize(
    "change",
    [{"stem": None, "whiten": True}, {"resolution": 16, "channels": [16] * 5, "stem_stride": 2}],
)
def test_what_can_not_be_built_is_not_made_up(change, landscape):
    settings = dict(read()[0].settings) | change
    with pytest.raises(UserError):
        landscape.network(settings, 0)


def test_a_network_is_the_same_whatever_its_settings_without_effect(landscape):
    """A stem's kernel matters where there is a stem."""
    settings = dict(read()[0].settings) | {"stem": None, "whiten": False, "stem_kernel": 2}
    first, same, other = (
        landscape.network(settings | change, 0)
        for change in ({}, {"stem_kernel": 3}, {"stem": 24, "stem_kernel": 3})
    )
    assert (first.relative, first.accuracies) == (same.relative, same.accuracies)
    assert first.relative != other.relative


def test_networks_made_up_are_like_those_they_are_made_after(landscape):
    """Drawn again a network is the same; what it is worth differs by the replay."""
    known = read()
    (first,) = islice(drawn(landscape, "random", 3), 1)
    assert landscape.network(first.settings, 3) == first
    assert landscape.network(first.settings, 4) != first
    made = [landscape.network(one.settings, 0) for one in known]
    for value in (
        lambda one: math.log(one.relative),
        lambda one: math.log(one.images_s),
        lambda one: math.log(100 - one.accuracies[1]),
    ):
        true, like = ([value(one) for one in networks] for networks in (known, made))
        assert np.corrcoef(true, like)[0, 1] > 0.8


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_replay_draws_what_is_fast_enough_and_the_same_again(sampler, landscape):
    networks = [*islice(drawn(landscape, sampler, 1), 20)]
    assert networks == [*islice(drawn(landscape, sampler, 1), 20)]
    assert all(one.relative <= SLOWEST for one in networks)
    assert {f"model.{key}" for key in networks[0].settings} == {*SPACE}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_no_network_is_trained_twice(sampler, landscape, monkeypatch):
    """Not even where only channels and a kernel that has no effect are drawn."""
    few = {key: SPACE[key] for key in ("model.channels", "model.stem_kernel")}
    fixed = dict(read()[0].settings) | {"stem": None, "whiten": False}
    make = landscape.network
    monkeypatch.setattr("perf.sampler.SPACE", few)
    monkeypatch.setattr(landscape, "network", lambda drawn, seed: make(fixed | drawn, seed))
    networks = [*islice(drawn(landscape, sampler, 0), 24)]
    assert len({one.relative for one in networks}) == len(networks)

"""The replay of Optuna's sampler against random draws, on networks made up after real ones."""

import math
from itertools import islice

import numpy as np
import pytest
from torch import nn

from cifar_lightning.config.components import construct
from cifar_lightning.config.options import option
from cifar_lightning.models.complexity import count_macs
from perf.sampler import SLOWEST, SPACE, Landscape, drawn, size
from perf.search import read

MODEL = option("model", "cifarnet", {"data": {"num_classes": 10}})


@pytest.fixture(scope="module")
def landscape():
    return Landscape(read())


def test_sizes_are_those_of_networks_that_are_built(landscape):
    for one in [*islice(drawn(landscape, "random", 0), 6), *read()[::16]]:
        network = construct("model", MODEL | dict(one.settings) | {"branches": None})
        filters = [it.weight for it in network.modules() if isinstance(it, nn.Conv2d)]
        linear = network.fc.in_features * network.fc.out_features
        macs = count_macs(network) - linear
        assert size(one.settings) == (macs, sum(it.numel() for it in filters), len(filters))


@pytest.mark.parametrize(
    "change",
    [{"stem": None, "whiten": True}, {"resolution": 16, "channels": [16] * 5, "stem_stride": 2}],
)
def test_what_can_not_be_built_has_no_size(change):
    settings = dict(read()[0].settings) | change
    with pytest.raises(ValueError):
        size(settings)


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

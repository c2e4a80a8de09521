import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning.comparison.accuracy import LEAST_STD, Accuracy, pooled_std, surely_above


def accuracy(*values, images=10_000, right=()):
    return Accuracy(values, images, right)


def test_the_standard_error_is_of_seeds_and_of_images():
    # sqrt(0.5^2 / 4 + 90 * 10 / 10,000), in points.
    found = accuracy(89.0, 90.0, 90.0, 91.0)
    assert (found.mean, found.std) == (90.0, pytest.approx(0.816497))
    assert found.error(0.5) == pytest.approx(math.sqrt(0.0625 + 0.09))
    assert accuracy(90.0).std is None
    assert accuracy(90.0, images=None).error(0.5) == math.inf


def test_the_deviation_between_seeds_is_pooled_and_never_tiny():
    groups = [accuracy(89.0, 91.0), accuracy(80.0, 80.0, 80.0), accuracy(70.0)]
    assert pooled_std(groups) == pytest.approx(math.sqrt(2 / 3))  # 2 on 1 + 2 degrees of freedom
    assert pooled_std([accuracy(90.0, 90.0)]) == LEAST_STD == 0.25
    assert pooled_std([]) == LEAST_STD


def test_two_seeds_are_no_punishment():
    """Student's interval of two seeds was 13 standard errors wide on either side."""
    one, two = accuracy(86.0), accuracy(85.9, 86.1)
    assert two.error(0.25) < one.error(0.25)


def images(wrong, count=1000):
    right = np.ones(count, bool)
    right[list(wrong)] = False
    return right


def test_what_both_get_wrong_does_not_count():
    """McNemar's variance: 20 of 1,000 images differ, all in favour of the first."""
    first, second = images(range(80)), images(range(100))
    known = (
        accuracy(92.0, images=1000, right=(first,)),
        accuracy(90.0, images=1000, right=(second,)),
    )
    unknown = accuracy(92.0, images=1000), accuracy(90.0, images=1000)
    # (q - d^2) / N = (0.02 - 0.0004) / 1000; the binomial terms are 8 times as large.
    assert surely_above(*known, pooled=0.25)
    assert not surely_above(*unknown, pooled=0.25)
    assert not surely_above(*known[::-1], pooled=0.25)
    shuffled = accuracy(90.0, images=1000, right=(images(range(900, 1000)),))
    assert not surely_above(known[0], shuffled, pooled=0.25)


def test_the_difference_is_taken_over_all_pairs_of_runs():
    runs = images(range(80)), images(range(40, 120))
    both = accuracy(92.0, 92.0, images=1000, right=runs)
    other = accuracy(91.0, images=1000, right=(images(range(90)),))
    # Exactly one is right on 10 and on 70 images: q is 0.04, the limit 1.151 points.
    limit = 1.64 * math.sqrt(0.25**2 * 1.5 + (1e4 * 0.04 - 1) / 1000)
    assert 1.15 < limit < 1.16
    assert not surely_above(both, other, pooled=0.25)
    assert surely_above(both, accuracy(90.8, images=1000, right=other.right), pooled=0.25)


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=4),
    st.lists(st.floats(0, 100), min_size=1, max_size=4),
    st.sampled_from([None, 20, 10_000]),
)
def test_never_both_ways(first, second, count):
    one, other = accuracy(*first, images=count), accuracy(*second, images=count)
    assert not (surely_above(one, other, 0.25) and surely_above(other, one, 0.25))
    if surely_above(one, other, 0.25):
        assert one.mean > other.mean


def test_equal_networks_are_seldom_told_apart_by_chance():
    """Each of two networks gets a random part of the images wrong that the other gets right."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        hard = rng.random(2000) < 0.1
        runs = [~(hard | (rng.random(2000) < 0.03)) for _ in range(2)]
        found = [accuracy(100 * one.mean(), images=2000, right=(one,)) for one in runs]
        wrong += surely_above(*found, pooled=0.0)
    assert 8 <= wrong <= 34  # 20 are expected at 1.64 standard errors

from itertools import pairwise

import pytest
import torch

from cifar_lightning.training import schedulers


def rates(schedule, steps=100, **settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule(optimizer, total_steps=steps, **settings)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_linearly_then_falls_to_zero():
    seen = rates(schedulers.cosine, warmup=0.2)
    warm = seen[:21]
    differences = [b - a for a, b in pairwise(warm)]
    assert warm[0] > 0
    assert max(differences) == pytest.approx(min(differences))
    assert max(seen) == seen[20] == 2.0
    assert all(a > b for a, b in pairwise(seen[20:]))
    assert seen[60] == pytest.approx(1.0)  # half way down
    assert seen[-1] < 0.01


def test_linear_is_a_triangle():
    seen = rates(schedulers.linear, warmup=0.2)
    assert max(seen) == seen[20] == 2.0
    assert seen[60] == pytest.approx(1.0)  # half way down
    assert [a - b for a, b in pairwise(seen[20:])] == pytest.approx([0.025] * 79)
    assert seen[-1] == pytest.approx(0.025)  # the last step's is the last one above 0


def test_without_warm_up_the_peak_comes_first():
    assert rates(schedulers.cosine, warmup=0.0)[0] == 2.0


def test_step_falls_at_its_milestones():
    seen = rates(schedulers.step, warmup=0.0, milestones=[0.5, 0.75], gamma=0.1)
    assert seen[:50] == [2.0] * 50
    assert seen[50:75] == pytest.approx([0.2] * 25)
    assert seen[75:] == pytest.approx([0.02] * 25)


def test_milestones_are_shares_of_what_follows_the_warm_up():
    seen = rates(schedulers.step, warmup=0.2, milestones=[0.5], gamma=0.1)
    assert seen[20:60] == [2.0] * 40
    assert seen[60:] == pytest.approx([0.2] * 40)


def test_constant_stays():
    assert rates(schedulers.constant, warmup=0.1)[10:] == [2.0] * 90


@pytest.mark.parametrize(
    "settings", [{"milestones": [1.5], "gamma": 0.1}, {"milestones": [0.5], "gamma": 2}]
)
def test_step_refuses(settings):
    with pytest.raises(ValueError, match="must be"):
        rates(schedulers.step, warmup=0.0, **settings)


def test_warmup_refuses():
    with pytest.raises(ValueError, match="warmup=1"):
        rates(schedulers.cosine, warmup=1.0)

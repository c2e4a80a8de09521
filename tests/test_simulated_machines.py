import pytest

from perf.simulated_machines import MACHINES, Coverage, in_one_process, in_processes, separate

STREAMS = 40


@pytest.mark.parametrize("machine", [one for one in MACHINES if one.required], ids=lambda m: m.name)
def test_intervals_hold_the_truth(machine):
    # 80 intervals: 92 of 100 held truly would give less than 66 here once in 3,000 tests.
    assert Coverage.of(machine, in_processes, STREAMS).held >= 100 * 66 / (2 * STREAMS)


def test_one_process_does_not_know_of_its_placement():
    placement = next(machine for machine in MACHINES if machine.placement)
    assert Coverage.of(placement, in_one_process, STREAMS).held < 75


def test_separate_measuring_is_misled_by_drift():
    drift = next(machine for machine in MACHINES if machine.name.startswith("drift"))
    assert Coverage.of(drift, separate, STREAMS).held < 50

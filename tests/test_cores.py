"""What this process may use of the machine, and how its threads wait beside other programs."""

import math
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from conftest import ROOT

from cifar_lightning.system import openmp_waiting
from cifar_lightning.system.cores import others_seconds, quotas, steal_seconds, usable_cores
from cifar_lightning.system.openmp_waiting import (
    FREE_WINDOWS,
    LoadWatch,
    ShortSpin,
    computing,
    openmp_library,
)


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout.strip()


def test_only_the_cores_of_the_affinity_count():
    core = min(os.sched_getaffinity(0))
    told = python(
        f"import os; os.sched_setaffinity(0, {{{core}}});"
        "from cifar_lightning.system.cores import usable_cores; print(usable_cores())"
    )
    assert told == "1"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, [2.0]),
        ("0::/\n", {"cpu.max": "max 100000"}, []),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, [1.5]),
        # A container sees the host's name of its group, but not its folder.
        ("0::/docker/1f\n", {"cpu.max": "50000 100000"}, [0.5]),
        (
            "3:cpu,cpuacct:/x\n2:memory:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"},
            [3.0],
        ),
        (
            "3:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            [],
        ),
        (
            "3:cpu,cpuacct:/\n",  # without the link `cpu`
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            [1.5],
        ),
        ("nonsense\n0::/\n", {"cpu.max": "nonsense"}, []),
    ],
)
def test_quotas_of_control_groups(membership, files, expected, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    (tmp_path / "membership").write_text(membership)
    assert list(quotas(tmp_path, tmp_path / "membership")) == expected


def test_a_system_without_control_groups(tmp_path):
    assert list(quotas(tmp_path, tmp_path / "none")) == []


def test_a_part_of_a_core_is_no_core(monkeypatch):
    monkeypatch.setattr("cifar_lightning.system.cores.quotas", lambda: iter([1.9]))
    assert usable_cores() == 1
    monkeypatch.setattr("cifar_lightning.system.cores.quotas", lambda: iter([0.4]))
    assert usable_cores() == 1


def test_torch_gets_no_more_threads_than_there_are_cores():
    code = (
        "import torch; from cifar_lightning.system import cores; cores.usable_cores = lambda: 1;"
        "torch.set_num_threads(2); cores.limit_threads(); print(torch.get_num_threads())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "1", done.stderr
    assert python(code, OMP_NUM_THREADS="2") == "2"  # the user's choice


def test_others_are_all_but_this_process_on_its_cores(monkeypatch):
    times = psutil.cpu_times()._replace(**dict.fromkeys(psutil.cpu_times()._fields, 0.0))
    mine = times._replace(user=5.0, steal=1.0, idle=100.0, guest=4.0)
    cores = [mine, times._replace(user=50.0)]
    monkeypatch.setattr("cifar_lightning.system.cores.affinity", lambda: {0})
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(
        psutil.Process, "cpu_times", lambda self: times._replace(user=2.0, system=1.0)
    )
    assert others_seconds() == 3.0


def test_a_system_that_does_not_tell_its_load(monkeypatch):
    """Then threads wait as by default, and blocks are judged by what else is known."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert math.isnan(others_seconds())
    assert steal_seconds() == 0
    watch = LoadWatch()
    assert not any(watch.look() for _ in range(FREE_WINDOWS + 1))


def looks(shares):
    """Make a watch that meets these loads, one a second; tell what it says of each."""
    clock, used = iter(range(100)), 0.0

    def seconds():
        return used

    watch = LoadWatch(seconds, lambda: next(clock))
    told = []
    for share in shares:
        used += share
        told.append(watch.look())
    return told


def test_busy_at_once_and_free_after_a_while():
    assert looks([0.0, 0.02, 0.9]) == [False, False, True]
    told = looks([1.0] + [0.0] * FREE_WINDOWS)
    assert told == [True] * FREE_WINDOWS + [False]


def test_a_short_rest_does_not_count_as_free():
    rest = [0.0] * (FREE_WINDOWS - 1)
    assert all(looks([1.0, *rest, 0.5, *rest, 0.2, *rest]))


def test_a_little_load_changes_nothing():
    assert not any(looks([0.2] * 20))
    assert all(looks([0.3] + [0.2] * 20))


def threads():
    return len(psutil.Process().threads())


def test_threads_that_do_nothing_come_and_go_and_results_stay():
    library = openmp_library()
    assert library is not None, "torch from the package index brings GNU's OpenMP"
    images, weights = torch.randn(8, 16, 32, 32), torch.randn(16, 16, 3, 3)

    def result():
        return torch.nn.functional.conv2d(images, weights, padding=1)

    before, free = threads(), result()
    held = ShortSpin(library)
    assert threads() > before + len(os.sched_getaffinity(0))
    assert torch.equal(result(), free)
    held.release()
    limit = time.monotonic() + 5  # the system takes its time on a busy machine
    while threads() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threads() == before
    assert torch.equal(result(), free)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def busy(monkeypatch):
    """Let others be busy all the time, and the user have chosen nothing."""
    for name in openmp_waiting.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openmp_waiting, "WINDOW_S", 0.01)
    monkeypatch.setattr(openmp_waiting, "limit_threads", lambda: None)
    monkeypatch.setattr(LoadWatch, "look", lambda self: True)


def held_within(seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(thread.name == "short-spin" for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def test_computing_beside_others(two_threads, busy):
    with computing():
        assert held_within()
        with openmp_waiting.as_by_default():  # what is timed does not depend on the load
            assert not held_within(0.2)
        assert held_within()
        with computing():  # a command that calls another part that computes
            pass
        assert held_within(0.2)
    assert not held_within(0.2)


@pytest.mark.parametrize("name", openmp_waiting.CHOSEN_BY)
def test_the_users_choice_stays(name, two_threads, busy, monkeypatch):
    monkeypatch.setenv(name, "PASSIVE" if name == "OMP_WAIT_POLICY" else "1000")
    with computing():
        assert not held_within(0.2)


def test_one_thread_waits_for_none(busy):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with computing():
            assert not held_within(0.2)
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_it(two_threads, busy):
    def fail():
        with computing():
            assert held_within()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not held_within(0.2)


@pytest.mark.slow
def test_a_busy_machine_is_not_much_slower():
    """The real thing: one core burnt by another program, from the start and later."""
    code = """
import perf.busy as busy
from contextlib import nullcontext
from cifar_lightning.system.openmp_waiting import computing
busy.SECONDS = 3.0
step = busy.training_step()
for _ in range(10):
    step()
alone = min(busy.ms_a_step(step) for _ in range(3))
with busy.burner(), computing():
    start = busy.ms_a_step(step)
with computing():
    busy.ms_a_step(step)
    with busy.burner():
        later = busy.ms_a_step(step)
print(start / alone, later / alone)
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    start, later = map(float, done.stdout.split())
    assert start < 3.5  # 2.5 on a quiet machine, which a test can't ask for
    assert later < 4

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import NOBODY, needs_root

from cifar_lightning.benchmark import contention
from cifar_lightning.benchmark.contention import device_lock, device_state, lock_paths

CPU = torch.device("cpu")

HOLD = """
import sys, time, torch
from cifar_lightning.benchmark.contention import device_lock
with device_lock(torch.device("cpu")):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
    print("released", time.time(), flush=True)
"""


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch, forked):
    """Keep the tests' lock apart from real measurements."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def hold(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_measurements_do_not_overlap(caplog):
    caplog.set_level("INFO")
    process = hold(1.0)
    with device_lock(CPU):
        entered = time.time()
    released = float(process.communicate()[0].split()[1])
    assert entered >= released
    assert "waiting for another measurement" in caplog.text


def test_a_killed_holder_does_not_block():
    process = hold(60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start = time.perf_counter()
    with device_lock(CPU):
        assert time.perf_counter() - start < 1


def test_an_error_frees_the_lock():
    with pytest.raises(ZeroDivisionError), device_lock(CPU):
        _ = 1 / 0
    with device_lock(CPU):
        pass


@needs_root
def test_another_users_file_in_a_sticky_folder_is_locked(tmp_path):
    (path,) = lock_paths(CPU)
    path.touch(mode=0o644)
    os.chown(path, NOBODY, NOBODY)
    tmp_path.chmod(0o1777)
    process = hold(1.0)
    with device_lock(CPU):
        entered = time.time()
    assert entered >= float(process.communicate()[0].split()[1])
    assert path.stat().st_uid == NOBODY


def test_a_gpus_benchmark_holds_the_cpu_too(monkeypatch):
    """Launches come from there."""
    monkeypatch.setattr(contention, "device_key", lambda device: str(device))
    assert lock_paths(torch.device("cuda:0"))[1:] == lock_paths(CPU)


def test_state_of_a_cpu():
    assert set(device_state(CPU)) == {"governor", "mhz"}

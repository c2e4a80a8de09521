import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cifar_lightning.benchmark.contention import DISTURBED_ABOVE, Load, device_lock, device_state

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
def own_lock(tmp_path, monkeypatch):
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


def watch(seconds):
    load = Load(CPU)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(0.05)
        load.sample()
    return load


def test_a_busy_core_is_seen():
    before = watch(1.0).mean
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        load = watch(1.5)
    finally:
        busy.kill()
        busy.wait()
    assert load.peak >= load.mean > DISTURBED_ABOVE
    if before < 0.2:  # on a machine that was idle, it is one core's worth
        assert load.mean > 0.6


def test_own_work_is_not_counted():
    others_before = watch(0.6).mean
    load = Load(CPU)
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:
        sum(range(10000))
        load.sample()
    assert load.mean < 0.5 + others_before


def test_state_of_a_cpu():
    assert set(device_state(CPU)) == {"governor", "mhz"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_state_of_a_gpu():
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    state = device_state(torch.device("cuda"))
    assert state["sm_mhz"] > 0
    assert state["temperature_c"] > 0

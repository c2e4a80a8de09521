import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from cifar_lightning.benchmark import contention
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


def test_two_measurements_do_not_overlap(caplog, forked):
    caplog.set_level("INFO")
    process = hold(1.0)
    with device_lock(CPU):
        entered = time.time()
    released = float(process.communicate()[0].split()[1])
    assert entered >= released
    assert "waiting for another measurement" in caplog.text


def test_a_killed_holder_does_not_block(forked):
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


def test_state_of_a_gpu_that_tells_little(monkeypatch):
    class NVMLError(Exception):
        pass

    def silent(*_):
        raise NVMLError("Not Supported")

    clocks = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    reasons = {"nvmlClocksThrottleReasonGpuIdle": 1, "nvmlClocksThrottleReasonSwPowerCap": 4}
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetClockInfo=lambda _, clock: {1: 1980, 2: 2619}[clock],
        nvmlDeviceGetTemperature=silent,
        nvmlDeviceGetPowerUsage=lambda _: 71_500,
        nvmlDeviceGetProcessUtilization=silent,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 4,
        nvmlSystemGetDriverVersion=lambda: "580.65",
        **clocks,
        **reasons,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(contention, "_nvml", lambda _: nullcontext("handle"))
    assert device_state(torch.device("cuda")) == {
        "others": None,
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": None,
        "power_w": 71.5,
        "throttle_reasons": ["SwPowerCap"],
        "driver": "580.65",
    }
    monkeypatch.setattr(contention, "_nvml", silent)
    assert device_state(torch.device("cuda")) == {"unknown": "Not Supported"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_state_of_a_gpu():
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    state = device_state(torch.device("cuda"))
    assert state["sm_mhz"] > 0
    assert state["temperature_c"] > 0

"""What a GPU's driver tells, by a stand-in for it, and what tables make of that."""

import os
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from simulated import benchmark
from simulated import candidate as timed_candidate
from test_results import MEASUREMENT, RUN, place, read_csv

from cifar_lightning.benchmark import contention, nvml
from cifar_lightning.benchmark.nvml import GPUMonitor
from cifar_lightning.benchmark.summary import summary
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.gpu import GPUActivity
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.table import write_table

ME, OTHER = os.getpid(), 4_000_001
GPU = torch.device("cuda:0")


class FakeNVML:
    """The part of ``pynvml`` that is used, of a GPU whose processes and answers a test sets.

    Attributes:
        processes: That have a context.
        used: What the driver has noted of each process's use, by moments in seconds.
        refused: Queries that this driver does not answer.
        mask: Why the clock is not at its highest.
    """

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, clock):
        self.clock = clock
        self.nvmlClocksThrottleReasonGpuIdle = 1
        self.nvmlClocksThrottleReasonSwPowerCap = 4
        self.nvmlClocksThrottleReasonHwThermalSlowdown = 64
        self.nvmlClocksThrottleReasonAll = 69
        self.processes, self.used, self.refused, self.mask = [ME], [], set(), 0

    def __getattr__(self, query):
        answers = {
            "nvmlDeviceGetClockInfo": lambda kind: {1: 1980, 2: 3201}[kind],
            "nvmlDeviceGetTemperature": lambda sensor: 38,
            "nvmlDeviceGetPowerUsage": lambda: 128_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda: self.mask,
            "nvmlDeviceGetComputeRunningProcesses": lambda: [
                SimpleNamespace(pid=pid) for pid in self.processes
            ],
            "nvmlDeviceGetGraphicsRunningProcesses": list,
            "nvmlDeviceGetProcessUtilization": self._utilization,
        }

        def ask(handle, *arguments):
            if query in self.refused:
                raise self.NVMLError("Not Supported")
            return answers[query](*arguments)

        return ask

    def _utilization(self, since):
        new = [one for one in self.used if since < one[0] * 1e6 <= self.clock.now * 1e6]
        if not new:
            raise self.NVMLError("Not Found")
        return [SimpleNamespace(timeStamp=at * 1e6, pid=pid, smUtil=util) for at, pid, util in new]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(nvml, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


@pytest.fixture
def driver(clock):
    return FakeNVML(clock)


def seen(driver, clock, seconds, monitor=None):
    """Look at the GPU at some moments after its monitor was made; sum it up."""
    monitor, start = monitor or GPUMonitor(driver, "handle"), clock.now
    states = []
    for second in seconds:
        clock.now = start + second
        states.append(monitor.state())
    return GPUActivity.of([states])


def test_a_state_is_what_the_driver_tells(driver, clock):
    found = seen(driver, clock, [1, 2])
    assert found == GPUActivity(0.0, 0.0, 1.0, 1980, 38, 128)
    assert found.marks == []
    assert str(found) == (
        "1980 MHz, 38 °C, 128 W, throttled in 0 % of the rounds, other processes used 0 % of it, "
        "which is known for 100 % of the time"
    )


def test_in_a_container_the_only_process_is_this_one(driver, clock):
    """Whose number there is another one."""
    driver.processes = [OTHER]
    assert seen(driver, clock, [1, 2]).coverage == 1.0


def test_a_missing_sample_is_told_next_time(driver, clock):
    """The driver notes use about once a second; states are asked for ten times as often."""
    driver.processes = [ME, OTHER]
    start = clock.now
    driver.used = [(start + 1, ME, 60), (start + 1, OTHER, 30)]
    monitor = GPUMonitor(driver, "handle")
    clock.now = start + 0.5
    assert monitor.state()["others"] is None
    clock.now = start + 1.0
    state = monitor.state()
    assert (state["others"], state["others_s"]) == (0.3, pytest.approx(1.0))
    assert state["since_s"] == pytest.approx(0.5)


def test_known_windows_are_averaged_and_how_much_is_known_is_recorded(driver, clock):
    driver.processes = [ME, OTHER]
    start = clock.now
    driver.used = [(start + 1, ME, 50), (start + 1, OTHER, 50), (start + 2, ME, 50)]
    found = seen(driver, clock, [1, 2, 3, 4])  # after the second second nothing is noted
    assert found.others == pytest.approx(0.25)
    assert found.coverage == pytest.approx(0.5)
    assert found.marks == ["shared 25 %"]


def test_who_of_several_this_process_is_may_not_be_known(driver, clock):
    driver.processes = [OTHER, OTHER + 1]
    driver.used = [(clock.now + 1, OTHER, 90)]
    found = seen(driver, clock, [1, 2])
    assert (found.others, found.coverage) == (None, 0.0)
    assert found.marks == ["load unknown"]
    assert "use by other processes unknown" in str(found)
    # A later window is known again, and says nothing of that one.
    monitor = GPUMonitor(driver, "handle")
    start = clock.now
    seen(driver, clock, [1], monitor)
    driver.processes = [ME]
    clock.now = start + 2
    assert monitor.state()["others_s"] == pytest.approx(1.0)


@pytest.mark.parametrize("refused", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo"])
def test_what_a_driver_refuses_is_missing_alone(refused, driver, clock):
    driver.refused = {refused, "nvmlDeviceGetProcessUtilization"}
    found = seen(driver, clock, [1])
    told = {"sm_mhz": found.sm_mhz, "temperature_c": found.temperature_c, "power_w": found.power_w}
    missing = "power_w" if "Power" in refused else "sm_mhz"
    assert [name for name, value in told.items() if value is None] == [missing]
    assert found.others == 0.0


def test_nothing_told_is_nothing_known(driver, clock):
    driver.refused = {
        "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetProcessUtilization",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    }  # fmt: skip
    found = seen(driver, clock, [1])
    assert (found.throttled, found.others, found.marks) == (None, None, ["load unknown"])
    assert GPUActivity.of([[], []]).marks == ["load unknown"]  # not even NVML
    assert GPUActivity().marks == []  # no GPU


@pytest.mark.parametrize(("mask", "throttled"), [(0, 0), (1, 0), (4, 1), (5, 1), (64, 1)])
def test_idle_is_not_throttled(mask, throttled, driver, clock):
    driver.mask = mask
    assert seen(driver, clock, [1]).throttled == throttled


def test_states_are_not_asked_for_too_often(driver, clock, monkeypatch):
    monkeypatch.setattr(contention, "gpu_monitor", lambda device: GPUMonitor(driver, "handle"))
    look = contention.state_now_and_then(GPU)
    found = []
    for _ in range(100):
        clock.now += 0.03
        found.append(look() is not None)
    assert sum(found) == 25
    assert contention.state_now_and_then(torch.device("cpu"))() is None
    monkeypatch.setattr(contention, "gpu_monitor", lambda device: "needs nvidia-ml-py")
    assert contention.state_now_and_then(GPU)() is None
    state = contention.device_state(GPU)
    assert state["unknown"] == "needs nvidia-ml-py"
    assert "governor" in state  # the CPU launches its work


def with_states(record, *states):
    """Put a state into each of a record's rounds, in turns."""
    turns = cycle(states)
    sessions = [
        replace(session, rounds=[replace(one, states=[next(turns)]) for one in session.rounds])
        for session in record.sessions
    ]
    return replace(record, clock="cuda_event", sessions=sessions)


HOT = {"throttle_reasons": ["SwThermalSlowdown"], "since_s": 1.0, "others": 0.0, "others_s": 1.0}
COOL = HOT | {"throttle_reasons": ["GpuIdle"]}


def test_throttled_rounds_are_marked_like_preempted_blocks():
    """Not left out; more than half of them make all rows disturbed."""
    record = benchmark([(timed_candidate("a"), 1.0)])
    often, rarely = with_states(record, HOT, HOT, COOL), with_states(record, HOT, COOL, COOL)
    assert often.timing(0).gpu.throttled == pytest.approx(0.67)
    assert often.timing(0).disturbances == ["the GPU was throttled in 67 % of the rounds"]
    assert not rarely.timing(0).disturbed
    assert rarely.timing(0).gpu.marks == ["throttled 34 %"]
    assert often.timing(0).latency.n == rarely.timing(0).latency.n == record.timing(0).latency.n
    assert BenchmarkRecord.decoded(often.to_json()) == often
    assert "GPU: throttled in 67 % of the rounds" in summary(often)
    assert "GPU" not in summary(record)


def test_a_row_shows_what_is_not_known_of_its_gpu(tmp_path):
    one = replace(MEASUREMENT, clock="cuda_event", gpu=GPUActivity(0.4, None, 0.0))
    folder = place(tmp_path, RUN, one)
    assert Measurement.read(one.path(folder)) == one
    write_table(tmp_path)
    (row,) = read_csv(tmp_path)
    assert (row["throttled"], row["gpu_shared"]) == ("0.4", "")
    assert row["marks"] == "load unknown, throttled 40 %"
    assert "(load unknown) (throttled 40 %)" in (tmp_path / "results.md").read_text()

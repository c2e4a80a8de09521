"""What is the device's time and what is launching's, on a simulated GPU: nothing here is timed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_results import MEASUREMENT

from cifar_lightning.benchmark import launches
from cifar_lightning.runs.latency import Launches


class SimulatedGPU:
    """A queue of launches, and two clocks: the host's and that of the device that follows it.

    Args:
        launch_s: How long the host takes to launch one kernel.
        kernel_s: How long the device takes to execute it.
        depth: How many launches the queue holds; whoever launches more has to wait.
    """

    def __init__(self, launch_s, kernel_s, depth=1024):
        self.launch_s, self.kernel_s, self.depth = launch_s, kernel_s, depth
        self.now = self.free = 0.0
        self.ends = []

    def launch(self, seconds):
        self.now += self.launch_s
        pending = [end for end in self.ends if end > self.now]
        if len(pending) >= self.depth:
            self.now = pending[-self.depth]
        self.free = max(self.free, self.now) + seconds
        self.ends = [*pending, self.free]

    def synchronize(self):
        self.now = max(self.now, self.free)

    def forward(self, kernels):
        for _ in range(kernels):
            self.launch(self.kernel_s)

    def patch(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(gpu.free, gpu.now)

            def query(self):
                return gpu.now >= self.at

            def elapsed_time(self, end):
                return 1000 * (end.at - self.at)

        def sleep(cycles):
            self.launch(cycles / launches.CYCLES_PER_S)

        cuda = SimpleNamespace(Event=Event, _sleep=sleep, synchronize=self.synchronize)
        monkeypatch.setattr(launches, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(launches, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def measure(self, call):
        return launches.time_launches(call, None, SimpleNamespace(eager=False))


@pytest.mark.parametrize("kernels", [1, 35, 150, 1000])
def test_the_devices_time_leaves_out_launching_however_many_kernels_a_call_has(
    kernels, monkeypatch
):
    """Twenty calls of a light network's 150 kernels are more than the queue holds."""
    gpu = SimulatedGPU(launch_s=15e-6, kernel_s=3e-6)
    gpu.patch(monkeypatch)
    found = gpu.measure(lambda: gpu.forward(kernels))
    assert found.device_ms == pytest.approx(1000 * kernels * gpu.kernel_s)
    assert found.enqueue_ms == pytest.approx(1000 * kernels * gpu.launch_s)
    assert found.graph_ms is None


def test_a_full_queue_is_no_launching(monkeypatch):
    """Where the device is what takes long: the host would wait for room in the queue."""
    gpu = SimulatedGPU(launch_s=5e-6, kernel_s=100e-6, depth=100)
    gpu.patch(monkeypatch)
    found = gpu.measure(lambda: gpu.forward(50))
    assert found.device_ms == pytest.approx(5.0)
    assert found.enqueue_ms == pytest.approx(0.25)


def test_another_process_on_the_device_does_not_count(monkeypatch):
    """It takes some of the time in which ours would work, but not each time."""
    gpu, tries = SimulatedGPU(launch_s=15e-6, kernel_s=3e-6), []
    gpu.patch(monkeypatch)
    timed = launches._queued_ms

    def shared(call, calls, enqueue_s):
        tries.append(calls)

        def interrupted():
            call()
            gpu.free += 2e-3 * (len(tries) != 3)

        return timed(interrupted, calls, enqueue_s)

    monkeypatch.setattr(launches, "_queued_ms", shared)
    assert gpu.measure(lambda: gpu.forward(35)).device_ms == pytest.approx(0.105)
    assert tries == [20] * launches.REPEATS


@pytest.mark.parametrize("waits", [True, False])
def test_what_can_not_be_queued_has_no_time_of_the_device_alone(waits, monkeypatch):
    """A call that waits for the device, or has more kernels than the queue holds."""
    gpu = SimulatedGPU(launch_s=15e-6, kernel_s=3e-6)
    gpu.patch(monkeypatch)

    def call():
        gpu.forward(10 if waits else 2000)
        if waits:
            gpu.synchronize()

    assert gpu.measure(call).device_ms is None


def test_launch_bound_is_what_takes_longer_than_the_device():
    mean_ms = MEASUREMENT.latency.mean_ms
    for device_ms, bound in ((mean_ms / 1.2, False), (mean_ms / 1.4, True), (None, None)):
        one = replace(MEASUREMENT, launches=Launches(1.0, device_ms))
        assert one.launch_bound is bound
    assert MEASUREMENT.launch_bound is None

"""Who else is on the device while something is measured on it, and in what state the device is.

The lock keeps our own measurements apart; the load of other processes is watched, not prevented.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

DISTURBED_ABOVE = 0.10  # of one CPU core, or of the GPU


def device_key(device: torch.device) -> str:
    """Identify a device on this machine: a GPU by its UUID, the CPU as one."""
    if device.type == "cuda":
        return f"gpu-{torch.cuda.get_device_properties(device).uuid}"
    return device.type


@contextmanager
def device_lock(device: torch.device) -> Iterator[None]:
    """Hold the device for one measurement; wait, and say so, while another one holds it.

    The lock is the operating system's: it ends with the process that holds it, however that ends.
    """
    path = Path(tempfile.gettempdir()) / f"cifar-lightning-{device_key(device)}.lock"
    lock = FileLock(path, mode=0o666)  # other users of the machine measure, too
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another measurement on this device (%s)", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Load:
    """Watches how much of the machine other processes use, from its making on.

    Call `sample` every now and then; between two calls lies one window. On a CPU the unit is one
    core: 0.5 is half a core kept busy by others, time stolen by other virtual machines included.
    On a GPU it is the share of time in which others' kernels ran, where the driver tells.
    """

    MIN_WINDOW_S = 0.2  # the counters tick every 10 ms

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._windows: list[tuple[float, float]] = []  # seconds, share
        self._time, self._busy = time.perf_counter(), self._others_seconds()

    def sample(self) -> None:
        """Close a window, if it is long enough to be told from the clock's ticks."""
        now = time.perf_counter()
        seconds = now - self._time
        if seconds < self.MIN_WINDOW_S:
            return
        if self._device.type == "cuda":
            share = _gpu_share_of_others(self._device) or 0.0
        else:
            busy = self._others_seconds()
            share = max(0.0, busy - self._busy) / seconds
            self._busy = busy
        self._windows.append((seconds, share))
        self._time = now

    @property
    def mean(self) -> float:
        """The mean share over all windows."""
        seconds = sum(window for window, _ in self._windows)
        return sum(window * share for window, share in self._windows) / seconds if seconds else 0.0

    @property
    def peak(self) -> float:
        """The largest share in a window."""
        return max((share for _, share in self._windows), default=0.0)

    @staticmethod
    def _others_seconds() -> float:
        """Seconds that cores were busy, without this process."""
        machine = psutil.cpu_times()._asdict()
        # guest time is in user time already
        idle = {"idle", "iowait", "guest", "guest_nice"}
        own = psutil.Process().cpu_times()
        busy = sum(seconds for kind, seconds in machine.items() if kind not in idle)
        return float(busy - own.user - own.system)


def device_state(device: torch.device) -> dict[str, Any]:
    """Tell clocks, temperature and the like, as far as this machine says.

    Returns:
        On a GPU: ``sm_mhz``, ``memory_mhz``, ``temperature_c``, ``power_w``, ``throttle_reasons``
        and ``others`` (share of the GPU used by other processes, None if unknown). Needs
        ``nvidia-ml-py``; without it ``{"unknown": <the reason>}``. On a CPU: ``governor`` and
        ``mhz``, None where the system does not tell.
    """
    if device.type != "cuda":
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        frequency = psutil.cpu_freq()
        return {
            "governor": governor.read_text().strip() if governor.exists() else None,
            "mhz": frequency.current if frequency else None,
        }
    try:
        import pynvml
    except ImportError:
        return {"unknown": "needs nvidia-ml-py: pip install 'cifar-lightning[gpu]'"}
    try:
        with _nvml(device) as handle:
            return {
                "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
                "temperature_c": pynvml.nvmlDeviceGetTemperature(
                    handle, pynvml.NVML_TEMPERATURE_GPU
                ),
                "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                "throttle_reasons": _throttle_reasons(handle),
                "driver": pynvml.nvmlSystemGetDriverVersion(),
                "others": _gpu_share_of_others(device),
            }
    except pynvml.NVMLError as error:
        return {"unknown": str(error)}


@contextmanager
def _nvml(device: torch.device) -> Iterator[Any]:
    import pynvml

    pynvml.nvmlInit()
    try:
        uuid = torch.cuda.get_device_properties(device).uuid
        yield pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    finally:
        pynvml.nvmlShutdown()


def _throttle_reasons(handle: Any) -> list[str]:
    import pynvml

    mask = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    prefix = "nvmlClocksThrottleReason"
    return [
        name.removeprefix(prefix)
        for name, bit in vars(pynvml).items()
        if name.startswith(prefix) and isinstance(bit, int) and bit.bit_count() == 1 and mask & bit
    ]


def _gpu_share_of_others(device: torch.device) -> float | None:
    """Share of the GPU's time that other processes used lately; None where it is not told."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        with _nvml(device) as handle:
            since = int((time.time() - 1) * 1e6)
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
            return float(sum(s.smUtil for s in samples if s.pid != os.getpid())) / 100
    except pynvml.NVMLError as error:
        # Nobody used the GPU in that second: no samples are an error to NVML.
        return 0.0 if isinstance(error, pynvml.NVMLError_NotFound) else None

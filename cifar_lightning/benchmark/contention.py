"""Who else is on the device while something is measured on it, and in what state the device is.

The lock keeps our own measurements apart; the load of other processes is watched, not prevented.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from cifar_lightning.system import signals
from cifar_lightning.system.devices import device_key
from cifar_lightning.system.environment import DeviceState, installation
from cifar_lightning.system.locks import locked

DISTURBED_ABOVE = 0.10  # of one CPU core, or of the GPU


def lock_path(device: torch.device) -> Path:
    """Tell which file all users of this machine lock while they measure on a device."""
    return Path(tempfile.gettempdir()) / f"cifar-lightning-{device_key(device)}.lock"


def device_lock(device: torch.device) -> AbstractContextManager[None]:
    """Hold the device for one measurement; wait, and say so, while another one holds it.

    Raises:
        UserError: If another user's lock file is in the way.
    """
    return locked(lock_path(device), "waiting for another measurement on this device")


class Load:
    """Watches how much of the machine other processes use, from its making on.

    Call `sample` every now and then; between two calls lies one window. On a CPU the unit is one
    core: 0.5 is half a core kept busy by others, time stolen by other virtual machines included.
    On a GPU it is the fraction of time in which others' kernels ran, where the driver tells.
    """

    MIN_WINDOW_S = 0.2  # the counters tick every 10 ms

    def __init__(self, device: torch.device) -> None:
        self.training_device = device
        self._windows: list[tuple[float, float]] = []  # seconds, fraction
        self._known = True
        self._time, self._busy = time.perf_counter(), self._others_seconds()

    def sample(self) -> None:
        """Close a window, if it is long enough to be told from the clock's ticks."""
        now = time.perf_counter()
        seconds = now - self._time
        if seconds < self.MIN_WINDOW_S:
            return
        if self.training_device.type == "cuda":
            told = _gpu_fraction_of_others(self.training_device)
            self._known = self._known and told is not None
            fraction = told or 0.0
        else:
            busy = self._others_seconds()
            fraction = max(0.0, busy - self._busy) / seconds
            self._busy = busy
        self._windows.append((seconds, fraction))
        self._time = now

    def on_block_end(self) -> None:
        """Sample, and end the measurement if a signal has come."""
        self.sample()
        signals.check()

    @property
    def mean(self) -> float | None:
        """The mean fraction over all windows; None where the driver does not tell."""
        if not self._known:
            return None
        seconds = sum(window for window, _ in self._windows)
        return (
            sum(window * fraction for window, fraction in self._windows) / seconds
            if seconds
            else 0.0
        )

    @property
    def peak(self) -> float | None:
        """The largest fraction in a window; None where the driver does not tell."""
        if not self._known:
            return None
        return max((fraction for _, fraction in self._windows), default=0.0)

    @staticmethod
    def _others_seconds() -> float:
        """Seconds that cores were busy, without this process."""
        machine = psutil.cpu_times()._asdict()
        # guest time is in user time already
        idle = {"idle", "iowait", "guest", "guest_nice"}
        own = psutil.Process().cpu_times()
        busy = sum(seconds for kind, seconds in machine.items() if kind not in idle)
        return float(busy - own.user - own.system)


def device_state(device: torch.device) -> DeviceState:
    """Tell clocks, temperature and the like; of a GPU only with ``nvidia-ml-py``."""
    if device.type != "cuda":
        governor = mhz = None
        with suppress(OSError, UnicodeError):
            text = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text()
            governor = text.strip()
        with suppress(Exception):  # psutil parses what each kernel writes in its own way
            mhz = psutil.cpu_freq().current
        return {"governor": governor, "mhz": mhz}
    try:
        import pynvml
    except ImportError:
        return {"unknown": f"needs nvidia-ml-py: {installation('gpu')}"}

    def told(query: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return query(*arguments)
        except pynvml.NVMLError:  # a card that lacks one may have the others
            return None

    try:
        with _nvml(device) as handle:
            power_mw = told(pynvml.nvmlDeviceGetPowerUsage, handle)
            clock, heat = pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetTemperature
            return {
                "others": _gpu_fraction_of_others(device),
                "sm_mhz": told(clock, handle, pynvml.NVML_CLOCK_SM),
                "memory_mhz": told(clock, handle, pynvml.NVML_CLOCK_MEM),
                "temperature_c": told(heat, handle, pynvml.NVML_TEMPERATURE_GPU),
                "power_w": None if power_mw is None else power_mw / 1000,
                "throttle_reasons": told(_throttle_reasons, handle),
                "driver": told(pynvml.nvmlSystemGetDriverVersion),
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


def _gpu_fraction_of_others(device: torch.device) -> float | None:
    """Share of the GPU's time that other processes used lately; None where it is not told."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        with _nvml(device) as handle:
            since = int((time.time() - 1) * 1e6)
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
            if all(sample.pid != os.getpid() for sample in samples):
                return None  # in a container the driver may know us by another number
            return float(sum(s.smUtil for s in samples if s.pid != os.getpid())) / 100
    except pynvml.NVMLError:
        return None

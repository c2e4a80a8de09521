"""What NVIDIA's driver tells of a GPU: clocks, heat, power, throttling, and who else uses it."""

import os
import time
from functools import cache
from typing import Any

import torch

from cifar_lightning.system.environment import DeviceState, installation

SAMPLE_S = 0.1  # during a benchmark, states are at least so far apart
MICRO = 1e6
_REASON = "nvmlClocksThrottleReason"


class GPUMonitor:
    """Watches one GPU on which this process has a context.

    Drivers in virtual machines and of small cards refuse single queries; each has an answer of its
    own, which is None then.

    Args:
        nvml: The module ``pynvml``, initialised.
        handle: The GPU's.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._sampled = self._known_until = time.time()

    def state(self) -> DeviceState:
        """Tell what the GPU does now, and what other processes did on it since last time."""
        nvml, now = self._nvml, time.time()
        others, others_s = self._use_by_others(now)
        state: DeviceState = {
            "since_s": max(0.0, now - self._sampled),
            "others": others,
            "others_s": others_s,
            "sm_mhz": self._told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": self._told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "temperature_c": self._told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "power_w": self.power_w(),
            "throttle_reasons": self._throttle_reasons(),
        }
        self._sampled = now
        return state

    def state_if_due(self) -> DeviceState | None:
        """Tell the state, unless it was told a moment ago."""
        return self.state() if time.time() - self._sampled >= SAMPLE_S else None

    def power_w(self) -> float | None:
        """Tell the power that the card takes now, in watts."""
        milliwatts = self._told("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def energy_j(self) -> float | None:
        """Tell the energy that the card has taken since its driver was loaded, in joules.

        Cards before Volta don't count it.
        """
        millijoules = self._told("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def driver(self) -> str | None:
        """Tell the driver's version."""
        try:
            return str(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError:
            return None

    def _told(self, query: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, query)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def _throttle_reasons(self) -> list[str] | None:
        mask = self._told("nvmlDeviceGetCurrentClocksThrottleReasons")
        if mask is None:
            return None
        return [
            name.removeprefix(_REASON)
            for name, bit in vars(self._nvml).items()
            if name.startswith(_REASON)
            and isinstance(bit, int)
            and bit.bit_count() == 1
            and mask & bit
        ]

    def _use_by_others(self, now: float) -> tuple[float | None, float]:
        """Tell which fraction of the time other processes used, and for how many seconds of it.

        The driver notes about once a second how much each process used; what it has not noted yet
        is told next time.
        """
        me, processes = os.getpid(), self._processes()
        if len(processes) == 1:  # ours, by whatever number the driver knows a container's
            return 0.0, self._known_for(now)
        since = int(self._known_until * MICRO)
        used = self._told("nvmlDeviceGetProcessUtilization", since) or []
        if me not in processes.union(one.pid for one in used):
            self._known_for(now)
            return None, 0.0  # which of them is this process is not known
        if not used:
            return None, 0.0
        theirs = sum(min(one.smUtil, 100) for one in used if one.pid != me) / 100
        return min(1.0, theirs), self._known_for(max(one.timeStamp for one in used) / MICRO)

    def _known_for(self, until: float) -> float:
        since, self._known_until = self._known_until, max(until, self._known_until)
        return self._known_until - since

    def _processes(self) -> set[int]:
        """List the processes that have a context on the GPU."""
        kinds = "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"
        return {one.pid for kind in kinds for one in self._told(kind) or []}


@cache
def gpu_monitor(device: torch.device) -> GPUMonitor | str:
    """Open a GPU, once a process; or tell why it can't be watched."""
    torch.zeros(1, device=device)  # makes the context by which the driver knows this process
    try:
        import pynvml
    except ImportError:
        return f"needs nvidia-ml-py: {installation('gpu')}"
    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        pynvml.nvmlInit()
        return GPUMonitor(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError as error:
        return str(error)

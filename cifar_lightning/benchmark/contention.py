"""One benchmark at a time on a device, and in what state the device is."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from cifar_lightning.system.devices import device_key
from cifar_lightning.system.environment import DeviceState, installation
from cifar_lightning.system.locks import locked


def lock_paths(device: torch.device) -> list[Path]:
    """Tell which files all users of this machine lock while they measure on a device.

    On a GPU the CPU's, too: launches come from there.
    """
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    folder = Path(tempfile.gettempdir())
    return [folder / f"cifar-lightning-{device_key(one)}.lock" for one in devices]


@contextmanager
def device_lock(device: torch.device) -> Iterator[None]:
    """Hold the device for one benchmark; wait, and say so, while another one holds it.

    Raises:
        UserError: If another user's lock file is in the way.
        Interrupted: If a signal came while waiting.
    """
    with ExitStack() as stack:
        for path in lock_paths(device):
            stack.enter_context(locked(path, "waiting for another measurement on this device"))
        yield


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

"""One benchmark at a time on a device, and in what state the device is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import torch

from cifar_lightning.benchmark.nvml import GPUMonitor, gpu_monitor
from cifar_lightning.system.devices import device_key
from cifar_lightning.system.environment import DeviceState
from cifar_lightning.system.files import temporary_folder
from cifar_lightning.system.locks import locked


def lock_paths(device: torch.device) -> list[Path]:
    """Tell which files all users of this machine lock while they measure on a device.

    On a GPU the CPU's, too: launches come from there.
    """
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    folder = temporary_folder()
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
    """Tell clocks, temperature and the like: of a GPU beside the CPU's, which launches its work."""
    state = _cpu_state()
    if device.type == "cuda":
        monitor = gpu_monitor(device)
        if isinstance(monitor, str):
            return state | {"unknown": monitor}
        state |= monitor.state() | {"driver": monitor.driver()}
    return state


def _cpu_state() -> DeviceState:
    governor = mhz = None
    with suppress(OSError, UnicodeError):
        text = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text()
        governor = text.strip()
    with suppress(Exception):  # psutil parses what each kernel writes in its own way
        mhz = psutil.cpu_freq().current
    return {"governor": governor, "mhz": mhz}


def state_now_and_then(device: torch.device) -> Callable[[], DeviceState | None]:
    """Make what looks at a GPU between blocks: its state since now, None if there is none to tell.

    A CPU's blocks bring their own evidence.
    """
    monitor = gpu_monitor(device) if device.type == "cuda" else None
    if not isinstance(monitor, GPUMonitor):
        return lambda: None
    monitor.state()  # what was before is not asked for
    return monitor.state_if_due

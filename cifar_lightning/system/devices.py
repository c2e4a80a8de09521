"""The devices that torch finds here, and their names."""

import torch

from cifar_lightning.errors import DeviceLost, bad_value, reason_of
from cifar_lightning.system.processor import processor, slug


def device_name(device: torch.device) -> str:
    """Name the hardware for people and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = processor().title
    return cpu if device.type == "cpu" else f"{cpu} ({device.type})"


def hardware_slug(device: torch.device) -> str:
    """Make the hardware's identity fit for a file name."""
    if device.type == "cuda":
        return slug(device_name(device))
    cpu = processor().slug
    return cpu if device.type == "cpu" else f"{cpu}-{device.type}"


def find_device(name: str) -> torch.device:
    """Find a device by name; ``auto`` takes a GPU where there is one.

    Raises:
        UserError: If it is not there.
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    there.append("cpu")
    wanted = {"auto": there[0], "cuda": "cuda:0", "gpu": "cuda:0"}.get(name, name)
    if wanted not in there:
        raise bad_value("device", name, f"auto, {', '.join(there)} on this machine")
    return torch.device(wanted)


def check_usable(device: torch.device, error: BaseException) -> None:
    """See that a device still computes after an error.

    After some of CUDA's, such as an illegal address, every later call of the process fails.

    Args:
        device: Where it happened.
        error: What happened.

    Raises:
        DeviceLost: If it does not.
    """
    if device.type != "cuda":
        return
    try:
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        pass
    except Exception:
        raise DeviceLost(
            f"{device} can't be used any more by this process, after {reason_of(error)}; "
            "the earlier measurements stay, nothing else is measured"
        ) from error


def device_key(device: torch.device) -> str:
    """Identify a device on this machine: a GPU by its UUID, the CPU as one."""
    if device.type == "cuda":
        return f"gpu-{torch.cuda.get_device_properties(device).uuid}"
    return device.type

"""The environment of a run or measurement: code, versions, machine."""

import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.processor import Processor, processor

GIT_TIMEOUT_S = 10  # a file system that hangs, or a prompt, ends nothing
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
# Of NVIDIA's driver: on Linux, on Windows' Linux, on Jetson.
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/nvhost-gpu"))
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Code:
    """The git commit, and whether the tree had changes; both None outside a checkout."""

    commit: str | None = None
    dirty: bool | None = None


class DeviceState(TypedDict, total=False):
    """What a device was doing at one moment; None each where the system or driver does not tell.

    The governor and the clock are the CPU's, all the others a GPU's; ``unknown`` says why nothing
    is known of it.
    """

    governor: str | None
    mhz: float | None
    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    throttle_reasons: list[str] | None
    driver: str | None
    since_s: float  # how long ago the state before was
    others: float | None  # the fraction of its time that other processes used lately,
    others_s: float  # and for how long that was so
    unknown: str


@dataclass(frozen=True)
class Machine:
    """The computer, without its name or address.

    Attributes:
        cores: That the process may use.
        device: Where a run was trained, for people.
        threads: With which a run was trained on the CPU; how sums are split among them
            changes how they are rounded.
    """

    system: str
    processor: Processor
    cores: int | None
    device: str | None = None
    threads: Annotated[int, Meta(ge=1, le=2**20)] | None = None


@cache
def code() -> Code:
    """Tell the state of the code; an installed copy may lie in a repository that is not ours.

    It is read once, as a process goes on with what it has loaded: every command asks for it at its
    beginning, since files may change before there is something to record.
    """
    if not (CHECKOUT / ".git").exists():
        return Code()
    git = partial(subprocess.check_output, cwd=CHECKOUT, text=True, timeout=GIT_TIMEOUT_S)
    with suppress(OSError, subprocess.SubprocessError):
        commit = git(("git", "rev-parse", "HEAD"), stderr=subprocess.DEVNULL).strip()
        return Code(commit, bool(git(("git", "status", "--porcelain"), stderr=subprocess.DEVNULL)))
    return Code()


def version(package: str) -> str | None:
    """Tell a package's version; None if it is not installed, ``unknown`` if it is not told."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    except Exception:  # whatever a damaged installation gives; nothing is computed with it
        return "unknown"


def installation(extra: str) -> str:
    """Tell what to type to get an extra's packages; the project itself is on no index."""
    needed: list[str] = []
    with suppress(metadata.PackageNotFoundError):
        needed = metadata.requires("cifar-lightning") or []
    parts = (line.partition(";") for line in needed)
    packages = [f"'{name.strip()}'" for name, _, condition in parts if f'"{extra}"' in condition]
    if not packages:  # a checkout that was not installed, or had no such extra then
        return f"pip install '.[{extra}]' in the checkout"
    return f"pip install {' '.join(packages)}"


def versions() -> dict[str, str]:
    """Tell the versions of Python and of the packages that can change a result."""
    return {"python": platform.python_version()} | {
        name: version(name) or "unknown" for name in PACKAGES
    }


def machine(device: str | None = None, threads: int | None = None) -> Machine:
    """Describe the computer."""
    system = f"{platform.system()} {platform.machine()}"
    return Machine(system, processor(), usable_cores(), device, threads)


def has_gpu_driver() -> bool:
    """Tell whether there may be a GPU for CUDA, without torch, which knows but takes seconds."""
    return any(path.exists() for path in GPU_DRIVERS)

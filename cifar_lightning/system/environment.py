"""The environment of a run or measurement: code, versions, machine."""

import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from cifar_lightning.system.cores import usable_cores

GIT_TIMEOUT_S = 10  # a file system that hangs, or a prompt, ends nothing
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
# The widest that a processor has decides which kernels run on it.
VECTORS = ("amx_tile", "avx512f", "avx2", "avx", "sse4_2", "sve2", "sve", "asimd", "neon", "vsx")
CPU_INFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
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
class Processor:
    """What a CPU is, as far as the operating system tells.

    Attributes:
        name: The maker's, for people. Several generations may share it.
        vendor: On ARM the number of the implementer.
        family: None on ARM.
        model: On ARM the part numbers of its cores.
        vector: The widest vector instructions.
        board: Where the board has a name, as on a Raspberry Pi.
    """

    name: str
    vendor: str | None = None
    family: str | None = None
    model: str | None = None
    stepping: str | None = None
    vector: str | None = None
    board: str | None = None

    @property
    def title(self) -> str:
        """Its name in tables, which tells generations and boards apart."""
        numbers = {"family": self.family, "model": self.model}
        told = " ".join(f"{key} {number}" for key, number in numbers.items() if number)
        return f"{self.board or self.name} ({told})" if told else self.board or self.name

    @property
    def slug(self) -> str:
        """Its identity as part of a file name, such as ``amd-epyc-25-17-1-avx512f``."""
        parts = [self.board or self.name, self.family, self.model, self.stepping, self.vector]
        return slug("-".join(part for part in parts if part))


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


def slug(text: str) -> str:
    """Make a text fit for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def code() -> Code:
    """Tell the state of the code; an installed copy may lie in a repository that is not ours."""
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
    try:
        needed = metadata.requires("cifar-lightning") or []
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        return f"pip install '.[{extra}]' in the checkout"
    parts = (line.partition(";") for line in needed)
    packages = [f"'{name.strip()}'" for name, _, condition in parts if f'"{extra}"' in condition]
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


@cache
def processor() -> Processor:
    """Tell this computer's CPU."""
    text = board = ""
    with suppress(OSError):
        text = CPU_INFO.read_text(errors="replace")
    with suppress(OSError):
        board = BOARD.read_text(errors="replace").strip("\0\n ")
    return parse_processor(text, board or None)


def parse_processor(text: str, board: str | None = None) -> Processor:
    """Read what Linux says of the CPU.

    Args:
        text: Of ``/proc/cpuinfo``; empty on other systems.
        board: The board's name, if it has one.
    """
    told = re.findall(r"^(.+?)[ \t]*:[ \t]*(\S.*?)[ \t]*$", text, re.M)
    first = dict(reversed(told)).get
    flags = (first("flags") or first("Features") or "").split()
    # The parts of one ARM chip's large and small cores differ.
    parts = "-".join(sorted({value for key, value in told if key == "CPU part"})) or None
    name = first("model name") or first("Model") or platform.processor() or platform.machine()
    return Processor(
        name=name or "unknown",
        vendor=first("vendor_id") or first("CPU implementer"),
        family=first("cpu family"),
        model=first("model") or parts,
        stepping=first("stepping") or first("CPU revision"),
        vector=next((vector for vector in VECTORS if vector in flags), None),
        board=board,
    )

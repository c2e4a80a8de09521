"""What this computer's CPU is, told apart by more than its name."""

import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cifar_lightning.system.cores import affinity

# The widest that a processor has decides which kernels run on it.
VECTORS = ("amx_tile", "avx512f", "avx2", "avx", "sse4_2", "sve2", "sve", "asimd", "neon", "vsx")
CPU_INFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
# Of Intel's chips whose cores differ: which are large, which small.
HYBRID = {name: Path(f"/sys/devices/cpu_{name}/cpus") for name in ("core", "atom")}


@dataclass(frozen=True)
class Processor:
    """What a CPU is, as far as the operating system tells.

    Attributes:
        name: The maker's, for people. Several generations may share it.
        vendor: On ARM the number of the implementer.
        family: None on ARM.
        model: On ARM the part numbers of the cores that the process may use.
        vector: The widest vector instructions.
        board: Where the board has a name, as on a Raspberry Pi.
        cores: ``core`` or ``atom`` where the process may use only one of Intel's two kinds.
    """

    name: str
    vendor: str | None = None
    family: str | None = None
    model: str | None = None
    stepping: str | None = None
    vector: str | None = None
    board: str | None = None
    cores: str | None = None

    @property
    def title(self) -> str:
        """Its name in tables, which tells generations and boards apart."""
        numbers = {"family": self.family, "model": self.model, "cores": self.cores}
        told = " ".join(f"{key} {number}" for key, number in numbers.items() if number)
        return f"{self.board or self.name} ({told})" if told else self.board or self.name

    @property
    def slug(self) -> str:
        """Its identity as part of a file name, such as ``amd-epyc-25-17-1-avx512f``."""
        numbers = (self.family, self.model, self.stepping, self.vector, self.cores)
        parts = [self.board or self.name, *numbers]
        return slug("-".join(part for part in parts if part))


def slug(text: str) -> str:
    """Make a text fit for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def _cpu_info() -> str:
    with suppress(OSError):
        return CPU_INFO.read_text(errors="replace")
    return ""


@cache
def cpu_features() -> frozenset[str]:
    """Tell the instructions that this computer's CPU has, as Linux calls them; none elsewhere."""
    return frozenset(_features(_cpu_info()))


def fastest_precision() -> str:
    """Tell in which precision networks of dense convolutions train fastest on this CPU.

    With AVX512-BF16, PyTorch's convolutions in bf16 do nearly twice as many operations a second as
    in fp32, and without it less than half as many (docs/recipes.md).
    """
    return "bf16-mixed" if "avx512_bf16" in cpu_features() else "32-true"


@cache
def processor() -> Processor:
    """Tell this computer's CPU."""
    text, board = _cpu_info(), ""
    with suppress(OSError):
        board = BOARD.read_text(errors="replace").strip("\0\n ")
    found = parse_processor(text, board or None, affinity())
    if not text:
        with suppress(OSError, subprocess.SubprocessError):  # of macOS
            command = ("sysctl", "-n", "machdep.cpu.brand_string")
            name = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
            return replace(found, name=name or found.name)
    return found


def parse_processor(
    text: str,
    board: str | None = None,
    usable: Collection[int] = (),
    hybrid: Mapping[str, Path] = HYBRID,
) -> Processor:
    """Read what Linux says of the CPU.

    Args:
        text: Of ``/proc/cpuinfo``; empty on other systems.
        board: The board's name, if it has one.
        usable: Numbers of the cores that the process may use; none means all.
        hybrid: Files that list the numbers of large and of small cores.
    """
    told = _pairs(text)
    sections = [_pairs(section) for section in re.split(r"\n\s*\n", text)]
    numbers = {str(number) for number in usable}
    if any(("processor", number) in section for section in sections for number in numbers):
        # Those without a number are about all, such as a board.
        told = [
            pair
            for section in sections
            if dict(section).get("processor", "") in {*numbers, ""}
            for pair in section
        ]
    first = dict(reversed(told)).get
    flags = _features(text)
    # The parts of one ARM chip's large and small cores differ.
    parts = "-".join(sorted({value for key, value in told if key == "CPU part"})) or None
    names = map(first, ("model name", "Model", "cpu", "uarch"))  # the last are POWER's and RISC-V's
    name = next(filter(None, names), None) or platform.processor() or platform.machine()
    return Processor(
        name=name or "unknown",
        vendor=first("vendor_id") or first("CPU implementer"),
        family=first("cpu family"),
        model=first("model") or parts,
        stepping=first("stepping") or first("CPU revision"),
        vector=next((vector for vector in VECTORS if vector in flags), None),
        board=board,
        cores=_only_kind(usable, hybrid),
    )


def _features(text: str) -> list[str]:
    first = dict(reversed(_pairs(text))).get
    return (first("flags") or first("Features") or "").split()


def _pairs(text: str) -> list[tuple[str, str]]:
    """Read lines of a name, a colon and a value."""
    found: list[tuple[str, str]] = re.findall(r"^(.+?)[ \t]*:[ \t]*(\S.*?)[ \t]*$", text, re.M)
    return found


def _only_kind(usable: Collection[int], hybrid: Mapping[str, Path]) -> str | None:
    """Tell which kind of cores a process is limited to, where there are several."""
    try:
        kinds = {name: _numbers(path.read_text()) for name, path in hybrid.items()}
    except (OSError, ValueError):  # all are alike
        return None
    return next((name for name, ones in kinds.items() if usable and ones.issuperset(usable)), None)


def _numbers(text: str) -> set[int]:
    """Read the kernel's way to list numbers, such as ``0-3,8``."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return {n for low, _, high in ranges for n in range(int(low), int(high or low) + 1)}

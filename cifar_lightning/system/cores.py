"""The cores that this process may use, and how busy others keep them."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# Of the kernel's counters: guests' time is in the users' already.
IDLE = {"idle", "iowait", "guest", "guest_nice"}


def affinity() -> set[int]:
    """Tell the numbers of the cores that the operating system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Count the cores that this process may use: by its affinity and its control groups' quotas.

    A part of a core is rounded down: one thread too many makes all others wait for it.
    """
    return max(1, min([len(affinity()), *map(math.floor, quotas())]))


def quotas(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Iterator[float]:
    """Yield the limits, in cores, of this process's control groups and of those around them.

    Args:
        root: Where the groups' files are mounted, of either version.
        membership: The file that names this process's groups.
    """
    try:
        lines = membership.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue  # version 1, and about something else
        # Of the first version, the link `cpu` is not everywhere.
        base = root / (controllers if (root / controllers).is_dir() else "cpu")
        # In a container the group's own folder may not be there, while the root is.
        own = base / group.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(base):
                break
            quota = _quota(folder, first_version=bool(controllers))
            if quota is not None:
                yield quota


def _quota(folder: Path, first_version: bool) -> float | None:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if first_version else ("cpu.max",)
    try:
        limit, period = " ".join((folder / name).read_text() for name in names).split()
        return float(limit) / float(period) if float(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def limit_threads() -> None:
    """Let torch compute with no more threads than there are usable cores, unless the user chose.

    torch knows the affinity, but not a container's quota.
    """
    import torch  # heavy, and the callers have it

    cores = usable_cores()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with so many threads meanwhile."""
    import torch  # heavy, and the callers have it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def others_seconds() -> float:
    """Tell for how long others than this process have kept its cores busy, summed over the cores.

    Time that a virtual machine asked for and did not get counts as others'. NaN where the system
    does not tell.
    """
    mine = affinity()
    try:
        cores, own = psutil.cpu_times(percpu=True), psutil.Process().cpu_times()
    except Exception:  # psutil parses what each kernel writes in its own way
        return math.nan
    busy = sum(
        seconds
        for number, core in enumerate(cores)
        if number in mine
        for kind, seconds in core._asdict().items()
        if kind not in IDLE
    )
    return float(busy - own.user - own.system)


def steal_seconds() -> float:
    """Tell for how long other virtual machines have kept cores from this one; 0 if unknown."""
    try:
        return float(getattr(psutil.cpu_times(), "steal", 0.0))
    except Exception:  # as above
        return 0.0

"""What earlier benchmarks tell of candidates: without reading every one of them each time."""

import statistics
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cifar_lightning.config.protocols import PROTOCOL_VERSION
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.cache import IN_DOUBT, read_cache, stamp, write_cache
from cifar_lightning.runs.folder import BENCHMARKS
from cifar_lightning.runs.interleaved import BenchmarkHead
from cifar_lightning.runs.latency import LESS
from cifar_lightning.system.files import finished_files

CACHE = ".benchmarks.index"


@dataclass(frozen=True)
class _Head:
    """What is known of a benchmark's file; none of the candidates if it can't be read.

    Attributes:
        prepared: How many seconds a candidate took until it could be called again, by variant.
    """

    stamp: int
    keys: list[str] = field(default_factory=list)
    hardware: str = ""
    protocol: str = ""
    version: int = 0
    prepared: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Heads:
    """By the names of the files, the latest first."""

    files: dict[str, _Head] = field(default_factory=dict)


def measured_before(
    outputs: Path, keys: Collection[str], hardware: str, protocol: str
) -> dict[str, BenchmarkRecord]:
    """Find the latest benchmark that has timed each of some candidates to its end.

    Args:
        outputs: Where to look.
        keys: The candidates', which tell engines, recipes and threads apart.
        hardware: The device's.
        protocol: That is asked for; ``full`` does, too.

    Returns:
        Records by the candidates' keys.
    """
    found: dict[str, BenchmarkRecord] = {}
    for name, head in _heads(outputs).files.items():
        new = {*head.keys} & {*keys} - {*found}
        of_this = head.version == PROTOCOL_VERSION and head.hardware == hardware
        if new and of_this and head.protocol in (protocol, "full"):
            with suppress(OSError, ValueError):  # removed meanwhile: it is timed again
                record = BenchmarkRecord.read(outputs / BENCHMARKS / name)
                if record.ended not in LESS:
                    found |= dict.fromkeys(new, record)
    return found


def prepared_before(outputs: Path, hardware: str) -> dict[str, float]:
    """Tell how many seconds variants took to prepare, by the latest benchmark that had each."""
    found: dict[str, float] = {}
    for head in _heads(outputs).files.values():
        if head.hardware == hardware:
            found = head.prepared | found
    return found


def _heads(outputs: Path) -> _Heads:
    known = read_cache(outputs / CACHE, _Heads) or _Heads()
    heads = {}
    for path in reversed(finished_files(outputs / BENCHMARKS, ".json")):
        now, kept = stamp(str(path)), known.files.get(path.name)
        heads[path.name] = kept if kept and IN_DOUBT != kept.stamp == now else _read(path, now)
    found = _Heads(heads)
    if found != known:
        with suppress(OSError):  # a cache; others' outputs may be read, too
            write_cache(outputs / CACHE, found)
    return found


def _read(path: Path, now: int) -> _Head:
    try:
        head = BenchmarkHead.read(path)
    except (OSError, ValueError):
        return _Head(IN_DOUBT)
    keys = [head.candidates[number].key for number in head.ranked]
    seconds = defaultdict[str, list[float]](list)
    for one in head.candidates:
        if one.preparation_s is not None:
            seconds[one.variant].append(one.preparation_s + (one.first_call_ms or 0) / 1000)
    # Exports of some networks take many times as long as others'.
    prepared = {variant: statistics.fmean(some) for variant, some in seconds.items()}
    return _Head(now, keys, head.hardware, head.protocol, head.protocol_version, prepared)

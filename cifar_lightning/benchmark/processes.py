"""A benchmark in fresh processes: what one process finds again and again may be its own."""

import logging
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.prepare import Share
from cifar_lightning.benchmark.session import Timed, time_here
from cifar_lightning.config.protocols import Protocol
from cifar_lightning.errors import CifarLightningError, Interrupted, RunFailed
from cifar_lightning.system import signals
from cifar_lightning.system.formatting import duration

if TYPE_CHECKING:
    from cifar_lightning.benchmark.load import RunData

log = logging.getLogger(__name__)

POLL_S = 0.2


def time_in_processes(
    count: int,
    groups: Sequence[Sequence[Source]],
    device: torch.device,
    protocol: Protocol,
    seed: int,
    where: tuple[str | None, bool],
) -> tuple[list[Timed], str]:
    """Time candidates in fresh processes, one after the other.

    Args:
        count: How many.
        groups: As for `time_here`, like the next ones.
        device: Where.
        protocol: When to stop.
        seed: Each process has the next one.
        where: The runs' data lie here, and whether they are checked; see `RunData`.

    Returns:
        What each measured, and why a process failed, if one did; where one did or a signal came it
        is of fewer, and stopped.

    Raises:
        Interrupted: If a signal came before there was anything to keep.
        RunFailed: If the first process failed.
    """
    found, left, failed = list[Timed](), "", ""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            if signals.received() is not None and found:
                break
            signals.check()
            log.info("process %d of %d%s", number + 1, count, left)
            share, start = Share(number, Path(folder)), time.monotonic()
            try:
                found.append(_apart(groups, device, protocol, seed + number, where, share))
            except Interrupted:
                if not found:
                    raise
            except RunFailed as error:
                if not found:
                    raise
                failed = f"{error}; kept is what {len(found)} of {count} have measured"
                break
            # What failed once is in no record: the others have no use for it.
            lost = {(one.candidate.role, one.candidate.key) for one in found[-1].failures}
            named = [(group[0].candidate.role, group[0].candidate.key) for group in groups]
            groups = [one for one, name in zip(groups, named, strict=True) if name not in lost]
            seconds = (count - number - 1) * (time.monotonic() - start)
            left = f", about {duration(seconds)} left"  # the first one exports, too
    if len(found) < count:
        *earlier, last = found
        found = [*earlier, replace(last, session=replace(last.session, ended="stopped"))]
    return found, failed


def _apart(
    groups: Sequence[Sequence[Source]],
    device: torch.device,
    protocol: Protocol,
    seed: int,
    where: tuple[str | None, bool],
    share: Share,
) -> Timed:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    told = groups, device, protocol, seed, where, share
    process = context.Process(target=_measure, args=(sender, *told))
    process.start()
    sender.close()
    while not receiver.poll(POLL_S):
        if signals.received() is not None:
            process.terminate()  # it keeps what it has
    try:
        answer = receiver.recv()
    except (EOFError, OSError):  # before it answered, or in the middle
        process.join()
        signals.check()
        raise RunFailed(f"a measuring process ended with status {process.exitcode}") from None
    process.join()
    if isinstance(answer, Interrupted):
        raise signals.error()
    if isinstance(answer, CifarLightningError):
        raise answer
    assert isinstance(answer, Timed)
    return answer


def _measure(
    sender: Connection,
    groups: Sequence[Sequence[Source]],
    device: torch.device,
    protocol: Protocol,
    seed: int,
    where: tuple[str | None, bool],
    share: Share,
) -> None:
    """Measure in a process of its own, and send what was found."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Whatever the imports have set up: the lines of progress are of level INFO.
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    answer: Timed | CifarLightningError
    with signals.handled(), signals.deferred():
        try:
            answer = time_here(groups, device, protocol, seed, _Images(*where), share=share)
        except CifarLightningError as error:
            answer = error
        sender.send(answer)


@dataclass(frozen=True)
class _Images:
    """Gives images to calibrate with, read when one asks: Lightning takes seconds to import."""

    root: str | None
    check: bool

    @cached_property
    def _data(self) -> "RunData":
        from cifar_lightning.benchmark.load import RunData

        return RunData(self.root, check=self.check)

    def __call__(self, folder: Path | None) -> Tensor:
        return self._data.for_timing(folder)


def _end_with_parent() -> None:
    """Measure no longer for a process that was killed: the device is others' then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

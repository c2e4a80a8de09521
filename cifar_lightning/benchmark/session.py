"""What one process measures: networks built, prepared, warmed up, then timed in rounds."""

from __future__ import annotations

import logging
import os
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.contention import device_lock, device_state
from cifar_lightning.benchmark.launches import time_launches
from cifar_lightning.benchmark.memory import Memory
from cifar_lightning.benchmark.rounds import BlockFailed, interleave, warm_up
from cifar_lightning.benchmark.timing import Call, Stopwatch, no_garbage_collection
from cifar_lightning.config.protocols import Protocol
from cifar_lightning.errors import Interrupted, RunFailed, reason_of
from cifar_lightning.runs.benchmark import REFERENCES, Block, Candidate, DeviceState, Session
from cifar_lightning.system import signals
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.system.openmp_waiting import as_by_default
from cifar_lightning.variants import precision, registry
from cifar_lightning.variants.context import PreparedModel, Unsupported, example_images

log = logging.getLogger(__name__)

MIN_KEPT = 2  # rounds; one says nothing

Calibration = Callable[[Path | None], Tensor]
# What to do with each candidate that is ready, outside what is timed.
Look = Callable[[Source, PreparedModel], None]


@dataclass(frozen=True)
class Failure:
    """A candidate without figures.

    Attributes:
        reason: For people.
    """

    candidate: Candidate
    status: Literal["unsupported", "failed"]
    reason: str


@dataclass(frozen=True)
class Timed:
    """What one process has measured.

    Attributes:
        candidates: Those that could be timed, with what was found out about each.
        session: Numbers are theirs.
        failures: The others.
        state: Of the device, before and after.
    """

    candidates: list[Candidate]
    session: Session
    failures: list[Failure]
    state: dict[str, DeviceState]


@dataclass(frozen=True)
class Ready:
    """A candidate that can be timed.

    Attributes:
        candidate: With what was found out about it.
        call: One forward pass, while `conditions` hold.
        conditions: What has to be set around its calls.
        typical_ms: About how long a call takes.
    """

    candidate: Candidate
    call: Call
    conditions: Callable[[], AbstractContextManager[None]]
    typical_ms: float


def time_here(
    groups: Sequence[Sequence[Source]],
    device: torch.device,
    protocol: Protocol,
    seed: int,
    calibration: Calibration,
    look: Look = lambda source, prepared: None,
) -> Timed:
    """Build, prepare and time candidates in this process.

    Args:
        groups: For each candidate its sources, of which the first that can be prepared is timed;
            the references are among them.
        device: Where.
        protocol: When to stop.
        seed: Of all that is drawn.
        calibration: Gives training images to calibrate with.
        look: Called with each candidate that is ready.

    Raises:
        RunFailed: If a reference can't be timed.
        Interrupted: If a signal came before there was anything to keep.
    """
    generator = random.Random(seed)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(device_lock(device))
        stack.enter_context(as_by_default())
        stack.enter_context(no_garbage_collection())
        watch = Stopwatch(device)
        before = device_state(device)
        ready: dict[int, Ready] = {}
        failures: list[Failure] = []
        order = [*range(len(groups))]
        generator.shuffle(order)
        for number in order:
            signals.check()
            prepare = partial(_prepare, stack, watch, device, protocol, calibration, look)
            found = _first_that_works(groups[number], prepare)
            if isinstance(found, Ready):
                ready[number] = found
            else:
                failures.append(found)
        _draw_reference(ready, generator)
        while True:
            try:
                session = _rounds(ready, watch, protocol, generator)
                break
            except BlockFailed as error:
                number = sorted(ready)[error.number]
                failures.append(_failed(ready.pop(number).candidate, error.__cause__ or error))
        candidates = [ready[number].candidate for number in sorted(ready)]
        state = {"before": before, "after": device_state(device)}
        return Timed(candidates, session, failures, state)


def _draw_reference(ready: dict[int, Ready], generator: random.Random) -> None:
    """Draw which of two equal instances is the reference, and which its double.

    What is built earlier is a little slower or faster throughout.

    Args:
        ready: By the candidates' numbers, in the order in which they were built.
        generator: Draws it.
    """
    if generator.random() < 0.5:
        return
    roles = {one.candidate.role: number for number, one in ready.items()}
    swapped = {roles["reference"]: roles["double"], roles["double"]: roles["reference"]}
    built = [(swapped.get(number, number), one) for number, one in ready.items()]
    candidates = {number: one.candidate for number, one in ready.items()}
    ready.clear()
    for number, one in built:
        role = candidates[number].role
        ready[number] = replace(one, candidate=replace(one.candidate, role=role))


def _rounds(
    ready: Mapping[int, Ready], watch: Stopwatch, protocol: Protocol, generator: random.Random
) -> Session:
    """Time what is ready, by numbers of which none is left out.

    Raises:
        BlockFailed: If a call failed.
        Interrupted: If a signal came before there was anything to keep.
    """
    numbers = sorted(ready)
    ones = [ready[number] for number in numbers]

    def block(one: Ready, count: int, discarded: int) -> Block:
        with one.conditions():
            return watch.block(one.call, count, discarded)

    # Where standard error is no terminal, there is none.
    disable = True if "TQDM_DISABLE" in os.environ else None
    with tqdm(desc="measuring", unit=" rounds", leave=False, disable=disable) as bar:

        def on_round(done: int, expected: int) -> bool:
            bar.total = expected
            bar.update(done - bar.n)
            return signals.received() is None

        rounds, ended = interleave(
            [partial(block, one) for one in ones],
            [one.typical_ms for one in ones],
            [one.candidate.role for one in ones].index("reference"),
            protocol,
            generator,
            on_round,
        )
    if len(rounds) < MIN_KEPT:
        signals.check()
    return Session([numbers.index(number) for number in ready], rounds, ended)


def _first_that_works(
    sources: Sequence[Source], prepare: Callable[[Source], Ready]
) -> Ready | Failure:
    failure = None
    for source in sources:
        try:
            return prepare(source)
        except Unsupported as error:
            return Failure(source.candidate, "unsupported", str(error))
        except Interrupted:
            raise
        except Exception as error:
            failure = failure or _failed(source.candidate, error)
    assert failure is not None
    return failure


def _failed(candidate: Candidate, error: BaseException) -> Failure:
    """Tell why a candidate has no figures.

    Raises:
        RunFailed: If it is a reference, without which there are none for the others.
    """
    log.debug("%s %s failed", candidate.label, candidate.variant, exc_info=error)
    if candidate.role in REFERENCES:
        raise RunFailed(f"the {candidate.role} can't be timed: {reason_of(error)}") from error
    return Failure(candidate, "failed", reason_of(error))


def _prepare(
    stack: ExitStack,
    watch: Stopwatch,
    device: torch.device,
    protocol: Protocol,
    calibration: Calibration,
    look: Look,
    source: Source,
) -> Ready:
    """Bring one candidate to where only the rounds are left.

    Unless it fails, it lives as long as the stack. The other arguments are those of `time_here`.
    """
    candidate, memory = source.candidate, Memory(device)
    with ExitStack() as own:
        with torch_threads(candidate.threads):
            images = partial(calibration, source.folder)
            prepared = own.enter_context(
                registry.prepare(candidate.variant, source.build(), device, images)
            )
        image = example_images(1, device)

        def call() -> object:
            return prepared.forward(image)

        @contextmanager
        def conditions() -> Iterator[None]:
            with torch_threads(candidate.threads), prepared.switched(), torch.inference_mode():
                yield

        latest: list[float] = []

        def take(count: int) -> list[float]:
            nonlocal latest
            signals.check()
            with conditions():
                latest = watch.block(call, count).calls_ms
            return latest

        memory.forget_peak()
        (first_call_ms,) = take(1)
        warm_up(take, protocol)
        peak = memory.growth
        with conditions():
            launches = time_launches(call, image, prepared) if device.type == "cuda" else None
            flags = precision.flags()
            error = precision.convolution_error(device)
            precision.verify_precision(candidate.variant, error)
            look(source, prepared)
        stack.push(own.pop_all())
    return Ready(
        replace(
            candidate,
            size_bytes=prepared.size_bytes,
            subnormals=prepared.subnormals,
            preparation_s=prepared.preparation_s,
            first_call_ms=first_call_ms,
            peak_bytes=peak,
            launches=launches,
            flags=flags,
            convolution_error=error,
            notes=prepared.notes,
        ),
        call,
        conditions,
        statistics.median(latest),
    )

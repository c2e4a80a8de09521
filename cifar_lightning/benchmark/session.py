"""What one process measures: networks built, prepared, warmed up, then timed in rounds."""

import gc
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.contention import (
    device_lock,
    device_state,
    state_now_and_then,
)
from cifar_lightning.benchmark.prepare import (
    Calibration,
    Failure,
    Look,
    Ready,
    Share,
    failed,
    first_that_works,
    prepare,
)
from cifar_lightning.benchmark.rounds import BlockFailed, interleave
from cifar_lightning.benchmark.timing import Stopwatch
from cifar_lightning.config.protocols import Protocol
from cifar_lightning.runs.blocks import Block, Session
from cifar_lightning.runs.candidate import Candidate
from cifar_lightning.system import signals
from cifar_lightning.system.environment import DeviceState
from cifar_lightning.system.garbage import no_garbage_collection
from cifar_lightning.system.openmp_waiting import as_by_default
from cifar_lightning.system.progress import Progress, tracked

FLOOR_MS = 0.2  # for which a floor's blocks are laid out
MIN_KEPT = 2  # rounds; one says nothing
NO_OTHERS = Share()


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


def time_here(
    groups: Sequence[Sequence[Source]],
    device: torch.device,
    protocol: Protocol,
    seed: int,
    calibration: Calibration,
    look: Look = lambda source, prepared: None,
    share: Share = NO_OTHERS,
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
        share: What this process does of a benchmark of several.

    Raises:
        RunFailed: If a reference can't be timed.
        DeviceLost: If an error left the device of no use.
        Interrupted: If a signal came before there was anything to keep.
    """
    generator = random.Random(seed)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(device_lock(device))
        stack.enter_context(as_by_default())
        gc.collect()
        stack.enter_context(no_garbage_collection())  # none may fall into what is timed
        watch = Stopwatch(device)
        before = device_state(device)
        ready: dict[int, Ready] = {}
        failures: list[Failure] = []
        order = [*range(len(groups))]
        generator.shuffle(order)
        build = partial(prepare, stack, watch, device, protocol, calibration, look, share)
        asked = "preparing", "networks", lambda one: groups[one][0].title
        for number in tracked(order, *asked, slow_steps=True):
            with signals.immediate():  # exporting and compiling take their time
                found = first_that_works(groups[number], device, build)
            if isinstance(found, Ready):
                ready[number] = found
            else:
                failures.append(found)
        _draw_reference(ready, generator)
        while True:
            try:
                session = _rounds(ready, watch, device, protocol, generator)
                break
            except BlockFailed as error:
                lost = ready.pop(sorted(ready)[error.number]).candidate
                failures.append(failed(lost, device, error.__cause__ or error))
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
    ready: Mapping[int, Ready],
    watch: Stopwatch,
    device: torch.device,
    protocol: Protocol,
    generator: random.Random,
) -> Session:
    """Time what is ready, by numbers of which none is left out.

    Raises:
        BlockFailed: If a call failed.
        Interrupted: If a signal came before there was anything to keep.
    """
    numbers = sorted(ready)
    ones = [ready[number] for number in numbers]
    roles = [one.candidate.role for one in ones]
    any_ranked = "candidate" in roles

    def block(one: Ready, count: int, discarded: int) -> Block:
        with one.conditions():
            return watch.block(one.call, count, discarded)

    with Progress("measuring", protocol.expected_rounds, "rounds") as progress:

        def on_round(done: int, expected: int) -> bool:
            progress.at(done, expected)
            # References alone are timed just for the record of what could not be.
            return signals.received() is None and (any_ranked or done < MIN_KEPT)

        rounds, ended = interleave(
            [partial(block, one) for one in ones],
            # A floor has fewer calls, of which many would fill the record and tell nothing more.
            [max(one.typical_ms, FLOOR_MS * (one.candidate.role == "floor")) for one in ones],
            roles.index("reference"),
            protocol,
            generator,
            [number for number, role in enumerate(roles) if role == "floor"],
            on_round,
            state_now_and_then(device),
        )
    if len(rounds) < MIN_KEPT:
        signals.check()
    return Session([numbers.index(number) for number in ready], rounds, ended)

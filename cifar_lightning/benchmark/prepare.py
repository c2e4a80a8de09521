"""Bringing candidates to where only the rounds are left: built, prepared and warmed up."""

import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.launches import time_launches
from cifar_lightning.benchmark.memory import Memory
from cifar_lightning.benchmark.rounds import warm_up
from cifar_lightning.benchmark.timing import Call, Stopwatch
from cifar_lightning.config.protocols import Protocol
from cifar_lightning.errors import DeviceLost, Interrupted, RunFailed, reason_of
from cifar_lightning.runs.candidate import REFERENCES, Candidate
from cifar_lightning.runs.latency import Launches
from cifar_lightning.system import signals
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.system.devices import check_usable
from cifar_lightning.variants import precision, registry
from cifar_lightning.variants.agreement import agreement
from cifar_lightning.variants.context import Unsupported, VariantContext, example_images

log = logging.getLogger(__name__)

COMPARED_IMAGES = 64  # with the network's logits, one by one

Calibration = Callable[[Path | None], Tensor]
# What to do with each candidate that is ready, outside what is timed.
Look = Callable[[Source, VariantContext], None]


@dataclass(frozen=True)
class Share:
    """What one of several processes does of a benchmark.

    Attributes:
        number: Its own, from 0; the first also finds out what is the same in all of them.
        folder: Where it keeps what candidates are shipped as, for those after it.
    """

    number: int = 0
    folder: Path | None = None

    def kept(self, candidate: Candidate) -> Path | None:
        """Tell where that is kept for one of the candidates."""
        return self.folder and self.folder / f"{candidate.role}-{candidate.key}"


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


def first_that_works(
    sources: Sequence[Source], device: torch.device, prepare: Callable[[Source], Ready]
) -> Ready | Failure:
    """Prepare one of the sources of a candidate, or tell why there is none; errors as `failed`."""
    failure = None
    for source in sources:
        try:
            return prepare(source)
        except Unsupported as error:
            check_usable(device, error.__cause__ or error)
            _check_needed(source.candidate, error)
            return Failure(source.candidate, "unsupported", str(error))
        except (Interrupted, DeviceLost):
            raise
        except Exception as error:
            one = failed(source.candidate, device, error)
            failure = failure or one
    assert failure is not None
    return failure


def failed(candidate: Candidate, device: torch.device, error: BaseException) -> Failure:
    """Tell why a candidate has no figures.

    Raises:
        RunFailed: If it is a reference, without which there are none for the others.
        DeviceLost: If the device is of no use any more.
    """
    log.debug("%s %s failed", candidate.label, candidate.variant, exc_info=error)
    check_usable(device, error)
    _check_needed(candidate, error)
    return Failure(candidate, "failed", reason_of(error))


def _check_needed(candidate: Candidate, error: BaseException) -> None:
    if candidate.role in REFERENCES:
        raise RunFailed(f"the {candidate.role} can't be timed: {reason_of(error)}") from error


def prepare(
    stack: ExitStack,
    watch: Stopwatch,
    device: torch.device,
    protocol: Protocol,
    calibration: Calibration,
    look: Look,
    share: Share,
    source: Source,
) -> Ready:
    """Bring one candidate to where only the rounds are left.

    Unless it fails, it lives as long as the stack. The other arguments are those of `time_here`.
    """
    candidate, memory = source.candidate, Memory(device)
    with ExitStack() as own:
        with torch_threads(candidate.threads):
            prepared = own.enter_context(
                registry.prepare(
                    candidate.variant,
                    source.build(),
                    device,
                    partial(source.calibration, calibration),
                    source.metadata,
                    kept=share.kept(candidate),
                )
            )
        image, on_gpu = example_images(1, device), device.type == "cuda"

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
        typical_ms = statistics.median(latest)
        if share.number > 0:
            stack.push(own.pop_all())
            return Ready(candidate, call, conditions, typical_ms)
        with conditions():
            launches = time_launches(call, image, prepared) if on_gpu else Launches()
            flags = precision.flags()
            error = precision.convolution_error(device)
            _check_logits(source, prepared)
            look(source, prepared)
        stack.push(own.pop_all())
    return Ready(
        replace(
            candidate,
            size_bytes=prepared.size_bytes,
            delegated=prepared.delegated,
            subnormals=prepared.subnormals,
            preparation_s=prepared.preparation_s,
            first_call_ms=first_call_ms,
            peak_bytes=peak,
            launches=launches,
            flags=flags,
            convolution_error=error,
            contradiction=_contradiction(candidate.variant, error),
            notes=prepared.notes,
        ),
        call,
        conditions,
        typical_ms,
    )


def _check_logits(source: Source, prepared: VariantContext) -> None:
    """Compare logits of single images with the network's in fp32."""
    images = example_images(COMPARED_IMAGES).split(1)
    found = agreement(
        source.build(),
        lambda image: prepared.forward(image.to(prepared.device)),
        images,
        exact=prepared.exact,
    )
    prepared.notes["logit_difference"] = found.difference


def _contradiction(variant: str, error: float) -> str | None:
    """Tell in which precision a variant ran, if that is not the one which it stands for."""
    found = precision.found(error)
    return None if found == precision.wanted(variant) else f"ran in {found}"

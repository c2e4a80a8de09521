"""Networks ready to be timed, as the GPU measurements of this folder share them.

Any backbone of `conf/model` in any variant, with fixed random weights, so no data set is needed;
and neither Hydra, OmegaConf nor Lightning: a machine with a GPU has its own torch, and seldom the
packages that configure a training run.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from cifar_lightning.benchmark.contention import device_lock, state_now_and_then
from cifar_lightning.benchmark.rounds import BlockFailed, interleave, warm_up
from cifar_lightning.benchmark.timing import Call, Stopwatch
from cifar_lightning.config.protocols import Protocol
from cifar_lightning.errors import reason_of
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.runs.blocks import Block, Round
from cifar_lightning.runs.latency import Ended
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.system.devices import check_usable
from cifar_lightning.system.garbage import no_garbage_collection
from cifar_lightning.system.openmp_waiting import as_by_default
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Unsupported, VariantContext, example_images

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
# The most telling come first: where the time is short, the others are missing.
FIRST = ("resnet8", "cifarnet", "mobilenetv3", "shufflenetv2", "resnet18")

Builder = Callable[[], nn.Module]


def backbones() -> dict[str, Builder]:
    """Collect what the files in `conf/model` build, for 10 classes; not what needs a name first."""
    found: dict[str, Builder] = {}
    for path in sorted(CONF.glob("*.yaml"), key=lambda path: (_place(path.stem), path.stem)):
        node = _settings(path)
        if "???" in node.values():
            continue
        module, _, name = node.pop("_target_").rpartition(".")
        build = getattr(import_module(module), name)
        found[path.stem] = partial(_executed, partial(build, **node | {"num_classes": 10}))
    return found


def _settings(path: Path) -> dict[str, Any]:
    """Read a file on top of those that its defaults list names, as OmegaConf is not there."""
    node = yaml.safe_load(path.read_text())
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    merged: dict[str, Any] = {}
    for base in bases:
        merged |= _settings(path.with_name(f"{base}.yaml"))
    merged |= node
    return merged


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _executed(build: Builder) -> nn.Module:
    """Build a network with the same random weights each time, in the form that is executed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return reparameterized(build().eval())


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Hold a device for a measurement; one thread, and no garbage collection meanwhile."""
    gc.collect()
    with device_lock(device), as_by_default(), torch_threads(1), no_garbage_collection():
        yield


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a variant of a backbone; a row of a table adds its figures.

    Attributes:
        status: ``ok``, ``unsupported`` or ``failed``.
        reason: Why there are no figures, for people.
        ended: Why its rounds ended.
    """

    backbone: str
    variant: str
    status: str = "ok"
    reason: str = ""
    ended: str = ""

    @property
    def remark(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.ended


@dataclass(frozen=True)
class Network:
    """A backbone in a variant, ready to be called while `conditions` hold."""

    backbone: str
    variant: str
    prepared: VariantContext

    def pass_of(self, images: Tensor) -> Call:
        """Make the call of one forward pass."""
        return lambda: self.prepared.forward(images)

    @contextmanager
    def conditions(self) -> Iterator[None]:
        with self.prepared.switched(), torch.inference_mode():
            yield


def prepare(
    stack: ExitStack, backbone: str, build: Builder, variant: str, device: torch.device
) -> Network | Outcome:
    """Bring a variant of a backbone to where it can be called; it lives as long as the stack.

    Raises:
        DeviceLost: See `failed`.
    """
    try:
        prepared = stack.enter_context(
            registry.prepare(variant, build(), device, partial(example_images, 64))
        )
    except Unsupported as reason:
        return Outcome(backbone=backbone, variant=variant, status="unsupported", reason=str(reason))
    except Exception as error:  # the other variants are measured all the same
        return failed(backbone, variant, error, device)
    return Network(backbone, variant, prepared)


def failed(backbone: str, variant: str, error: BaseException, device: torch.device) -> Outcome:
    """Tell why a network failed.

    Raises:
        DeviceLost: If the device is of no use any more.
    """
    check_usable(device, error)
    return Outcome(backbone=backbone, variant=variant, status="failed", reason=reason_of(error))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timed:
    """Something to be timed in rounds.

    Attributes:
        network: What is called, whose conditions are set around its blocks.
        call: Does the work once.
        watch: Times it.
        first_call_ms: Of the first one.
        typical_ms: About how long one takes after the warm-up.
    """

    network: Network
    call: Call
    watch: Stopwatch
    first_call_ms: float
    typical_ms: float

    def block(self, count: int, discarded: int = 0) -> Block:
        with self.network.conditions():
            return self.watch.block(self.call, count, discarded)


def warmed_up(network: Network, call: Call, watch: Stopwatch, protocol: Protocol) -> Timed:
    """Make the first call, and then all those of the protocol's warm-up."""
    cold = Timed(network, call, watch, 0, 0)
    (first_call_ms,) = cold.block(1).calls_ms
    latest: list[float] = []

    def take(count: int) -> list[float]:
        nonlocal latest
        latest = cold.block(count).calls_ms
        return latest

    warm_up(take, protocol)
    return Timed(network, call, watch, first_call_ms, statistics.median(latest))


def in_rounds(
    ones: Sequence[Timed], protocol: Protocol, device: torch.device
) -> tuple[list[Timed], list[Round], Ended, list[tuple[Timed, BaseException]]]:
    """Time all in interleaved rounds, the first one being the reference.

    Returns:
        Those that could be timed, in their order; the rounds and why they ended; the others, each
        with its error.
    """
    left, lost = [*ones], list[tuple[Timed, BaseException]]()
    while left:
        try:
            rounds, ended = interleave(
                [one.block for one in left],
                [one.typical_ms for one in left],
                0,
                protocol,
                random.Random(0),
                look=state_now_and_then(device),
            )
            return left, rounds, ended, lost
        except BlockFailed as error:
            lost.append((left.pop(error.number), error.__cause__ or error))
    return [], [], "stopped", lost

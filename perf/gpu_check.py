"""Latency of every backbone in every GPU variant, on random weights and images.

    make gpu-check

Needs no data set and installs nothing: torch, torchvision, scipy, psutil, msgspec, PyYAML and
safetensors as the machine has them, and pytest with hypothesis for the tests that follow. Prints a
Markdown table with the card's name. Accuracy is not looked at: the weights are random.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from cifar_lightning.benchmark.contention import device_lock, device_state
from cifar_lightning.benchmark.rounds import interleave, warm_up
from cifar_lightning.benchmark.timing import Stopwatch
from cifar_lightning.config.protocols import PROTOCOLS, Protocol
from cifar_lightning.runs.blocks import Block
from cifar_lightning.runs.latency import LatencyStats
from cifar_lightning.runs.paired import difference
from cifar_lightning.variants import context, precision, registry

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
# Each part alone, and those that make a network faster with those that launch it faster.
_PAIRS = [f"{a}+{b}" for a in ("fused", "fp16") for b in ("compile", "cuda_graph")]
VARIANTS = tuple(dict.fromkeys(["fp32", *registry.PARTS, *_PAIRS]))  # fp32 is the baseline


def backbones() -> dict[str, Callable[[], nn.Module]]:
    """Collect what the files in `conf/model` build, for 10 classes; not what needs a name first."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for path in sorted(CONF.glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        if "???" in node.values():
            continue
        module, _, name = node.pop("_target_").rpartition(".")
        build = getattr(import_module(module), name)
        found[path.stem] = partial(build, **node | {"num_classes": 10})
    return found


@dataclass(frozen=True)
class _Ready:
    """A variant that can be timed.

    Attributes:
        block: Times calls of it.
        typical_ms: About how long one takes.
        error: See `precision.convolution_error`.
    """

    block: Callable[[int, int], Block]
    typical_ms: float
    preparation_s: float | None
    error: float


def rows(device: torch.device, protocol: Protocol) -> Iterator[str]:
    """Yield a line of the table for each backbone and variant.

    A backbone's variants are timed in interleaved rounds, relative to the first one.
    """
    image = torch.rand(1, 3, 32, 32, device=device)
    for label, build in backbones().items():
        ready: dict[str, _Ready] = {}
        with ExitStack() as stack:
            for name in VARIANTS:
                torch.manual_seed(0)
                try:
                    ready[name] = _prepare(stack, name, build().eval(), image, protocol)
                except context.Unsupported as reason:
                    yield f"| {label} | {name} | - | - | - | - | - | - | {reason} |"
                except Exception as failure:  # the other variants are measured all the same
                    line = f"{type(failure).__name__}: {failure}".splitlines()[0]
                    yield f"| {label} | {name} | - | - | - | - | - | - | {line} |"
            ones = [*ready.values()]
            rounds, ended = interleave(
                [one.block for one in ones],
                [one.typical_ms for one in ones],
                0,
                protocol,
                random.Random(0),
            )
        for number, (name, one) in enumerate(ready.items()):
            blocks = [each.blocks[number] for each in rounds]
            stats = LatencyStats.from_samples([ms for block in blocks for ms in block.calls_ms])
            wall = statistics.fmean(ms for block in blocks for ms in block.walls_ms)
            ours, first = ([each.blocks[n].mean_ms for each in rounds] for n in (number, 0))
            p95 = "-" if stats.p95_ms is None else f"{stats.p95_ms:.3f}"
            preparation = "-" if one.preparation_s is None else f"{one.preparation_s:.1f}"
            yield (
                f"| {label} | {name} | {stats.mean_ms:.3f} | {p95} | {wall:.3f} "
                f"| {difference(ours, first).ratio[0]:.2f} | {preparation} | {one.error:.0e} "
                f"| {'' if ended == 'converged' else 'not converged'} |"
            )


def _prepare(
    stack: ExitStack, name: str, network: nn.Module, image: Tensor, protocol: Protocol
) -> _Ready:
    watch, latest = Stopwatch(image.device), list[float]()
    with ExitStack() as own:
        prepared = own.enter_context(
            registry.prepare(name, network, image.device, lambda: torch.rand(64, 3, 32, 32))
        )

        def block(count: int, discarded: int) -> Block:
            with prepared.switched(), torch.inference_mode():
                return watch.block(lambda: prepared.forward(image), count, discarded)

        def take(count: int) -> list[float]:
            nonlocal latest
            latest = block(count, 0).calls_ms
            return latest

        warm_up(take, protocol)
        with prepared.switched():
            error = precision.convolution_error(image.device)
        precision.verify_precision(name, error)
        stack.push(own.pop_all())
    return _Ready(block, statistics.median(latest), prepared.preparation_s, error)


def main() -> None:
    """Print the table, or say why not."""
    if not torch.cuda.is_available():
        print("error: there is no GPU that torch can use here", file=sys.stderr)
        sys.exit(2)
    protocol = sys.argv[1] if len(sys.argv) > 1 else "full"
    if protocol not in PROTOCOLS:
        print(f"error: {protocol}: must be {', '.join(PROTOCOLS)}", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cuda:0")
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {protocol} protocol")
    print(f"state before: {device_state(device)}\n")
    columns = ("Mean (ms)", "p95 (ms)", "Wall (ms)", "Relative", "Prep. (s)", "Conv. error")
    print(f"| Backbone | Variant | {' | '.join(columns)} | |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with device_lock(device):
        for row in rows(device, PROTOCOLS[protocol]):
            print(row, flush=True)
    print(f"\nstate after: {device_state(device)}")


if __name__ == "__main__":
    main()

"""From an image in the host's memory to its class there, beside the network's forward pass alone.

    python -m perf.gpu_end_to_end [--backbones a,b] [--variants x,y] [--protocol quick]
        [--json FILE]

End to end is what an application waits for: a uint8 image in pinned memory is copied to the device,
normalised, classified, and the class is read back. The forward pass alone starts with a normalised
image on the device, and ends when its logits are there. Both are timed by the wall clock, in
interleaved rounds. On a GPU there is a third way: what comes between both copies as one captured
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
import yaml
from torch import Tensor

from cifar_lightning.benchmark.timing import Call, Stopwatch
from cifar_lightning.config.protocols import PROTOCOLS, Protocol
from cifar_lightning.runs.latency import LatencyStats
from cifar_lightning.variants.context import example_images
from cifar_lightning.variants.cuda_graph import capture
from perf.gpu_networks import (
    CONF,
    Builder,
    Network,
    Outcome,
    Timed,
    failed,
    in_rounds,
    prepare,
    synchronize,
    undisturbed,
    warmed_up,
)
from perf.gpu_table import Table, arguments, run

BACKBONES = ("resnet8", "mobilenetv3")
FAST = "fused+fp16+channels_last"
VARIANTS = ("fp32", FAST, f"{FAST}+cuda_graph")
Way = Literal["forward pass", "end to end", "end to end, captured"]


@dataclass(frozen=True, kw_only=True)
class Row(Outcome):
    """The figures of one way of using a variant of a backbone.

    Attributes:
        latency: By the wall clock.
    """

    way: Way | None = None
    latency: LatencyStats | None = None
    rounds: int | None = None


COLUMNS = {
    "Backbone": ("backbone", ""),
    "Variant": ("variant", ""),
    "": ("way", ""),
    "Mean (ms)": ("latency.mean_ms", ".3f"),
    "p50 (ms)": ("latency.p50_ms", ".3f"),
    "p95 (ms)": ("latency.p95_ms", ".3f"),
    " ": ("remark", ""),
}


def normaliser(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Make what maps uint8 images on the device to what networks take, by CIFAR-10's values."""
    node = yaml.safe_load((CONF.parent / "data" / "cifar10.yaml").read_text())
    mean, std = (
        255 * torch.tensor(node[key], device=device)[:, None, None] for key in ("mean", "std")
    )
    return lambda images: (images - mean) / std


def ways(network: Network, device: torch.device) -> Iterator[tuple[Way, Call]]:
    """Yield what is timed of a network; each call ends when its result is there."""
    normalise, image = normaliser(device), example_images(1, device)
    host = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    if device.type == "cuda":
        host = host.pin_memory()
    pixels = host.to(device)
    forward = network.prepared.forward

    def alone() -> None:
        forward(image)
        synchronize(device)

    def classify(pixels: Tensor) -> Tensor:
        return forward(normalise(pixels)).argmax(1)

    def end_to_end() -> int:
        pixels.copy_(host, non_blocking=True)
        return int(classify(pixels))

    yield "forward pass", alone
    yield "end to end", end_to_end
    if device.type == "cuda" and network.prepared.eager:
        classes = torch.empty(1, dtype=torch.int64, device=device)
        with network.conditions():
            graph = capture(lambda _: classes.copy_(classify(pixels)), pixels)

        def captured() -> int:
            pixels.copy_(host, non_blocking=True)
            graph.replay()
            return int(classes)

        yield "end to end, captured", captured


def rows(
    backbone: str,
    build: Builder,
    variants: Sequence[str],
    device: torch.device,
    protocol: Protocol,
) -> Iterator[Row]:
    """Time variants of a backbone, each in every way, in interleaved rounds."""
    # The wall clock, on a GPU too.
    watch = Stopwatch(torch.device("cpu"))
    ones: list[tuple[Way, Timed]] = []
    with ExitStack() as stack:
        for variant in variants:
            network = prepare(stack, backbone, build, variant, device)
            if isinstance(network, Outcome):
                yield Row(**vars(network))
                continue
            try:
                for way, call in ways(network, device):
                    ones.append((way, warmed_up(network, call, watch, protocol)))
            except Exception as error:  # the other variants are measured all the same
                yield Row(**vars(failed(backbone, variant, error, device)))
        timed, rounds, ended, lost = in_rounds([one for _, one in ones], protocol, device)
    for one, cause in lost:
        yield Row(**vars(failed(backbone, one.network.variant, cause, device)))
    for place, one in enumerate(timed):
        samples = [ms for each in rounds for ms in each.blocks[place].calls_ms]
        yield Row(
            backbone=backbone,
            variant=one.network.variant,
            way=next(way for way, other in ones if other is one),
            latency=LatencyStats.from_samples(samples),
            rounds=len(rounds),
            ended=ended,
        )


def main() -> None:
    """Print the table, or say why not."""
    told = arguments(__doc__, VARIANTS, BACKBONES)
    table = Table(f"From host to host ({told.protocol} protocol)", COLUMNS, told.json)
    with undisturbed(told.device):
        table.begin(told.device)
        for backbone, build in told.backbones.items():
            table.fill(rows(backbone, build, told.variants, told.device, PROTOCOLS[told.protocol]))
        table.end(told.device)


if __name__ == "__main__":
    run(main)

"""Latency of every backbone in every GPU variant, on random weights and images.

    python -m perf.gpu_check [--backbones a,b] [--variants x,y] [--protocol quick] [--json FILE]

Needs no data set and installs nothing: torch, torchvision, numpy, psutil, msgspec, PyYAML, tqdm and
safetensors as the machine has them. Prints a Markdown table row by row, and keeps it as JSON after
every benchmark. Accuracy is not looked at: the weights are random.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from cifar_lightning.benchmark.launches import time_launches
from cifar_lightning.benchmark.timing import Stopwatch
from cifar_lightning.config.protocols import PROTOCOLS, Protocol
from cifar_lightning.runs.gpu import GPUActivity
from cifar_lightning.runs.latency import LatencyStats, Launches, Relative
from cifar_lightning.runs.paired import difference
from cifar_lightning.variants import precision, registry
from cifar_lightning.variants.context import Kind, example_images
from perf.gpu_networks import (
    Builder,
    Outcome,
    Timed,
    failed,
    in_rounds,
    prepare,
    undisturbed,
    warmed_up,
)
from perf.gpu_table import Table, arguments, run

BASELINE = "fp32"  # which the others are relative to
FAST = "fused+fp16+channels_last"
# Each part alone, what makes a network faster with what launches it faster, and all of it together.
VARIANTS = (
    BASELINE,
    f"{FAST}+cuda_graph",
    "fused+bf16+channels_last+cuda_graph",
    "tf32+cuda_graph",
    "fused+cuda_graph",
    "fp16+cuda_graph",
    *(part for part in registry.PARTS if part != BASELINE),
    f"{FAST}+compile",
    "fused+compile",
    "fp16+compile",
)
AHEAD = 4  # so many backbones come in their quick variants before the first one in its slow ones


@dataclass(frozen=True, kw_only=True)
class Row(Outcome):
    """The figures of a variant of a backbone.

    Attributes:
        wall_ms: Mean of the same calls by the wall clock, synchronisation included.
        relative: To fp32 of the same rounds.
        precision_error: See `precision.convolution_error`.
        preempted: Fraction of its blocks.
        gpu: What the GPU did in these rounds.
    """

    latency: LatencyStats | None = None
    wall_ms: float | None = None
    launches: Launches | None = None
    relative: Relative | None = None
    first_call_ms: float | None = None
    preparation_s: float | None = None
    precision_error: float | None = None
    rounds: int | None = None
    preempted: float | None = None
    gpu: GPUActivity | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        marks = [super().remark]
        if self.precision_error is not None:
            found = precision.found(self.precision_error)
            marks += [f"computed in {found}"] if found != precision.wanted(self.variant) else []
        return ", ".join([*marks, *(self.gpu.marks if self.gpu else [])])


COLUMNS = {
    "Backbone": ("backbone", ""),
    "Variant": ("variant", ""),
    "Mean (ms)": ("latency.mean_ms", ".3f"),
    "p95 (ms)": ("latency.p95_ms", ".3f"),
    "Wall (ms)": ("wall_ms", ".3f"),
    "Enqueue (ms)": ("launches.enqueue_ms", ".3f"),
    "Device (ms)": ("launches.device_ms", ".3f"),
    "Replay (ms)": ("launches.graph_ms", ".3f"),
    "Relative": ("relative.centre", ".3f"),
    "First call (ms)": ("first_call_ms", ".1f"),
    "Prep. (s)": ("preparation_s", ".1f"),
    "Precision error": ("precision_error", ".0e"),
    "": ("remark", ""),
}


def parts_of_work(backbones: Sequence[str], variants: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Cut the work into benchmarks, so that a run that is cut off has the most telling ones.

    Variants that take seconds to prepare are one benchmark of a backbone, those that take minutes
    another, which comes later. The baseline is in each.
    """
    units = [
        (place + AHEAD * slowness, backbone, chosen)
        for place, backbone in enumerate(backbones)
        for slowness in range(3)
        if (chosen := [one for one in variants if _slowness(one) == slowness])
    ]
    units.sort(key=lambda unit: unit[0])
    return [(backbone, list(dict.fromkeys([BASELINE, *chosen]))) for _, backbone, chosen in units]


def _slowness(variant: str) -> int:
    """Tell whether its preparation takes seconds, some of them more, or minutes."""
    engines = {part for part in variant.split("+") if registry.PARTS[part][0] == Kind.RUNTIME}
    return 0 if engines <= {"cuda_graph"} else 1 if engines <= {"compile"} else 2


def rows(
    backbone: str,
    build: Builder,
    variants: Sequence[str],
    device: torch.device,
    protocol: Protocol,
) -> Iterator[Row]:
    """Time variants of a backbone in interleaved rounds; the first one is the baseline."""
    watch, image = Stopwatch(device), example_images(1, device)
    ones: list[Timed] = []
    found: dict[str, tuple[Launches | None, float]] = {}
    with ExitStack() as stack:
        for variant in variants:
            network = prepare(stack, backbone, build, variant, device)
            if isinstance(network, Outcome):
                yield Row(**vars(network))
                continue
            try:
                one = warmed_up(network, network.pass_of(image), watch, protocol)
                with network.conditions():
                    launches = None
                    if device.type == "cuda":
                        launches = time_launches(one.call, image, network.prepared)
                    found[variant] = launches, precision.convolution_error(device)
                ones.append(one)
            except Exception as error:  # the other variants are measured all the same
                yield Row(**vars(failed(backbone, variant, error, device)))
        timed, rounds, ended, lost = in_rounds(ones, protocol, device)
    activity = GPUActivity.of([each.states for each in rounds])
    for one, cause in lost:
        yield Row(**vars(failed(backbone, one.network.variant, cause, device)))
    baseline = next((n for n, one in enumerate(timed) if one.network.variant == BASELINE), None)
    for place, one in enumerate(timed):
        blocks = [each.blocks[place] for each in rounds]
        ours, first = ([each.blocks[n].mean_ms for each in rounds] for n in (place, baseline or 0))
        walls = [ms for block in blocks for ms in block.walls_ms]
        launches, precision_error = found[one.network.variant]
        yield Row(
            backbone=backbone,
            variant=one.network.variant,
            latency=LatencyStats.from_samples([ms for block in blocks for ms in block.calls_ms]),
            wall_ms=statistics.fmean(walls) if walls else None,
            launches=launches,
            relative=None if baseline is None else Relative.of(difference(ours, first)),
            first_call_ms=one.first_call_ms,
            preparation_s=one.network.prepared.preparation_s,
            precision_error=precision_error,
            rounds=len(rounds),
            ended=ended,
            preempted=statistics.fmean(block.preempted for block in blocks),
            gpu=activity if device.type == "cuda" else None,
            notes=dict(one.network.prepared.notes),
        )


def main() -> None:
    """Print the table, or say why not."""
    told = arguments(__doc__, VARIANTS)
    title = f"Backbones and variants ({told.protocol} protocol)"
    table = Table(title, COLUMNS, told.json)
    with undisturbed(told.device):
        table.begin(told.device)
        for backbone, variants in parts_of_work([*told.backbones], told.variants):
            build, protocol = told.backbones[backbone], PROTOCOLS[told.protocol]
            table.fill(rows(backbone, build, variants, told.device, protocol))
        table.end(told.device)


if __name__ == "__main__":
    run(main)

"""Latency of every backbone in every GPU variant, on random weights and images.

    make gpu-check

Needs no data set and installs nothing: torch, torchvision, scipy, psutil, msgspec, PyYAML and
safetensors as the machine has them, and pytest with hypothesis for the tests that follow. Prints a
Markdown table with the card's name. Accuracy is not looked at: the weights are random.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
import yaml
from torch import nn

from cifar_lightning.benchmark.contention import DISTURBED_ABOVE, Load, device_lock, device_state
from cifar_lightning.benchmark.timing import measure_latency
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.variants import context, precision, registry

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
# Each part alone, and those that make a network faster with those that launch it faster.
_PAIRS = [f"{a}+{b}" for a in ("fused", "fp16") for b in ("compile", "cuda_graph")]
VARIANTS = tuple(dict.fromkeys(["fp32", *registry.PARTS, *_PAIRS]))  # fp32 is the baseline


def backbones() -> dict[str, Callable[[], nn.Module]]:
    """Collect what the files in `conf/model` build, for 10 classes."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for path in sorted(CONF.glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        module, _, name = node.pop("_target_").rpartition(".")
        build = getattr(import_module(module), name)
        found[path.stem] = partial(build, **node | {"num_classes": 10})
    return found


def rows(device: torch.device, protocol: str) -> Iterator[str]:
    """Yield a line of the table for each backbone and variant."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 32, device=device)
    for label, build in backbones().items():
        baseline: float | None = None
        for name in VARIANTS:
            network: nn.Module = build().eval()
            torch.compiler.reset()
            try:
                with (
                    device_lock(device),
                    registry.prepare(name, network, device, lambda: torch.rand(64, 3, 32, 32)) as p,
                    torch.inference_mode(),
                ):
                    forward = p.forward
                    load = Load(device)
                    latency = measure_latency(
                        partial(forward, image), device, PROTOCOLS[protocol], load.sample
                    )
                    error = precision.convolution_error(device)
                    precision.verify_precision(name, error)
            except context.Unsupported as reason:
                yield f"| {label} | {name} | - | - | - | - | - | - | {reason} |"
                continue
            except Exception as failure:  # the other variants are measured all the same
                line = f"{type(failure).__name__}: {failure}".splitlines()[0]
                yield f"| {label} | {name} | - | - | - | - | - | - | {line} |"
                continue
            stats = latency.stats
            if name == "fp32":
                baseline = stats.mean_ms
            speedup = f"{baseline / stats.mean_ms:.2f}" if baseline else "-"
            p95 = "-" if stats.p95_ms is None else f"{stats.p95_ms:.3f}"
            wall = f"{latency.wall.mean_ms:.3f}" if latency.wall else "-"
            preparation = "-" if p.preparation_s is None else f"{p.preparation_s:.1f}"
            remarks = [] if stats.converged else ["not converged"]
            remarks += ["disturbed"] if (load.mean or 0) > DISTURBED_ABOVE else []
            remarks += ["load unknown"] if load.mean is None else []
            yield (
                f"| {label} | {name} | {stats.mean_ms:.3f} | {p95} | {wall} "
                f"| {speedup} | {preparation} | {error:.0e} | {', '.join(remarks)} |"
            )


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
    columns = ("Mean (ms)", "p95 (ms)", "Wall (ms)", "Speed-up", "Prep. (s)", "Conv. error")
    print(f"| Backbone | Variant | {' | '.join(columns)} | |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in rows(device, protocol):
        print(row, flush=True)
    print(f"\nstate after: {device_state(device)}")


if __name__ == "__main__":
    main()

"""Measure a trained run: each variant's accuracy, latency and size, recorded as JSON."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import nn

from cifar_lightning import provenance
from cifar_lightning.data import ImageDataModule
from cifar_lightning.latency import PROTOCOL_VERSION, PROTOCOLS, Protocol, measure_latency
from cifar_lightning.results import Measurement, Run
from cifar_lightning.variants import VARIANTS, Forward, flags

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"


def load_backbone(folder: Path) -> nn.Module:
    """Build a run's backbone anew and load its best weights into it.

    Args:
        folder: The run's, with ``run.json`` and ``weights.safetensors``.
    """
    backbone: nn.Module = instantiate(Run.load(folder).config["model"])
    backbone.load_state_dict(load_file(folder / WEIGHTS))
    return backbone.eval()


def measure(
    folder: Path,
    data: ImageDataModule,
    variants: Sequence[str],
    threads: Sequence[int],
    device: torch.device,
    protocol: str,
) -> list[Measurement]:
    """Measure variants of a run and write a JSON file for each.

    A fresh backbone is used for each, outside any surrounding ``inference_mode``.

    Args:
        folder: The run's.
        data: Gives the test split.
        variants: Names out of `variants.VARIANTS`.
        threads: Each number of CPU threads gives a measurement of its own; on a GPU the first
            alone counts.
        device: Where to measure.
        protocol: ``full`` or ``quick``.

    Returns:
        The measurements, in the order asked for.
    """
    measurements = []
    with torch.inference_mode(mode=False):
        for name in variants:
            for count in threads if device.type == "cpu" else threads[:1]:
                measurement = _measure(folder, data, name, count, device, PROTOCOLS[protocol])
                measurement.save(folder)
                measurements.append(measurement)
    return measurements


def _measure(
    folder: Path,
    data: ImageDataModule,
    name: str,
    threads: int,
    device: torch.device,
    protocol: Protocol,
) -> Measurement:
    variant = VARIANTS[name]
    with variant(load_backbone(folder), device) as forward, torch.inference_mode():
        accuracy = evaluate(forward, data, device)
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        with _threads(threads):
            latency = measure_latency(lambda: forward(image), device, protocol)
            environment = {
                "versions": provenance.versions(),
                "machine": provenance.machine(),
                "flags": flags(),
            }
    hardware = device_name(device)
    return Measurement(
        run=folder.name,
        variant=name,
        status="ok",
        reason=None,
        device=hardware,
        hardware=re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-"),
        threads=threads,
        clock=latency.clock,
        protocol=protocol.name,
        protocol_version=PROTOCOL_VERSION,
        test_acc=accuracy,
        latency=asdict(latency.stats),
        size_bytes=(folder / WEIGHTS).stat().st_size,
        code=provenance.code(),
        environment=environment,
        samples_ms=latency.samples_ms,
    )


def evaluate(forward: Forward, data: ImageDataModule, device: torch.device) -> float:
    """Classify the whole test split; return the accuracy in percent."""
    correct = total = 0
    for images, labels in data.test_dataloader():
        logits = forward(data.normalize(images.to(device)))
        correct += int((logits.argmax(1).cpu() == labels).sum())
        total += len(labels)
    return 100 * correct / total


def device_name(device: torch.device) -> str:
    """Name the hardware for people and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{provenance.cpu_model()} ({device.type})"
        if device.type != "cpu"
        else provenance.cpu_model()
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def latency_scalars(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Name the latencies as TensorBoard shows them."""
    return {
        f"latency/{m.variant}-t{m.threads}/{key}": m.latency[key]
        for m in measurements
        for key in ("mean_ms", "p95_ms")
        if m.latency.get(key) is not None
    }

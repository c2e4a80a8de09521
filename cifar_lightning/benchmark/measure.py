"""Measuring a run: accuracy, latency and size of each variant, recorded as JSON."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from cifar_lightning.benchmark.contention import DISTURBED_ABOVE, Load, device_lock, device_state
from cifar_lightning.benchmark.evaluate import accuracy, calibration, evaluate
from cifar_lightning.benchmark.load import load_backbone
from cifar_lightning.benchmark.timing import clock_of, measure_latency
from cifar_lightning.config.protocols import PROTOCOL_VERSION, PROTOCOLS, Protocol
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import Interrupted, bad_value, reason_of
from cifar_lightning.runs import measurement
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.measurement import Environment, Measurement, recipe
from cifar_lightning.system import environment, signals
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.system.devices import device_key, device_name, hardware_slug
from cifar_lightning.system.openmp_waiting import as_by_default
from cifar_lightning.variants import precision, pytorch, registry
from cifar_lightning.variants.context import Unsupported, VariantContext, example_images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkSpec:
    """What to measure: every variant with every number of threads, by one protocol.

    Attributes:
        variants: Names that `registry.check` accepts.
        threads: CPU threads; on a GPU the first number alone counts.
        protocol: ``full`` or ``quick``.
    """

    variants: list[str]
    threads: list[int]
    protocol: str

    def checked(self, prefix: str = "", may_be_empty: bool = False) -> Self:
        """See that all of it exists; return it with each variant's name as it is recorded.

        Raises:
            UserError: With the key that is wrong, behind ``prefix``.
        """
        names = [registry.check(name, f"{prefix}variants") for name in self.variants]
        if self.protocol not in PROTOCOLS:
            raise bad_value(f"{prefix}protocol", self.protocol, ", ".join(PROTOCOLS))
        if not names and not may_be_empty:
            raise bad_value(f"{prefix}variants", "[]", "at least one variant")
        if not self.threads or min(self.threads) < 1:
            raise bad_value(f"{prefix}threads", self.threads, "numbers of at least 1")
        return replace(self, variants=list(dict.fromkeys(names)))

    def combinations(self, device: torch.device) -> Iterator[tuple[str, int]]:
        """Yield each variant with each number of threads."""
        for name in self.variants:
            for count in self.threads if device.type == "cpu" else self.threads[:1]:
                yield name, count

    def missing(self, folder: Path, device: torch.device) -> Iterator[tuple[str, int]]:
        """Yield those of the combinations that a run has no measurement of."""
        for name, threads in self.combinations(device):
            if not Measurement.exists(folder, name, threads, self.protocol):
                yield name, threads


def measure(
    folder: Path,
    data: ImageDataModule,
    spec: BenchmarkSpec,
    device: torch.device,
    only_missing: bool = False,
) -> list[Measurement]:
    """Measure variants of a run and write a JSON file for each.

    A fresh backbone is used for each, outside any surrounding ``inference_mode``. A variant that
    this device can't run, or that fails, gives a measurement that says so.

    Args:
        folder: The run's.
        data: Gives the test split, and training images to calibrate with.
        spec: What to measure.
        device: Where.
        only_missing: Leave out what the run has a measurement of.

    Returns:
        The measurements taken, in the order asked for.

    Raises:
        Interrupted: If a signal came; those that were finished are kept.
    """
    measurements = []
    with torch.inference_mode(mode=False):
        wanted = spec.missing(folder, device) if only_missing else spec.combinations(device)
        for name, threads in wanted:
            measurement = _measure(folder, data, name, threads, device, spec.protocol)
            measurements.append(measurement)
            kept = new_measurement(folder, measurement)
            if measurement.reason:
                stays = "; the earlier measurement stays" if kept else ""
                log.info("%s is %s: %s%s", name, measurement.status, measurement.reason, stays)
    return measurements


def new_measurement(folder: Path, measurement: Measurement) -> bool:
    """Write a measurement down, but not in place of one that says more; tell if one was kept.

    A disturbed one says less than an undisturbed one by the same software, and one that failed less
    than any figure of the same weights.
    """
    with suppress(OSError, ValueError):
        earlier = Measurement.read(measurement.path(folder))
        of_these = (earlier.weights, earlier.recipe) == (measurement.weights, measurement.recipe)
        less = earlier.has_figures and not measurement.has_figures
        noisier = _software(earlier) == _software(measurement) and (
            (earlier.status, measurement.status) == ("ok", "disturbed")
        )
        if of_these and (less or noisier):
            return True
    measurement.save(folder)
    return False


def _software(measurement: Measurement) -> tuple[object, ...]:
    versions = measurement.environment.versions
    return versions, measurement.engines, measurement.protocol_version


def _measure(
    folder: Path,
    data: ImageDataModule,
    name: str,
    threads: int,
    device: torch.device,
    protocol: str,
) -> Measurement:
    run = load_run(folder)
    blank = Measurement(
        run=run.name,
        variant=name,
        status="ok",
        reason=None,
        device=device_name(device),
        hardware=hardware_slug(device),
        threads=threads,
        clock=clock_of(device),
        protocol=protocol,
        protocol_version=PROTOCOL_VERSION,
        test_acc=None,
        size_bytes=None,
        code=environment.code(),
        environment=Environment(environment.versions(), environment.machine()),
        samples_ms=[],
        recipe=recipe(name),
        engines=registry.engines(name),
        weights=run.weights,
    )
    backbone = load_backbone(folder)
    try:
        with (
            device_lock(device),
            torch_threads(threads),
            registry.prepare(name, backbone, device, lambda: calibration(data)) as prepared,
            torch.inference_mode(),
        ):
            return _fill(blank, prepared, data, device)
    except Unsupported as error:
        return replace(blank, status="unsupported", reason=str(error))
    except Interrupted:
        raise
    except Exception as error:
        log.debug("%s failed", name, exc_info=True)
        return replace(blank, status="failed", reason=reason_of(error))


def _fill(
    blank: Measurement, prepared: VariantContext, data: ImageDataModule, device: torch.device
) -> Measurement:
    """Evaluate and time a variant that is ready to be called."""
    protocol = PROTOCOLS[blank.protocol]
    confusion = evaluate(prepared.forward, data, device)
    image = example_images(1, device)
    before = device_state(device)
    load = Load(device)
    with as_by_default():
        latency = measure_latency(
            lambda: prepared.forward(image), device, protocol, load.on_block_end
        )
    load.sample()
    environment = replace(
        blank.environment,
        flags=precision.flags(),
        convolution_error=(error := precision.convolution_error(device)),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        device=device_key(device),
    )
    precision.verify_precision(blank.variant, error)
    fraction = load.mean
    disturbed = fraction is not None and fraction > DISTURBED_ABOVE
    return replace(
        blank,
        status="disturbed" if disturbed else "ok",
        reason=f"other processes used {100 * fraction:.0f} %" if disturbed and fraction else None,
        test_acc=accuracy(confusion),
        confusion=confusion.tolist(),
        latency=latency.stats,
        size_bytes=prepared.size_bytes,
        environment=environment,
        samples_ms=latency.samples_ms,
        preparation_s=prepared.preparation_s,
        notes=prepared.notes,
        load=measurement.Load(load.mean, load.peak),
        state={"before": before, "after": device_state(device)},
        wall=latency.wall,
        graph_ms=_replayed_ms(prepared, image, protocol),
    )


def _replayed_ms(prepared: VariantContext, image: Tensor, protocol: Protocol) -> float | None:
    """Time an eager pass replayed as a CUDA graph: the device's work without the launches."""
    if image.device.type != "cuda" or not prepared.eager:
        return None
    try:
        graph, _ = pytorch.capture(prepared.forward, image)
    except Exception as error:  # the measurement is done; this only adds to it
        log.debug("the pass can't be captured", exc_info=error)
        return None
    return measure_latency(graph.replay, image.device, protocol, signals.check).stats.mean_ms

"""Measure a trained run: each variant's accuracy, latency and size, recorded as JSON.

    python -m cifar_lightning.measure run=B1 variants=[fp32,fused,onnx]

does it in a fresh process, without training; ``run=A,B`` tells which of two networks is faster by
timing them in turns.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cifar_lightning import config as configuration
from cifar_lightning import provenance, variants
from cifar_lightning.command import command
from cifar_lightning.company import DISTURBED_ABOVE, Load, device_lock, device_state
from cifar_lightning.data import ImageDataModule
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.latency import (
    PROTOCOL_VERSION,
    PROTOCOLS,
    compare_latencies,
    measure_latency,
)
from cifar_lightning.results import Measurement, Run, find_run, markdown, rows_of, write_table

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Request:
    """What to measure: every variant with every number of threads, by one protocol.

    Attributes:
        variants: Names that `variants.check` accepts.
        threads: CPU threads; on a GPU the first number alone counts.
        protocol: ``full`` or ``quick``.
    """

    variants: Sequence[str]
    threads: Sequence[int]
    protocol: str

    def checked(self, prefix: str = "") -> Request:
        """See that all of it exists; return it with each variant's name as it is recorded.

        Raises:
            UserError: With the key that is wrong, behind ``prefix``.
        """
        names = [variants.check(name, f"{prefix}variants") for name in self.variants]
        if self.protocol not in PROTOCOLS:
            raise bad_value(f"{prefix}protocol", self.protocol, ", ".join(PROTOCOLS))
        if not self.threads or min(self.threads) < 1:
            raise bad_value(f"{prefix}threads", self.threads, "numbers of at least 1")
        return replace(self, variants=list(dict.fromkeys(names)))

    def combinations(self, device: torch.device) -> Iterator[tuple[str, int]]:
        """Yield each variant with each number of threads."""
        for name in self.variants:
            for count in self.threads if device.type == "cpu" else self.threads[:1]:
                yield name, count


def load_backbone(folder: Path) -> nn.Module:
    """Build a run's backbone anew and load its best weights into it.

    Args:
        folder: The run's, with ``run.json`` and ``weights.safetensors``.

    Raises:
        UserError: If the weights are missing, damaged or of another network.
    """
    backbone: nn.Module = instantiate(Run.load(folder).config["model"])
    path = folder / WEIGHTS
    try:
        backbone.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: not the weights of this run's network ({error})") from error
    return backbone.eval()


def measure(
    folder: Path, data: ImageDataModule, request: Request, device: torch.device
) -> list[Measurement]:
    """Measure variants of a run and write a JSON file for each.

    A fresh backbone is used for each, outside any surrounding ``inference_mode``. A variant that
    this device can't run, or that fails, gives a measurement that says so.

    Args:
        folder: The run's.
        data: Gives the test split, and training images to calibrate with.
        request: What to measure.
        device: Where.

    Returns:
        The measurements, in the order asked for.
    """
    measurements = []
    with torch.inference_mode(mode=False):
        for name, threads in request.combinations(device):
            with device_lock(device):
                measurement = _measure(folder, data, name, threads, device, request.protocol)
            measurement.save(folder)
            measurements.append(measurement)
            if measurement.reason:
                log.info("%s is %s: %s", name, measurement.status, measurement.reason)
    return measurements


def _measure(
    folder: Path,
    data: ImageDataModule,
    name: str,
    threads: int,
    device: torch.device,
    protocol: str,
) -> Measurement:
    hardware = device_name(device)
    blank = Measurement(
        run=folder.name,
        variant=name,
        status="ok",
        reason=None,
        device=hardware,
        hardware=re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-"),
        threads=threads,
        clock="cuda_event" if device.type == "cuda" else "perf_counter",
        protocol=protocol,
        protocol_version=PROTOCOL_VERSION,
        test_acc=None,
        latency={},
        size_bytes=None,
        code=provenance.code(),
        environment={"versions": provenance.versions(), "machine": provenance.machine()},
        samples_ms=[],
    )
    backbone = load_backbone(folder)
    try:
        with (
            _threads(threads),
            variants.prepare(name, backbone, device, lambda: _calibration(data)) as prepared,
            torch.inference_mode(),
        ):
            return _fill(blank, prepared, data, device)
    except variants.Unsupported as error:
        return replace(blank, status="unsupported", reason=str(error))
    except Exception as error:
        log.debug("%s failed", name, exc_info=True)
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return replace(blank, status="failed", reason=line)


def _fill(
    blank: Measurement, prepared: variants.Prepared, data: ImageDataModule, device: torch.device
) -> Measurement:
    """Evaluate and time a variant that is ready to be called."""
    protocol = PROTOCOLS[blank.protocol]
    accuracy = evaluate(prepared.forward, data, device)
    image = _image(device)
    before = device_state(device)
    load = Load(device)
    latency = measure_latency(lambda: prepared.forward(image), device, protocol, load.sample)
    load.sample()
    environment = blank.environment | {
        "flags": variants.flags(),
        "convolution_error": variants.convolution_error(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    disturbed = load.mean > DISTURBED_ABOVE
    return replace(
        blank,
        status="disturbed" if disturbed else "ok",
        reason=f"other processes used {100 * load.mean:.0f} %" if disturbed else None,
        test_acc=accuracy,
        latency=asdict(latency.stats),
        size_bytes=prepared.size_bytes,
        environment=environment,
        samples_ms=latency.samples_ms,
        preparation_s=prepared.preparation_s,
        notes=prepared.notes,
        load={"mean": load.mean, "peak": load.peak},
        state={"before": before, "after": device_state(device)},
        wall=asdict(latency.wall) if latency.wall else None,
        graph_ms=_replayed_ms(prepared.forward, image, blank.protocol),
    )


def _image(device: torch.device) -> Tensor:
    """Make the one input that every latency is measured on."""
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)


def _calibration(data: ImageDataModule) -> Tensor:
    """Take normalised training images, (N, 3, 32, 32); the test split stays unseen."""
    chosen = data.indices["train"][:CALIBRATION_IMAGES]
    return data.normalize(data.images.train.images[chosen])


def evaluate(
    forward: Callable[[Tensor], Tensor], data: ImageDataModule, device: torch.device
) -> float:
    """Classify the whole test split; return the accuracy in percent."""
    correct = total = 0
    for images, labels in data.test_dataloader():
        logits = forward(data.normalize(images.to(device)))
        correct += int((logits.argmax(1).cpu() == labels).sum())
        total += len(labels)
    return 100 * correct / total


def _replayed_ms(forward: Callable[[Tensor], Tensor], image: Tensor, protocol: str) -> float | None:
    """Time the same forward pass replayed as a CUDA graph: the device's work without launches."""
    if image.device.type != "cuda":
        return None
    try:
        graph = variants.capture(forward, image).graph
    except RuntimeError:  # some variants can't be captured, or are graphs already
        return None
    return measure_latency(graph.replay, image.device, PROTOCOLS[protocol]).stats.mean_ms


def device_name(device: torch.device) -> str:
    """Name the hardware for people and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = provenance.cpu_model()
    return cpu if device.type == "cpu" else f"{cpu} ({device.type})"


def find_device(name: str) -> torch.device:
    """Find a device by name; ``auto`` takes a GPU where there is one.

    Raises:
        UserError: If it is not there.
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    there.append("cpu")
    wanted = {"auto": there[0], "cuda": "cuda:0", "gpu": "cuda:0"}.get(name, name)
    if wanted not in there:
        raise bad_value("device", name, f"auto, {', '.join(there)} on this machine")
    return torch.device(wanted)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- The command ----------------------------------------------------------------------------


@command("measure", listed=("run",))
def main(cfg: DictConfig) -> None:
    """Measure a finished run, or compare several."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    configuration.check(config)
    request = Request(config["variants"], config["threads"], config["protocol"]).checked()
    device = find_device(config["device"])
    outputs = Path(config["outputs"])
    asked = config["run"] if isinstance(config["run"], list) else [config["run"]]
    folders = [find_run(outputs, str(query)) for query in asked]
    if len(folders) > 1:
        log.info("\n%s", compare(folders, request, device))
        return
    folder = folders[0]
    if config["repeats"] > 1:
        _repeat(folder, request, config)
    else:
        measure(folder, load_data(folder, config["data_root"]), request, device)
    # Of a run that was moved elsewhere, `outputs` has no table.
    if folder.parent == outputs / "runs":
        write_table(outputs)
    log.info("\n%s", markdown(rows_of(folder)))


def load_data(folder: Path, root: str | None = None) -> ImageDataModule:
    """Read a run's data anew.

    Args:
        folder: The run's.
        root: Where its data lie here, if not where they lay in training.

    Raises:
        UserError: If they can't be read or are not what the run was trained on.
    """
    run = Run.load(folder)
    node = run.config["data"] | ({"root": root} if root is not None else {})
    data: ImageDataModule = instantiate(node, _convert_="all")
    if data.images.fingerprint != run.data_fingerprint:
        raise UserError(f"{run.name} was trained on other data than these; say data_root=...")
    return data


def _repeat(folder: Path, request: Request, config: dict[str, Any]) -> None:
    """Measure in fresh processes, and keep the median one with all their figures."""
    names = ",".join(f"'{name}'" for name in request.variants)
    arguments = [
        f"run='{folder}'",
        f"variants=[{names}]",
        f"threads=[{','.join(map(str, request.threads))}]",
        f"protocol={request.protocol}",
        f"device={config['device']}",
    ]
    if config["data_root"] is not None:
        arguments.append(f"data_root='{config['data_root']}'")
    taken: dict[Path, list[Measurement]] = {}
    for number in range(config["repeats"]):
        log.info("process %d of %d", number + 1, config["repeats"])
        done = subprocess.run(
            [sys.executable, "-m", "cifar_lightning.measure", *arguments],
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RunFailed(f"a measuring process ended with status {done.returncode}")
        for path in (folder / Measurement.FOLDER).glob(f"*-{request.protocol}.json"):
            measurement = Measurement.read(path)
            if (
                measurement.variant in request.variants
                and measurement.threads in request.threads
                and measurement.latency
                and not measurement.repeats
            ):
                taken.setdefault(path, []).append(measurement)
    for measurements in taken.values():
        measurements.sort(key=lambda m: m.latency["mean_ms"])
        figures = [
            {key: m.latency[key] for key in ("mean_ms", "p50_ms", "p95_ms")} for m in measurements
        ]
        replace(measurements[len(measurements) // 2], repeats=figures).save(folder)


def compare(folders: Sequence[Path], request: Request, device: torch.device) -> str:
    """Time the networks of several runs in turns, and draw each pair's difference as a table."""
    lines = [
        "| First | Second | Variant | First minus second (ms) | 95 % interval | n | Faster |",
        "| --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    protocol = PROTOCOLS[request.protocol]
    labels = [Run.load(folder).label for folder in folders]
    image = _image(device)
    for name, threads in request.combinations(device):
        with torch.inference_mode(mode=False), ExitStack() as stack:
            stack.enter_context(device_lock(device))
            stack.enter_context(_threads(threads))
            calls = []
            for folder in folders:
                data = load_data(folder) if "int8" in name else None
                try:
                    prepared = stack.enter_context(
                        variants.prepare(
                            name,
                            load_backbone(folder),
                            device,
                            lambda data=data: _calibration(data),  # type: ignore[misc]
                        )
                    )
                except variants.Unsupported as error:
                    raise bad_value(
                        "variants", name, f"what this device can run: {error}"
                    ) from error
                calls.append(lambda forward=prepared.forward: forward(image))
            stack.enter_context(torch.inference_mode())
            for first, second in combinations(range(len(calls)), 2):
                found = compare_latencies(calls[first], calls[second], device, protocol)
                low, high = found.mean_ms - found.mean_ci_ms, found.mean_ms + found.mean_ci_ms
                faster = labels[first] if found.mean_ms < 0 else labels[second]
                lines.append(
                    f"| {labels[first]} | {labels[second]} | {name} | {found.mean_ms:+.4f} "
                    f"| {low:+.4f} to {high:+.4f} | {found.n} | {'tie' if found.tie else faster} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

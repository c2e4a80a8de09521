"""Measure a trained run: each variant's accuracy, latency and size, recorded as JSON.

    python -m cifar_lightning.measure run=B1 variants=[fp32,fused,onnx]

does it in a fresh process, without training; ``run=A,B`` tells which of two networks is faster by
timing them in turns.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cifar_lightning import board, interruption, provenance, results, variants
from cifar_lightning import config as configuration
from cifar_lightning.command import command
from cifar_lightning.company import (
    DISTURBED_ABOVE,
    Load,
    device_key,
    device_lock,
    device_state,
)
from cifar_lightning.data import ImageDataModule
from cifar_lightning.errors import (
    CifarLightningError,
    Interrupted,
    RunFailed,
    UserError,
    bad_value,
    reason_of,
)
from cifar_lightning.files import write_atomically
from cifar_lightning.folders import WEIGHTS, read_weights
from cifar_lightning.latency import compare_latencies, measure_latency
from cifar_lightning.latency_stats import PROTOCOL_VERSION, PROTOCOLS, Protocol
from cifar_lightning.recipes import recipe
from cifar_lightning.results import (
    RUNS,
    Environment,
    Measurement,
    Repeat,
    draw_table,
    find_run,
    load_run,
    markdown,
    rows_of,
    write_table,
)
from cifar_lightning.waiting import as_by_default, computing

log = logging.getLogger(__name__)

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

    def checked(self, prefix: str = "", may_be_empty: bool = False) -> Request:
        """See that all of it exists; return it with each variant's name as it is recorded.

        Raises:
            UserError: With the key that is wrong, behind ``prefix``.
        """
        names = [variants.check(name, f"{prefix}variants") for name in self.variants]
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


def load_backbone(folder: Path) -> nn.Module:
    """Build a run's backbone anew and load its best weights into it.

    Args:
        folder: The run's, with ``run.json`` and ``weights.safetensors``.

    Raises:
        UserError: If the weights are missing, damaged or of another network or run.
    """
    run, path = load_run(folder), folder / WEIGHTS
    try:
        weights = from_bytes(read_weights(folder, run))
    except SafetensorError as error:
        raise UserError(f"{path}: not the weights of this run ({error})") from error
    return build_backbone(run.config["model"], weights, path)


def build_backbone(node: dict[str, Any], weights: dict[str, Tensor], path: Path) -> nn.Module:
    """Build a network as a record says, and load weights into it.

    Args:
        node: ``model`` of its configuration.
        weights: By the names of its parameters and buffers.
        path: The weights' file, to name it in errors.

    Raises:
        UserError: If the builder is none of ours, or the weights are not of this network.
    """
    # First without memory: a record can ask for a network of any size.
    with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        shape_only: nn.Module = configuration.construct("model", node)
        shapes = {name: tensor.shape for name, tensor in shape_only.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise UserError(f"{path}: not the weights of this run's network")
    try:
        backbone: nn.Module = configuration.construct("model", node)
        backbone.load_state_dict(weights)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: not the weights of this run's network") from error
    return backbone.eval()


def measure(
    folder: Path,
    data: ImageDataModule,
    request: Request,
    device: torch.device,
    only_missing: bool = False,
) -> list[Measurement]:
    """Measure variants of a run and write a JSON file for each.

    A fresh backbone is used for each, outside any surrounding ``inference_mode``. A variant that
    this device can't run, or that fails, gives a measurement that says so.

    Args:
        folder: The run's.
        data: Gives the test split, and training images to calibrate with.
        request: What to measure.
        device: Where.
        only_missing: Leave out what the run has a measurement of.

    Returns:
        The measurements taken, in the order asked for.

    Raises:
        Interrupted: If a signal came; those that were finished are kept.
    """
    measurements = []
    with torch.inference_mode(mode=False):
        wanted = request.missing(folder, device) if only_missing else request.combinations(device)
        for name, threads in wanted:
            measurement = _measure(folder, data, name, threads, device, request.protocol)
            measurements.append(measurement)
            kept = _record(folder, measurement)
            if measurement.reason:
                stays = "; the earlier measurement stays" if kept else ""
                log.info("%s is %s: %s%s", name, measurement.status, measurement.reason, stays)
    return measurements


def _record(folder: Path, measurement: Measurement) -> bool:
    """Write a measurement down, but not in place of one that says more; tell if one was kept.

    A disturbed one says less than an undisturbed one by the same software, and one that failed less
    than any figure of the same weights.
    """
    with suppress(OSError, ValueError):
        earlier = Measurement.read(folder / measurement.name)
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
        clock="cuda_event" if device.type == "cuda" else "perf_counter",
        protocol=protocol,
        protocol_version=PROTOCOL_VERSION,
        test_acc=None,
        size_bytes=None,
        code=provenance.code(),
        environment=Environment(provenance.versions(), provenance.machine()),
        samples_ms=[],
        recipe=recipe(name),
        engines=variants.engines(name),
        weights=run.weights,
    )
    backbone = load_backbone(folder)
    try:
        with (
            device_lock(device),
            _threads(threads),
            variants.prepare(name, backbone, device, lambda: _calibration(data)) as prepared,
            torch.inference_mode(),
        ):
            return _fill(blank, prepared, data, device)
    except variants.Unsupported as error:
        return replace(blank, status="unsupported", reason=str(error))
    except Interrupted:
        raise
    except Exception as error:
        log.debug("%s failed", name, exc_info=True)
        return replace(blank, status="failed", reason=reason_of(error))


def _fill(
    blank: Measurement, prepared: variants.Prepared, data: ImageDataModule, device: torch.device
) -> Measurement:
    """Evaluate and time a variant that is ready to be called."""
    protocol = PROTOCOLS[blank.protocol]
    confusion = evaluate(prepared.forward, data, device)
    image = _image(device)
    before = device_state(device)
    load = Load(device)

    def between() -> None:
        load.sample()
        interruption.check()

    with as_by_default():
        latency = measure_latency(lambda: prepared.forward(image), device, protocol, between)
    load.sample()
    environment = replace(
        blank.environment,
        flags=variants.flags(),
        convolution_error=(error := variants.convolution_error(device)),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        device=device_key(device),
    )
    variants.prove(blank.variant, error)
    share = load.mean
    disturbed = share is not None and share > DISTURBED_ABOVE
    return replace(
        blank,
        status="disturbed" if disturbed else "ok",
        reason=f"other processes used {100 * share:.0f} %" if disturbed and share else None,
        test_acc=accuracy(confusion),
        confusion=confusion.tolist(),
        latency=latency.stats,
        size_bytes=prepared.size_bytes,
        environment=environment,
        samples_ms=latency.samples_ms,
        preparation_s=prepared.preparation_s,
        notes=prepared.notes,
        load=results.Load(load.mean, load.peak),
        state={"before": before, "after": device_state(device)},
        wall=latency.wall,
        graph_ms=_replayed_ms(prepared, image, protocol),
    )


def _image(device: torch.device) -> Tensor:
    """Make the one input that every latency is measured on."""
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)


def _calibration(data: ImageDataModule) -> Tensor:
    """Take normalised training images, (N, 3, 32, 32); the test split stays unseen."""
    train = data.indices["train"]
    # Evenly over the split: image folders are read class by class.
    chosen = train[torch.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train))).long()]
    return data.normalize(data.images.train.images[chosen])


def evaluate(
    forward: Callable[[Tensor], Tensor], data: ImageDataModule, device: torch.device
) -> Tensor:
    """Classify the whole test split in this process.

    Returns:
        Counts of images: a row for each true class, a column for each predicted one.
    """
    test = data.images.test
    predicted = []
    for images in test.images.split(data.eval_batch_size):
        interruption.check()
        logits = forward(data.normalize(images.to(device)))
        predicted.append(logits.argmax(1).cpu())
    return multiclass_confusion_matrix(torch.cat(predicted), test.labels, logits.shape[1])


def accuracy(confusion: Tensor) -> float:
    """Take the share of right answers, in percent, from what `evaluate` gives."""
    return 100 * int(confusion.trace()) / int(confusion.sum())


def _replayed_ms(prepared: variants.Prepared, image: Tensor, protocol: Protocol) -> float | None:
    """Time an eager pass replayed as a CUDA graph: the device's work without the launches."""
    if image.device.type != "cuda" or not prepared.eager:
        return None
    try:
        graph = variants.capture(prepared.forward, image).graph
    except Exception as error:  # the measurement is done; this only adds to it
        log.debug("the pass can't be captured", exc_info=error)
        return None
    return measure_latency(graph.replay, image.device, protocol, interruption.check).stats.mean_ms


def device_name(device: torch.device) -> str:
    """Name the hardware for people and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = provenance.processor().title
    return cpu if device.type == "cpu" else f"{cpu} ({device.type})"


def hardware_slug(device: torch.device) -> str:
    """Make the hardware's identity fit for a file name."""
    if device.type == "cuda":
        return provenance.slug(device_name(device))
    cpu = provenance.processor().slug
    return cpu if device.type == "cpu" else f"{cpu}-{device.type}"


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


@command("measure", lists=("run",), sweeps=False)
def main(cfg: DictConfig) -> None:
    """Measure a finished run, or compare several."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    configuration.check(config)
    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("run: needs a value, say run=B1")
    request = Request(config["variants"], config["threads"], config["protocol"]).checked()
    device = find_device(config["device"])
    outputs = Path(config["outputs"])
    asked = config["run"] if isinstance(config["run"], list) else [config["run"]]
    folders = [find_run(outputs, str(query)) for query in asked]
    with interruption.deferred(), computing():
        _answer(config, folders, request, device)


def _answer(
    config: dict[str, Any], folders: list[Path], request: Request, device: torch.device
) -> None:
    """Compare several runs, or measure one and show its rows."""
    outputs = Path(config["outputs"])
    if len(folders) > 1:
        if config["repeats"] > 1:
            raise bad_value("repeats", config["repeats"], "1 where runs are compared")
        log.info("\n%s", compare(folders, request, device, config["data_root"]))
        return
    folder = folders[0]
    data = load_data(folder, config["data_root"])
    load_backbone(folder)
    if config["repeats"] > 1:
        measurements = _repeat(folder, request, device, config)
    else:
        measurements = measure(folder, data, request, device)
    board.draw(folder)
    # Of a run that was moved elsewhere, `outputs` has no table.
    if folder.resolve().parent == (outputs / RUNS).resolve():
        write_table(outputs)
    log.info("\n%s", markdown(rows_of(folder)))
    if failed := [f"{one.variant}: failed: {one.reason}" for one in measurements if one.failed]:
        raise RunFailed("\n".join(failed))


def load_data(folder: Path, root: str | None = None) -> ImageDataModule:
    """Read a run's data anew.

    Where they lie is this machine's to say, not the record's, which may be anybody's.

    Args:
        folder: The run's.
        root: Where its data lie here, if not where ``conf/data`` says.

    Raises:
        UserError: If they can't be read or are not what the run was trained on.
    """
    run = load_run(folder)
    recorded = run.config["data"]
    node = configuration.of_this_machine("data", recorded, folder.resolve().parent.parent)
    hint = ""
    if "root" in recorded:
        if root is not None:
            node["root"] = root
        elif recorded["root"] != node.get("root"):
            hint = f"; the run was trained on data in {recorded['root']}: say data_root=..."
            if "mirrors" in node:
                node["mirrors"] = []  # they are probably there
            if "root" not in node:
                raise UserError(f"data_root: needs a value{hint}")
    try:
        data: ImageDataModule = configuration.construct("data", node)
        fingerprint = data.images.fingerprint
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    if fingerprint != run.data_fingerprint:
        raise UserError(
            f"{run.name} was trained on other data than these{hint or '; say data_root=...'}"
        )
    return data


def _repeat(
    folder: Path, request: Request, device: torch.device, config: dict[str, Any]
) -> list[Measurement]:
    """Measure in fresh processes, and keep the median one with all their figures."""
    names = ",".join(f"'{name}'" for name in request.variants)
    arguments = [
        f"run='{folder}'",
        f"variants=[{names}]",
        f"threads=[{','.join(map(str, request.threads))}]",
        f"protocol={request.protocol}",
        f"device={device}",
    ]
    if config["data_root"] is not None:
        arguments.append(f"data_root='{config['data_root']}'")
    paths = [
        folder / Measurement.file_name(name, hardware_slug(device), threads, request.protocol)
        for name, threads in request.combinations(device)
    ]
    taken: dict[Path, list[Measurement]] = {path: [] for path in paths}
    before = {path: path.read_bytes() for path in paths if path.exists()}
    try:
        for number in range(config["repeats"]):
            log.info("process %d of %d", number + 1, config["repeats"])
            for path in paths:  # so that what is read is this process's
                path.unlink(missing_ok=True)
            reason = _measured_apart(arguments)
            for path in paths:
                if not path.exists():
                    raise RunFailed(f"a measuring process ended early: {reason}")
                taken[path].append(Measurement.read(path))
    except BaseException:
        for path, content in before.items():
            write_atomically(path, content)
        raise
    for path, content in before.items():
        write_atomically(path, content)
    chosen = [_median_of(measurements) for measurements in taken.values()]
    for measurement in chosen:
        _record(folder, measurement)
    return chosen


def _measured_apart(arguments: list[str]) -> str:
    """Measure in a process of its own; return its last words.

    Raises:
        Interrupted: If a signal has come, which is passed on.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "cifar_lightning.measure", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while True:
            with suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=0.2)
                break
            if interruption.received() is not None:
                process.terminate()
    interruption.check()
    return (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]


def _median_of(measurements: list[Measurement]) -> Measurement:
    """Keep the measurement with the median mean, with every process's figures in it."""
    timed = sorted(
        ((m.latency, m) for m in measurements if m.latency), key=lambda pair: pair[0].mean_ms
    )
    if not timed:
        return measurements[-1]
    figures = [Repeat(one.mean_ms, one.p50_ms, one.p95_ms) for one, _ in timed]
    return replace(timed[len(timed) // 2][1], repeats=figures)


def compare(
    folders: Sequence[Path], request: Request, device: torch.device, data_root: str | None = None
) -> str:
    """Time the networks of several runs in turns, and draw each pair's difference as a table."""
    difference = ("First minus second (ms)", "95 % interval")
    lines = [("First", "Second", "Variant", "Threads", *difference, "n", "Faster")]
    protocol = PROTOCOLS[request.protocol]
    labels = [load_run(folder).label for folder in folders]
    if len({*labels}) < len(labels):  # such as the seeds of one ID
        labels = [folder.name for folder in folders]
    images = [load_data(folder, data_root) for folder in folders]
    image = _image(device)
    for name, threads in request.combinations(device):
        with torch.inference_mode(mode=False), ExitStack() as stack:
            stack.enter_context(device_lock(device))
            stack.enter_context(_threads(threads))
            calls = []
            for label, folder, data in zip(labels, folders, images, strict=True):
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
                except CifarLightningError:
                    raise
                except Exception as error:
                    raise RunFailed(f"{label}, {name}: {reason_of(error)}") from error
                calls.append(lambda forward=prepared.forward: forward(image))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(as_by_default())
            for first, second in combinations(range(len(calls)), 2):
                load = Load(device)

                def between(load: Load = load) -> None:
                    load.sample()
                    interruption.check()

                found = compare_latencies(calls[first], calls[second], device, protocol, between)
                low, high = found.mean_ms - found.mean_ci_ms, found.mean_ms + found.mean_ci_ms
                faster = labels[first] if found.mean_ms < 0 else labels[second]
                verdict = "tie" if found.tie else faster
                if (load.mean or 0) > DISTURBED_ABOVE:
                    verdict += " (disturbed)"
                difference = (f"{found.mean_ms:+.4f}", f"{low:+.4f} to {high:+.4f}")
                pair = (labels[first], labels[second], name, str(threads))
                lines.append((*pair, *difference, str(found.n), verdict))
    return draw_table(lines, {3, 4, 6})


if __name__ == "__main__":
    main()

"""Outputs as many runs would leave them, without training: in the real format, all different.

python -m perf.generated_runs runs=1000 outputs=outputs/generated

Three of four runs have a network of their own; the others differ in settings or in the seed. Runs
come in sweeps of ten, each measured in one benchmark with three variants of some 5,000 calls.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
from hydra import compose, initialize_config_dir

from cifar_lightning.benchmark.candidates import REFERENCE, SECOND_REFERENCE
from cifar_lightning.config.protocols import PROTOCOL_VERSION, PROTOCOLS
from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.blocks import Block, Round, Session
from cifar_lightning.runs.candidate import Candidate, Role, recipe
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.identity import run_name
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.predictions import Predictions
from cifar_lightning.runs.resolve import register, resolve
from cifar_lightning.runs.run import MEGA, Run
from cifar_lightning.system import environment
from cifar_lightning.system.event_files import Writer
from cifar_lightning.system.processor import processor

IMAGES, CLASSES = 10_000, 10
CALLS = 40  # in a block
SWEEP = 10  # runs that are measured together
OWN_NETWORK = 4  # each run but every fourth has one
# Of each family: parameters, MACs, and relative latency, of the option as it is in conf.
FAMILIES = {
    "cifarnet": (0.29e6, 9.7e6, 0.7),
    "resnet_cifar": (0.27e6, 41e6, 1.9),
    "repvgg": (0.47e6, 14.4e6, 1.1),
    "mobilenetv3": (1.53e6, 17.5e6, 4.5),
}
VERSIONS, MACHINE = environment.versions(), environment.machine()
SPEEDS = {"fp32": 1.0, "fused": 0.85, "onnx": 0.6}  # of the variants


@dataclass(frozen=True)
class Network:
    """What a run trains, and what is true of it."""

    option: str
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    scale: float  # of its width, over the option's

    @property
    def params(self) -> int:
        return int(FAMILIES[self.option][0] * self.scale**2)

    @property
    def macs(self) -> int:
        return int(FAMILIES[self.option][1] * self.scale**2)

    @property
    def relative(self) -> float:
        return FAMILIES[self.option][2] * (0.4 + 0.6 * math.pow(self.scale, 1.5))

    @property
    def ability(self) -> float:
        """Accuracy of a good training run, in percent."""
        return 96 - 22 / math.pow(1 + self.macs / MEGA / 6, 0.7)


def generate(outputs: Path, count: int, seed: int = 0) -> None:
    """Write the folders of runs and their benchmarks; the tables are not written."""
    rng = np.random.default_rng(seed)
    images = _Images(rng)
    runs: list[tuple[Run, Network]] = []
    for number, (config, network) in enumerate(_trained(count, rng)):
        runs.append((_run(number, config, network, rng), network))
        if len(runs) == SWEEP or number == count - 1:
            with patch("os.fsync"):  # which takes most of the time, and nothing would be lost
                _write(outputs, number, runs, images, rng)
            runs = []


def _trained(count: int, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], Network]]:
    register()
    bases = {}
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for option in FAMILIES:
            composed = compose("train", [f"model={option}"], return_hydra_config=True)
            bases[option] = resolve(composed), dict(composed.hydra.runtime.choices)
    names: set[str] = set()
    while len(names) < count:
        if len(names) % OWN_NETWORK or not names:
            option = str(rng.choice(list(FAMILIES)))
            config, choices = deepcopy(bases[option])
            scale = float(np.round(rng.uniform(0.25, 3), 3))
            _widen(config["model"], scale)
            network = Network(option, config["model"], choices, scale)
        config["epochs"] = config["trainer"]["max_epochs"] = int(rng.integers(10, 60))
        config["seed"] = config["data"]["seed"] = int(rng.integers(0, 3))
        config["optim"]["lr"] = round(float(10 ** rng.uniform(-2.5, 0)), 4)
        config["label_smoothing"] = float(rng.choice([0.0, 0.1, 0.2]))
        name = run_name(config, network.choices)
        if name not in names:
            names.add(name)
            yield deepcopy(config), network


def _widen(model: dict[str, Any], scale: float) -> None:
    if "width" in model:
        model["width"] = scale
    else:
        model["channels"] = [round(scale * channels) for channels in (128, 256, 512)]


def _run(number: int, config: dict[str, Any], network: Network, rng: np.random.Generator) -> Run:
    lacking = abs(np.log10(config["optim"]["lr"] / 0.1)) * 4 + 30 / config["epochs"]
    acc = float(np.clip(network.ability - lacking + 0.2 * rng.normal(), 20, 99))
    name = run_name(config, network.choices)
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    return Run(
        name=name,
        id=f"n{number}",
        choices={group: str(choice) for group, choice in network.choices.items() if choice},
        config=config,
        status="finished",
        started=started.isoformat(),
        data_fingerprint="9c7304011c1c7160",
        code=environment.Code("0" * 40, False),
        versions=VERSIONS,
        machine=MACHINE,
        params=network.params,
        macs=network.macs,
        val_acc=round(acc, 2),
        train_seconds=60.0 * config["epochs"],
        classes=[f"class {label}" for label in range(CLASSES)],
        weights=hashlib.sha256(name.encode()).hexdigest(),
    )


class _Images:
    """Test images, some of which are harder for everybody."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.true = rng.integers(0, CLASSES, IMAGES).astype(np.uint8)
        self.hardness = rng.normal(size=IMAGES)

    def predicted(self, acc: float, rng: np.random.Generator) -> Predictions:
        """Let a network of that accuracy, in percent, classify them."""
        hardness = self.hardness + 0.5 * rng.normal(size=IMAGES)
        wrong = hardness > np.quantile(hardness, acc / 100)
        other = (self.true + rng.integers(1, CLASSES, IMAGES)) % CLASSES
        return Predictions(np.where(wrong, other, self.true).astype(np.uint8), self.true)


def _write(
    outputs: Path,
    number: int,
    runs: Sequence[tuple[Run, Network]],
    images: _Images,
    rng: np.random.Generator,
) -> None:
    record = _benchmark(number, runs, rng)
    timings = {record.candidates[n].key: (n, record.timing(n)) for n in record.ranked}
    path = record.path(outputs, record.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(record))
    for run, network in runs:
        folder = RunFolder.of(outputs, run.name)
        assert run.val_acc is not None
        predictions = images.predicted(run.val_acc - 0.3, rng)
        predictions.save(folder.path, "fp32")
        for variant in SPEEDS:
            if variant != "fp32":
                shutil.copyfile(folder.prediction("fp32"), folder.prediction(variant))
            n, timing = timings[_candidate(run, network, variant).key]
            candidate = record.candidates[n]
            Measurement(
                run=run.name,
                variant=variant,
                status="disturbed" if timing.disturbed else "ok",
                reason="; ".join(timing.disturbances) or None,
                device=record.device,
                hardware=record.hardware,
                threads=candidate.threads,
                clock=record.clock,
                protocol=record.protocol,
                protocol_version=record.protocol_version,
                test_acc=predictions.accuracy,
                confusion=predictions.confusion(CLASSES),
                size_bytes=candidate.size_bytes,
                code=record.code,
                environment=record.environment,
                recipe=candidate.recipe,
                engines=candidate.engines,
                candidate=candidate.key,
                weights=run.weights,
                benchmark=record.id,
                latency=timing.latency,
                relative=timing.relative,
                rounds=timing.rounds,
                ended=timing.ended,
                converged=timing.converged,
                preempted=timing.preempted,
                first_call_ms=candidate.first_call_ms,
                peak_bytes=candidate.peak_bytes,
            ).save(folder.path)
        _write_training(folder, run, rng)
        replace(run, test_acc=predictions.accuracy).save(folder.path)


def _write_training(folder: RunFolder, run: Run, rng: np.random.Generator) -> None:
    said = [f"model={run.choices['model']}", f"epochs={run.config['epochs']}"]
    said += [f"optim.lr={run.config['optim']['lr']}", f"seed={run.config['seed']}"]
    folder.hydra.mkdir(parents=True, exist_ok=True)
    folder.overrides.write_text("".join(f"- {one}\n" for one in said))
    assert run.val_acc is not None
    with Writer(str(folder.tensorboard)) as writer:
        for epoch in range(run.config["epochs"]):
            done = (epoch + 1) / run.config["epochs"]
            writer.add_scalar("train/loss", 0.3 + 2 * (1 - done) ** 2 + 0.05 * rng.random(), epoch)
            writer.add_scalar("val/acc", run.val_acc / 100 * (1 - 0.4 * (1 - done) ** 2), epoch)


def _candidate(run: Run, network: Network, variant: str, role: Role = "candidate") -> Candidate:
    return Candidate(
        role=role,
        label=run.label,
        network=network.option,
        model=dict(network.config),
        variant=variant,
        recipe=recipe(variant),
        engines={"torch": VERSIONS["torch"]}
        | ({"onnxruntime": "1.24"} if variant == "onnx" else {}),
        threads=1,
        run=run.name,
        weights=run.weights,
        size_bytes=4 * network.params + 10_000,
        first_call_ms=2.0 * network.relative,
        peak_bytes=8 * network.params,
    )


def _benchmark(
    number: int, runs: Sequence[tuple[Run, Network]], rng: np.random.Generator
) -> BenchmarkRecord:
    """Time each distinct candidate: the machine's speed walks, each block errs."""
    timed: dict[str, tuple[Candidate, float]] = {}
    for run, network in runs:
        for variant, speed in SPEEDS.items():
            one = _candidate(run, network, variant)
            timed.setdefault(one.key, (one, network.relative * speed))
    references: tuple[tuple[Role, str, float], ...] = (
        ("reference", REFERENCE, 1.0),
        ("double", REFERENCE, 1.0),
        ("second_reference", SECOND_REFERENCE, 4.5),
    )
    for role, option, relative in references:
        plain = Candidate(role, role, option, {"name": option}, "fp32", {"fp32": 1}, {}, 1)
        timed[role] = plain, relative
    truths = np.log([0.8 * relative for _, relative in timed.values()])
    order, rounds = list(range(len(timed))), PROTOCOLS["full"].expected_rounds
    shift = 0.005 * rng.normal(size=len(timed))
    drift = np.cumsum(0.005 * rng.normal(size=rounds))[:, None]
    means = np.exp(truths + shift + drift + 0.01 * rng.normal(size=(rounds, len(timed))))
    calls = np.round(means[:, :, None] * rng.gamma(200, 1 / 200, (*means.shape, CALLS)), 6)
    seconds = calls.sum(axis=2) / 1000
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    return BenchmarkRecord(
        id=f"{started:%Y%m%d-%H%M%S}-{number:06x}",
        started=started.isoformat(),
        protocol="full",
        protocol_version=PROTOCOL_VERSION,
        device=processor().title,
        hardware=processor().slug,
        clock="perf_counter",
        code=environment.Code("0" * 40, False),
        environment=Environment(VERSIONS, MACHINE),
        candidates=[one for one, _ in timed.values()],
        state={},
        sessions=[
            Session(
                order,
                [
                    Round(order, [Block(ms.tolist(), s, s) for ms, s in zip(*row, strict=True)])
                    for row in zip(calls[part], seconds[part].tolist(), strict=True)
                ],
                "converged",
            )
            for part in np.array_split(np.arange(rounds), PROTOCOLS["full"].processes)
        ],
    )


def main() -> None:
    """Generate as many as the command line says."""
    given = {"runs": "1000", "outputs": "outputs/generated"}
    given |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    generate(Path(given["outputs"]), int(given["runs"]))


if __name__ == "__main__":
    main()

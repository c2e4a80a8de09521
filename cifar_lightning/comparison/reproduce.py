"""The commands that make a row again, and that would tell more about several."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hydra.core.override_parser.types import Quote, QuotedString

from cifar_lightning.comparison.entry import Entry, Group
from cifar_lightning.comparison.provenance import commit
from cifar_lightning.config.components import MACHINE
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.interleaved import Interleaved
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Versions
from cifar_lightning.system import environment, escaping
from cifar_lightning.system.formatting import relative

DEFAULT_OUTPUTS = Path("outputs")  # conf's
ELSEWHERE = {*MACHINE, "outputs", "rerun"}  # keys whose values are of the machine that it ran on


@dataclass(frozen=True)
class Reproduction:
    """Two commands, each with the commit and versions that it was run with."""

    name: str
    train: str
    trained_with: str
    measure: str
    measured_with: str

    @classmethod
    def of(cls, entry: Entry) -> Self:
        run, measurement = entry.group.runs[0], entry.measurement
        versions = measurement.environment.versions | measurement.engines
        return cls(
            entry.name,
            train_command(entry.group),
            _made_with(run.code, run.versions),
            measure_command([entry]),
            _made_with(measurement.code, versions),
        )


def train_command(group: Group) -> str:
    """Write the command that trained a group of seeds; a multirun where there are several."""
    if group.overrides is None:
        return f"python train.py (what else was said for {group.runs[0].name} was not recorded)"
    seeds = ",".join(str(run.config["seed"]) for run in group.runs)
    kept, said_below = [], {"seed", "init"}
    for override in group.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in ELSEWHERE | said_below and not key.startswith("hydra.") and value[:1] != "/":
            # without quotes that a shell has no use for
            plain = re.sub(r"='([\w.+-]*)'$", r"=\1", override)
            kept.append(escaping.without_secrets(plain))
    config = group.runs[0].config
    keys = {one.lstrip("+~").partition("=")[0] for one in kept}
    if "experiment" in keys and "precision" not in keys and "precision" in config:
        kept.append(f"precision={config['precision']}")  # a preset may leave it to the machine
    if init := config.get("init"):
        kept.append(f"init={init['run']}")  # whatever the file was called
    several = ["-m"] if len(group.runs) > 1 else []
    said = _said_outputs(_outputs(group))
    return _written(["python", "train.py", *several, *kept, f"seed={seeds}", *said])


def measure_command(entries: Sequence[Entry]) -> str:
    """Write the command that measures entries together, where and how they were measured."""
    first, outputs = entries[0].measurement, _outputs(entries[0].group)
    threads = sorted({entry.measurement.threads for entry in entries})
    processes, usual = _processes(entries), PROTOCOLS[first.protocol].processes
    return _written(
        [
            "python",
            "-m",
            "cifar_lightning.measure",
            f"run={_listed(_query(entry.group, outputs) for entry in entries)}",
            f"variants=[{_listed(entry.variant for entry in entries)}]",
            *([f"threads=[{_listed(map(str, threads))}]"] if threads != [1] else []),
            *(["device=cpu"] if _on_cpu(first) else []),  # or a GPU is taken where there is one
            *([f"protocol={first.protocol}"] if first.protocol != "full" else []),
            *([f"processes={processes}"] if processes != usual else []),
            *_said_outputs(outputs),
        ]
    )


def _on_cpu(measurement: Measurement) -> bool:
    return measurement.clock == "perf_counter" and not measurement.hardware.endswith("-mps")


def _processes(entries: Sequence[Entry]) -> int:
    """Tell how many have to measure entries: one as before, several that tied in more of them."""
    usual = PROTOCOLS[entries[0].measurement.protocol].processes
    together = set.intersection(*({one.id for one in _benchmarks(entry)} for entry in entries))
    if len(entries) > 1 and together:
        ran = [len(one.means) for one in _benchmarks(entries[0]) if one.id in together]
        return max(PROTOCOLS["full"].processes, 2 * max(ran))
    last = [one for entry in entries for one in _benchmarks(entry)[:1]]
    # One that was stopped does not tell how many were asked for.
    asked = [len(one.means) for one in last if one.ended != "stopped"]
    return max([*asked, usual]) if len(entries) > 1 or not asked else asked[0]


def _benchmarks(entry: Entry) -> list[Interleaved]:
    """List what timed it, that of its row first."""
    return [one.benchmark for one in entry.timings.timed]


def _listed(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names))


def _outputs(group: Group) -> Path | None:
    """Tell where its runs are; None where that is a path of this machine, never passed on."""
    outputs = relative(RunFolder(group.folder).outputs)
    return None if outputs.is_absolute() else outputs


def _said_outputs(outputs: Path | None) -> list[str]:
    if outputs in (None, DEFAULT_OUTPUTS):
        return []
    return [f"outputs={_hydra_quoted(str(outputs))}"]


def _hydra_quoted(text: str) -> str:
    """Quote what Hydra would read as more than a text, such as a comma."""
    plain = re.fullmatch(r"[\w./-]+", text)
    return text if plain else QuotedString(text, Quote.single).with_quotes()


def _query(group: Group, outputs: Path | None) -> str:
    """Name a run so that it is found, by its folder where that is in other outputs."""
    if _outputs(group) not in (None, outputs):
        return _hydra_quoted(str(relative(group.folder)))
    return group.query


def _written(parts: Iterable[str]) -> str:
    return " ".join(shlex.quote(part) for part in parts)


def _made_with(code: environment.Code, versions: Versions) -> str:
    return ", ".join([commit(code), *(f"{name} {one}" for name, one in versions.items())])

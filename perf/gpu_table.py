"""Commands that measure on a GPU: their arguments, and tables that are kept as far as they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch

from cifar_lightning.benchmark.contention import device_state
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.errors import CifarLightningError, UserError, bad_value, unknown_name
from cifar_lightning.system import environment
from cifar_lightning.system.devices import device_name, find_device
from cifar_lightning.system.files import write_atomically
from cifar_lightning.system.untrusted import encode
from cifar_lightning.variants import registry
from perf.gpu_networks import Builder, backbones


@dataclass(frozen=True)
class Arguments:
    """What a command was told.

    Attributes:
        device: Where to measure.
        backbones: What builds each.
        variants: Names that `registry.check` accepts.
        protocol: Of the rounds.
        json: Where to keep the figures; None for nowhere.
    """

    device: torch.device
    backbones: dict[str, Builder]
    variants: list[str]
    protocol: str
    json: Path | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def arguments(
    description: str | None,
    variants: Collection[str],
    given: Collection[str] | None = None,
    protocol: str = "full",
) -> Arguments:
    """Read the command line.

    Args:
        description: The command's, whose first line `--help` shows.
        variants: Which it measures by default.
        given: Which backbones it measures by default; None for all.
        protocol: Its default.

    Raises:
        UserError: If something is wrong in it, or there is no such device.
    """
    parser = _Parser(description=(description or "").partition("\n")[0], allow_abbrev=False)
    known = backbones()
    add = parser.add_argument
    add("--backbones", default=",".join(given or known), help="of conf/model, as a,b")
    add("--variants", default=",".join(variants), help="as docs/latency.md lists them, as x,y")
    add("--protocol", default=protocol, help="quick or full")
    add("--json", type=Path, help="file to keep the figures in")
    add("--device", default="cuda", help="cpu is for trying the command out")
    told = parser.parse_args()
    names = told.backbones.split(",")
    for name in names:
        if name not in known:
            raise unknown_name(f"--backbones {told.backbones}", "backbone", name, known)
    if told.protocol not in PROTOCOLS:
        raise bad_value("--protocol", told.protocol, ", ".join(PROTOCOLS))
    checked = [registry.check(name, "--variants") for name in told.variants.split(",")]
    if told.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use here")
    return Arguments(
        find_device(told.device),
        {name: known[name] for name in names},
        list(dict.fromkeys(checked)),
        told.protocol,
        told.json,
    )


@dataclass
class Table:
    """A Markdown table that is printed row by row, and kept as JSON as far as it is.

    Attributes:
        title: What was measured.
        columns: For each heading what it shows of a row, such as ``latency.mean_ms``, and its
            format.
        path: Where it is kept; None for nowhere.
        conditions: Where and how it was measured.
        rows: Dataclasses.
    """

    title: str
    columns: Mapping[str, tuple[str, str]]
    path: Path | None
    conditions: dict[str, Any] = field(default_factory=dict)
    rows: list[object] = field(default_factory=list)

    def begin(self, device: torch.device) -> None:
        """Print the heading, with the device's name and versions."""
        self.conditions |= {
            "device": device_name(device),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": asdict(environment.code()),
            "machine": asdict(environment.machine()),
            "versions": environment.versions(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "state before": device_state(device),
        }
        print(f"## {self.title}: {device_name(device)}, torch {torch.__version__}\n")
        print(f"state before: {self.conditions['state before']}\n")
        print(f"| {' | '.join(self.columns)} |")
        rules = ("---:" if layout else "---" for _, layout in self.columns.values())
        print(f"| {' | '.join(rules)} |", flush=True)

    def add(self, row: object) -> None:
        """Print a row."""
        self.rows.append(row)
        cells = (_cell(row, *column) for column in self.columns.values())
        print(f"| {' | '.join(cells)} |", flush=True)

    def fill(self, rows: Iterable[object]) -> None:
        """Print rows as they come, and keep them, also those before a failure."""
        try:
            for row in rows:
                self.add(row)
        finally:
            self.keep()

    def keep(self) -> None:
        """Write the file anew, with all rows so far."""
        if self.path is not None:
            told = {"title": self.title, **self.conditions, "rows": self.rows}
            write_atomically(self.path, encode(told))

    def end(self, device: torch.device) -> None:
        """Keep what there is, with the state of the device afterwards."""
        self.conditions["state after"] = device_state(device)
        self.keep()
        print(f"\nstate after: {self.conditions['state after']}", flush=True)


def _cell(row: object, path: str, layout: str) -> str:
    """Write what a path leads to; a dash where it ends in None."""
    value: Any = row
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return "-" if value is None else format(value, layout).replace("|", "\\|")


def run(main: Callable[[], None]) -> None:
    """Run a command; an error that people can mend, or a failure, is one line."""
    try:
        main()
    except CifarLightningError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)

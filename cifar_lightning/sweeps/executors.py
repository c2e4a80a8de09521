"""Where jobs run: processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.outcome import VARIABLE


class Process(Protocol):
    """A job that was started; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Tell its exit status; None while it is under way."""

    def terminate(self) -> None:
        """Ask it to end after its current batch."""


class Place(Protocol):
    """What starts jobs.

    Attributes:
        max_parallel: How many at a time.
        apart: Whether training and measuring have to be kept apart.
    """

    max_parallel: int

    @property
    def apart(self) -> bool: ...

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        """Start a job; where several run at a time, they write their output to a file."""


def outcome_file(output: Path) -> Path:
    """Tell where a job on this machine leaves its outcome."""
    return output.with_name(f"{output.name}.outcome")


def command_line(overrides: Sequence[str]) -> list[str]:
    """Make the command that runs one job alone."""
    return [sys.executable, "-m", "cifar_lightning.train", *_search_path(sys.argv[1:]), *overrides]


def _search_path(arguments: Sequence[str]) -> list[str]:
    """Hand on where Hydra looks for more configuration files; it keeps these from the jobs."""
    handed = [text for text in arguments if text.lstrip("+").startswith("hydra.searchpath=")]
    for option in ("--config-dir", "-cd"):
        if option in arguments[:-1]:
            handed += ["--config-dir", arguments[arguments.index(option) + 1]]
    return handed + [text for text in arguments if text.startswith("--config-dir=")]


@dataclass
class LocalExecutor:
    """Processes on this machine; on several GPUs each takes one."""

    max_parallel: int

    @property
    def apart(self) -> bool:
        return self.max_parallel > 1

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        told = {VARIABLE: str(outcome_file(output))}
        if self.max_parallel == 1:
            return subprocess.Popen(command_line(overrides), env=os.environ | told)
        with output.open("ab") as stream:
            return subprocess.Popen(
                command_line(overrides),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment(job, slot) | told,
            )

    def environment(self, job: Job, slot: int) -> dict[str, str]:
        """Share the machine: a GPU each, and the cores."""
        shares = {}
        if "OMP_NUM_THREADS" not in os.environ:
            shares["OMP_NUM_THREADS"] = str(max(1, usable_cores() // self.max_parallel))
        gpus = self._gpus
        if len(gpus) > 1 and job.config["trainer"].get("devices", 1) == 1:
            shares["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        return shares

    @cached_property
    def _gpus(self) -> list[str]:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))

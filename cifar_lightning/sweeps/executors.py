"""Where jobs run: the protocol, and processes on this machine."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.outcome import VARIABLE


class Process(Protocol):
    """A job that was started; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Tell its exit status; None while it is under way."""

    def terminate(self) -> None:
        """Ask it to end after its current batch."""


class Executor(Protocol):
    """What starts jobs.

    Attributes:
        max_parallel: How many at a time.
        measures_later: Whether several of its jobs are measured here, together at the end.
    """

    max_parallel: int
    measures_later: ClassVar[bool]

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
    measures_later: ClassVar[bool] = True

    def start(self, job: Job, overrides: Sequence[str], slot: int, output: Path) -> Process:
        command = command_line(overrides)
        env = os.environ | {VARIABLE: str(outcome_file(output))}
        if self.max_parallel == 1:
            return subprocess.Popen(command, env=env)
        with output.open("ab") as stream:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=env | self.environment(job, slot),
            )

    def environment(self, job: Job, slot: int) -> dict[str, str]:
        """Divide the machine among the jobs: a GPU each, and the cores."""
        parts = {}
        if "OMP_NUM_THREADS" not in os.environ:
            parts["OMP_NUM_THREADS"] = str(max(1, usable_cores() // self.max_parallel))
        if len(self._gpus) > 1 and job.config["trainer"].get("devices", 1) == 1:
            parts["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return parts

    @cached_property
    def _gpus(self) -> list[str]:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))

"""A finished run met again: its row, and what has changed since it was trained.

Light on imports: torch is not needed to show a row.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cifar_lightning.runs import resolve
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.markdown import markdown
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run, read_weights
from cifar_lightning.runs.table import TABLE_MD, write_table
from cifar_lightning.system import environment
from cifar_lightning.system.formatting import duration, relative

log = logging.getLogger(__name__)


def shown(cfg: DictConfig) -> bool:
    """Show the configured run's row if there is nothing left to do for it.

    Args:
        cfg: Composed and checked.

    Returns:
        Whether that was so. Never in one of several processes: there the first one decides.
    """
    if any(name in os.environ for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID")):
        return False
    config = resolve.resolve(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    run = finished(folder, config)
    if run is None:
        return False
    show_again(folder, run, config)
    return True


def finished(folder: Path, config: Mapping[str, Any]) -> Run | None:
    """Read a run that is finished and measured as asked; None if work is left or it is damaged.

    Raises:
        UserError: If its weights are not those that it was recorded with.
    """
    if config["rerun"] or not RunFolder(folder).weights.exists():
        return None
    try:
        run = Run.load(folder)
    except (FileNotFoundError, ValueError):
        return None
    benchmark = config["benchmark"]
    on_cpu = run.machine.device == run.machine.processor.title
    measured = all(
        any(
            Measurement.exists(folder, name, threads, benchmark["protocol"])
            for name in _spellings(variant)
        )
        for variant in benchmark["variants"]
        for threads in (benchmark["threads"] if on_cpu else benchmark["threads"][:1])
    )
    if run.status != "finished" or not measured:
        return None
    read_weights(folder, run)
    return run


def _spellings(variant: str) -> Iterator[str]:
    """Write a variant's parts in every order: a measurement has the one in which they work."""
    parts = set(variant.split("+")) - {"fp32"} or {"fp32"}
    return map("+".join, permutations(parts))


def show_again(folder: Path, run: Run, config: Mapping[str, Any]) -> None:
    """Show a finished run's rows, with the ID that is asked for now, and say what differs."""
    log.info("%s is finished; rerun=true would train it again", run.name)
    take_up(folder, run, config)
    write_table(Path(config["outputs"]))
    show(folder)


def take_up(folder: Path, run: Run, config: Mapping[str, Any]) -> None:
    """Give a finished run the ID that is asked for now, and say what has changed since."""
    if config["id"] not in (None, run.id):
        replace(run, id=config["id"]).save(folder)
    for change in changes_since(run):
        log.info("since then changed: %s", change)


def changes_since(run: Run) -> list[str]:
    """Tell what differs between the code and packages of a run and those of now."""
    changes = []
    code = environment.code()
    then, now = run.code.commit, code.commit
    if then and now and then != now:
        changes.append(f"the code, {then[:8]} -> {now[:8]}")
    elif then and now and (run.code.dirty or code.dirty):
        changes.append(f"perhaps the code, {now[:8]} with uncommitted changes")
    versions = environment.versions()
    changes += [
        f"{name}, {version} -> {versions.get(name)}"
        for name, version in run.versions.items()
        if version != versions.get(name)
    ]
    return changes


def show(folder: Path) -> None:
    """Show a run's rows, the time it took, and where its files are."""
    log.info("\n%s", markdown(rows_of(folder)))
    run = Run.load(folder)
    if run.train_seconds is not None:
        log.info("trained in %s", duration(run.train_seconds))
    paths = RunFolder(folder)
    for path in (*sorted(paths.checkpoints.glob("*.ckpt")), paths.weights):
        log.info("%s", relative(path))
    log.info("%s", relative(paths.outputs / TABLE_MD))

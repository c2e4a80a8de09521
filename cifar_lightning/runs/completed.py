"""A finished run met again: what is left to do, and what has changed since it was trained.

Light on imports: torch is not needed for that.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.related import relations
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.table import TABLE_MD
from cifar_lightning.runs.weights import read_weights
from cifar_lightning.system import environment
from cifar_lightning.system.formatting import duration, relative

log = logging.getLogger(__name__)


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
    # With a driver but no GPU, torch finds that nothing is left to do.
    on_gpu = config["trainer"].get("accelerator") != "cpu" and environment.has_gpu_driver()
    measured = all(
        Measurement.exists(folder, variant, threads, benchmark["protocol"], on_gpu=on_gpu)
        for variant in benchmark["variants"]
        for threads in (benchmark["threads"][:1] if on_gpu else benchmark["threads"])
    )
    if run.status != "finished" or lacks_test(run, config) or not measured:
        return None
    read_weights(folder, run)
    return run


def lacks_test(run: Run, config: Mapping[str, Any]) -> bool:
    """Tell whether a run that validation alone has judged so far is to be tested now."""
    return bool(config["test"]) and run.test_acc is None


def take_up(folder: Path, run: Run, config: Mapping[str, Any]) -> Run:
    """Give a finished run the ID that is asked for now, and say what has changed since."""
    now = run
    if config["id"] not in (None, run.id):
        now = replace(run, id=config["id"]).save(folder)
        RunFolder(folder).link_board(now.label)
    for change in changes_since(run):
        log.info("since then changed: %s", change)
    return now


def meet_again(folder: Path, run: Run, config: Mapping[str, Any]) -> None:
    """Take up a finished run that a command was given for again, and say so."""
    log.info("%s is finished; rerun=true would train it again", run.name)
    now = take_up(folder, run, config)
    for line in relations(Path(config["outputs"]), now, run):
        log.warning("%s", line)


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


def show_files(folder: Path) -> None:
    """Show the time a run took, and where its files are."""
    run, paths = Run.load(folder), RunFolder(folder)
    if run.train_seconds is not None:
        log.info("trained in %s", duration(run.train_seconds))
    table = paths.outputs / TABLE_MD
    for path in (*sorted(paths.checkpoints.glob("*.ckpt")), paths.weights, table):
        log.info("%s", relative(path))

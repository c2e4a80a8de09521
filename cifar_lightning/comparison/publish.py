"""Publishing a run: what is recorded reaches TensorBoard, the results table and the terminal.

Light on imports: torch is needed only where something is drawn.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cifar_lightning.errors import Interrupted, RunFailed, reason_of
from cifar_lightning.runs import resolve
from cifar_lightning.runs.completed import finished, meet_again, show_files
from cifar_lightning.runs.folder import RunFolder, run_folders
from cifar_lightning.runs.layout import Varied, markdown, sweep_table
from cifar_lightning.runs.results import RunResults, rows_of
from cifar_lightning.runs.table import write_table

log = logging.getLogger(__name__)


def publish(
    outputs: Path,
    folders: Sequence[Path] = (),
    draw: bool = False,
    varied: Varied | None = None,
    hardware: str | None = None,
) -> list[str]:
    """Renew what is derived from the records, and show rows.

    Args:
        outputs: Whose table is written, unless the folders are of runs that were moved elsewhere.
        folders: Of the runs whose rows are shown.
        draw: Whether TensorBoard is to show what is new of these runs.
        varied: What varies among them, if they are of a sweep.
        hardware: Only rows of it are shown; None for all.

    Returns:
        What went wrong, a line for each step; the other steps are done.
    """
    failures: list[str] = []
    with attempt("drawing for TensorBoard", failures):
        for folder in folders:
            if draw and RunFolder(folder).is_undrawn():
                from cifar_lightning.comparison import tensorboard

                tensorboard.draw(folder)
    here = not folders or any(RunFolder(folder).is_in(outputs) for folder in folders)
    if here and run_folders(outputs):
        with attempt("writing the table", failures):
            write_table(outputs)
    if folders:
        with attempt("showing the rows", failures):
            rows = [row for folder in folders for row in rows_of(folder)]
            if rows := [row for row in rows if hardware in (None, row.hardware)]:
                log.info("\n%s", markdown(rows) if varied is None else sweep_table(rows, varied))
    return failures


def seeds_table(folders: Sequence[Path], varied: Varied) -> str:
    """Draw the means of those runs that differ only in the seed; empty if there are none.

    Args:
        folders: The runs'.
        varied: What varies among them.
    """
    from cifar_lightning.comparison.choice import Need  # numpy
    from cifar_lightning.comparison.collect import compare
    from cifar_lightning.comparison.records import Records
    from cifar_lightning.comparison.tables import over_seeds, table

    compared = compare(Records([RunResults.read(folder) for folder in folders]), Need(min_acc=0))
    tables, columns = [], over_seeds(varied)
    for leaderboard in compared.leaderboards:
        several = [
            replace(entry, groups=(group,))
            for entry in leaderboard.entries
            for group in entry.groups
            if len(group.runs) > 1
        ]
        if several:
            tables.append(table(leaderboard, several, columns))
    return "\n".join(tables)


@contextmanager
def attempt(what: str, failures: list[str]) -> Iterator[None]:
    """Note an error instead of ending the work; a signal ends it.

    Args:
        what: Is tried, for people.
        failures: Where the error's line is added.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        log.debug("%s failed", what, exc_info=True)
        failures.append(f"{what}: {reason_of(error)}")


def check_complete(folder: Path, failures: Sequence[str]) -> None:
    """Raise `RunFailed` if anything went wrong after a run was finished.

    Args:
        folder: The run's.
        failures: A line for each step that went wrong.
    """
    if failures:
        again = "the same command again does what is missing"
        raise RunFailed(f"{folder.name}: finished, but {'; '.join(failures)}; {again}")


def publish_finished(cfg: DictConfig) -> bool:
    """Publish the configured run again if there is nothing left to do for it.

    Args:
        cfg: Composed and checked.

    Returns:
        Whether that was so. Never in one of several processes: there the first one decides.

    Raises:
        RunFailed: If a step went wrong.
    """
    if any(name in os.environ for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID")):
        return False
    config = resolve.resolve(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    run = finished(folder, config)
    if run is None:
        return False
    failures: list[str] = []
    with attempt("giving it the ID", failures):
        meet_again(folder, run, config)
    failures += publish(Path(config["outputs"]), [folder], draw=True)
    with attempt("showing its files", failures):
        show_files(folder)
    check_complete(folder, failures)
    return True

"""Finding a finished run by its ID, its name or its folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run, copied, left_out

log = logging.getLogger(__name__)


def find_run(outputs: Path, query: str, key: str = "run") -> Path:
    """Find the folder of one finished run.

    Args:
        outputs: Where to look.
        query: An ID, the beginning of a run's name, or a folder.
        key: What the query was given for, to name it in errors.

    Raises:
        UserError: If there is none, more than one, or it is not finished.
    """
    if os.path.isfile(RunFolder(Path(query)).record):  # noqa: PTH113  # also of what can't be a path
        folder, run = Path(query), load_run(Path(query))
    else:
        runs = dict(_whole_runs(outputs))
        # A record may come from anybody: no ID of one hides another run's name.
        found = (
            [folder for folder, run in runs.items() if query == run.name]
            or [folder for folder, run in runs.items() if query == run.label]
            or [folder for folder, run in runs.items() if query and run.name.startswith(query)]
        )
        if not found:
            names = {name for run in runs.values() for name in (run.label, run.name)}
            raise unknown_name(f"{key}={query}", f"run in {outputs}", query, names)
        if len(found) > 1:
            names = {runs[folder].name for folder in found}
            raise bad_value(key, query, f"one of {', '.join(sorted(names))}: it means them all")
        folder, run = found[0], runs[found[0]]
    if run.status != "finished":
        raise UserError(f"{key}={query}: {run.name} is {run.status}, needed is a finished run")
    return folder


def _whole_runs(outputs: Path) -> Iterator[tuple[Path, Run]]:
    for folder in (one.path for one in RunFolder.all(outputs)):
        try:
            run = Run.load(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            log.warning("%s", left_out(RunFolder(folder).record, error))
            continue
        if run.name == folder.name:
            yield folder, run
        else:
            log.warning("%s", copied(folder, run))


def load_run(folder: Path) -> Run:
    """Read the run of a folder that the user, or a record, has named.

    Raises:
        UserError: If it is missing or damaged.
    """
    path = RunFolder(folder).record
    try:
        return Run.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})") from error

"""Finding a finished run by its ID, its name or its folder."""

import logging
import os
from pathlib import Path

from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.index import named_runs
from cifar_lightning.runs.run import Run

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
        runs = []
        for one in named_runs(outputs):
            if isinstance(one, str):
                log.warning("%s", one)
            else:
                runs.append(one)
        # A record may come from anybody: no ID of one hides another run's name.
        found = (
            [run for run in runs if query == run.name]
            or [run for run in runs if query == run.label]
            or [run for run in runs if query and run.name.startswith(query)]
        )
        if not found:
            names = {run.name if run.name.endswith(run.label) else run.label for run in runs}
            raise unknown_name(f"{key}={query}", f"run in {outputs}", query, names)
        if len(found) > 1:
            names = {run.name for run in found}
            raise bad_value(key, query, f"one of {', '.join(sorted(names))}: it means them all")
        folder = found[0].folder
        run = load_run(folder)
    if run.status != "finished":
        raise UserError(f"{key}={query}: {run.name} is {run.status}, needed is a finished run")
    return folder


def is_weights(query: str | Path) -> bool:
    """Tell whether what was given for a run is a file of weights by itself."""
    return Path(query).suffix == ".safetensors"


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

"""Whether a run's folder is ours to write to."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cifar_lightning.errors import UserError
from cifar_lightning.runs.folder import BENCHMARKS, RunFolder
from cifar_lightning.runs.run import Run
from cifar_lightning.system.files import check_inside, check_writable, is_unfinished


def check_ours(outputs: Path, folder: Path) -> None:
    """See that a run's folder is not there yet, or is one that this project made for it.

    Whatever is written or removed for a run is in this folder. So links must not lead out of the
    outputs, and what is there must be a run's: its record, or nothing but files that a run makes,
    with the configuration that Hydra wrote first.

    Args:
        outputs: The outputs folder.
        folder: The run's.

    Raises:
        UserError: If not.
    """
    check_inside(outputs, folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder, and a run's would be there; move it away")
    paths = {path for path in folder.iterdir() if not is_unfinished(path)}
    for path in sorted(paths):
        check_inside(outputs, path)
    damaged = ""
    if (record := RunFolder(folder).record) in paths:
        try:
            found = Run.load(folder).name
        except (ValueError, OSError):
            damaged = f"a {record.name} that can't be read, and "
        else:
            if found != folder.name:
                raise UserError(f"{folder}: holds the run {found}; move this folder away")
            return
    if foreign := sorted(_foreign(RunFolder(folder), paths)):
        raise UserError(
            f"{folder}: holds {damaged}{', '.join(foreign[:5])}, which no run of this name wrote; "
            "move it away, or set outputs"
        )


def check_measurable(outputs: Path, folders: Iterable[Path]) -> None:
    """See that this user can record measurements of runs, before minutes are spent on them.

    Args:
        outputs: Where the benchmark is recorded.
        folders: The runs'.

    Raises:
        UserError: If not.
    """
    places = [outputs / BENCHMARKS]
    for run in map(RunFolder, folders):
        places += [run.measurements, run.predictions]
    for place in places:
        check_inside(outputs, place)
        check_writable(place)


def _foreign(run: RunFolder, paths: set[Path]) -> Iterator[str]:
    """Yield what can't be a run's in a folder without a record that says so."""
    known = (*run.results, run.output) if run.hydra in paths else ()
    yield from (path.name for path in paths - {*run.before_training, *known})
    written = {
        run.hydra: r"(config|hydra|overrides)\.yaml",
        run.checkpoints: "|".join(re.escape(path.name) for path in (run.best, run.last)),
        run.measurements: r"[a-z0-9_+]+@[a-z0-9-]+-t\d+-(full|quick)\.json",
        run.predictions: r"[a-z0-9_+]+\.npz",
        run.tensorboard: r"events\.out\.tfevents\..+|hparams\.yaml",
    }
    for folder, pattern in written.items():
        for path in folder.iterdir() if folder.is_dir() else ():
            if not (re.fullmatch(pattern, path.name) or is_unfinished(path)):
                yield f"{folder.name}/{path.name}"

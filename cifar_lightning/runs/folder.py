"""A run's folder: what is in it, and whether it is ours to write to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cifar_lightning.errors import UserError
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import RUNS, Network, Run
from cifar_lightning.system import untrusted
from cifar_lightning.system.files import check_inside, is_unfinished

WEIGHTS = "weights.safetensors"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
HYDRA = ".hydra"
LOCK = ".lock"  # held by the process that trains the run
LOG = "train.log"
OUTPUT = "output.log"  # of a job of a sweep that failed
# Removed when a run starts over; the record first, since without it there is no run.
RESULTS = (Run.FILE, WEIGHTS, CHECKPOINTS, Measurement.FOLDER, TENSORBOARD)
BEFORE_TRAINING = (HYDRA, LOCK, LOG)
# What a run writes into its folders.
WRITTEN = {
    HYDRA: r"(config|hydra|overrides)\.yaml",
    CHECKPOINTS: r"(best|last)\.ckpt",
    Measurement.FOLDER: r"[a-z0-9_+]+@[a-z0-9-]+-t\d+-(full|quick)\.json",
    TENSORBOARD: r"events\.out\.tfevents\..+",
}


def run_folder(outputs: Path, name: str) -> Path:
    """Tell where a run's files are."""
    return outputs / RUNS / name


def read_weights(folder: Path, run: Run) -> bytes:
    """Read a run's weights.

    Raises:
        UserError: If they are missing, or not those that the run's record was written with.
    """
    path = folder / WEIGHTS
    try:
        content = untrusted.read(path, untrusted.MAX_WEIGHTS)
        if sha256(content).hexdigest() != run.weights:
            network = Network.from_weights(content)
            other = "they were changed" if network.run == run.name else f"they are of {network.run}"
            raise ValueError(other)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: not the weights of this run ({reason}); rerun=true trains them again"
        ) from error
    return content


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
    names = {path.name for path in folder.iterdir() if not is_unfinished(path)}
    for name in sorted(names):
        check_inside(outputs, folder / name)
    damaged = ""
    if Run.FILE in names:
        try:
            found = Run.load(folder).name
        except (ValueError, OSError):
            damaged = f"a {Run.FILE} that can't be read, and "
        else:
            if found != folder.name:
                raise UserError(f"{folder}: holds the run {found}; move this folder away")
            return
    if foreign := sorted(_foreign(folder, names)):
        raise UserError(
            f"{folder}: holds {damaged}{', '.join(foreign[:5])}, which no run of this name wrote; "
            "move it away, or set outputs"
        )


def _foreign(folder: Path, names: set[str]) -> Iterator[str]:
    """Yield what can't be a run's in a folder without a record that says so."""
    yield from names - {*BEFORE_TRAINING, *((*RESULTS, OUTPUT) if HYDRA in names else ())}
    for name, pattern in WRITTEN.items():
        if (folder / name).is_dir():
            for path in (folder / name).iterdir():
                if not (re.fullmatch(pattern, path.name) or is_unfinished(path)):
                    yield f"{name}/{path.name}"

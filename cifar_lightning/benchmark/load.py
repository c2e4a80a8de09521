"""A run's data, read again."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from cifar_lightning.benchmark.data_check import difference
from cifar_lightning.benchmark.evaluate import calibration
from cifar_lightning.benchmark.network import check_size, load_backbone
from cifar_lightning.config import components
from cifar_lightning.data.module import ImageDataModule
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.runs.candidate import candidate_key
from cifar_lightning.runs.find import find_run, load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Run, runs_of
from cifar_lightning.system.formatting import counted
from cifar_lightning.system.progress import tracked
from cifar_lightning.variants.context import Unsupported, example_images

log = logging.getLogger(__name__)


class RunData:
    """The data of runs; those of several runs are read once, and none is downloaded unasked.

    Args:
        root: See `load_data`. Without one, runs may be measured whose data are not here.
        known: What has been read already, by the run's folder.
        check: See `load_data`.
    """

    def __init__(
        self,
        root: str | None = None,
        known: Mapping[Path, ImageDataModule] | None = None,
        check: bool = True,
    ) -> None:
        self.root, self.check = root, check
        self._of_run: dict[Path, ImageDataModule | None] = dict(known or {})
        self._read: dict[str, ImageDataModule | None] = {}

    def __call__(self, folder: Path) -> ImageDataModule | None:
        """Give the data of a run; None if they are not here, and nobody said where they are.

        Other errors as `load_data`.
        """
        if folder not in self._of_run:
            run = load_run(folder)
            same = json.dumps([run.data_fingerprint, run.config["data"]], sort_keys=True)
            if same not in self._read:
                self._read[same] = self._find(folder, run)
            self._of_run[folder] = self._read[same]
        return self._of_run[folder]

    def _find(self, folder: Path, run: Run) -> ImageDataModule | None:
        try:
            return load_data(folder, self.root, self.root is not None, self.check)
        except UserError as error:
            if self.root is not None or "root" not in run.config["data"]:
                raise
            log.warning(
                "%s is not here and is not downloaded (%s); data_root=... says where it belongs",
                run.config["data"]["name"],
                error,
            )
            return None

    def for_timing(self, folder: Path | None) -> Tensor:
        """Give images to calibrate what is only timed: noise, where the run's are not here."""
        if folder is not None and self(folder) is None:
            return example_images(64)
        return self.calibration(folder)

    def calibration(self, folder: Path | None) -> Tensor:
        """Give images to calibrate a run's network with; noise where it is no run's.

        Raises:
            Unsupported: If the run's data are not here.
        """
        if folder is None:
            return example_images(64)
        if (data := self(folder)) is None:
            raise Unsupported("needs training images to calibrate, and the run's data are not here")
        return calibration(data)


def find_measurable(outputs: Path, queries: Sequence[str], data: RunData) -> list[Path]:
    """Find finished runs that can be measured here, with their networks and data.

    Args:
        outputs: Where to look.
        queries: As `find_run` takes them; ``all`` alone means every run that can be measured.
        data: Reads theirs.

    Raises:
        UserError: If one that was asked for can't be measured, or there is none at all.
    """
    if [*queries] == ["all"]:
        folders = _all_measurable(outputs, data)
    else:
        folders = [find_run(outputs, query) for query in queries]
        for folder in folders:
            data(folder)
            load_backbone(folder)
    sets: dict[tuple[str, str], list[str]] = {}
    for run in map(load_run, folders := list(dict.fromkeys(folders))):
        name = run.config["data"]["name"]
        sets.setdefault((name, run.data_fingerprint), []).append(run.label)
    if len(sets) > 1:
        told = "; ".join(f"{name}: {', '.join(labels)}" for (name, _), labels in sets.items())
        log.info("measured together, ranked apart, as they are of different data: %s", told)
    return folders


def _all_measurable(outputs: Path, data: RunData) -> list[Path]:
    """Find what ``run=all`` means.

    A run whose weights are not here has the latency of those with the same network, or of random
    weights, and comes last.
    """
    whole: dict[Path, str] = {}
    untested = 0
    lacking: list[tuple[Path, Run, UserError]] = []
    for folder, run in tracked([*runs_of(outputs)], "looking at", "runs", slow_steps=True):
        if isinstance(run, str):
            log.warning("%s", run)
        elif run.status == "finished" and run.test_acc is None and not _measured(folder):
            untested += 1
        elif run.status == "finished":
            try:
                load_backbone(folder)
                data(folder)
                whole[folder] = _network(run)
            except UserError as error:
                lacking.append((folder, run, error))
    if untested:
        log.info("left out: %s without a test", counted(untested, "run"))
    without_weights = []
    for folder, run, reason in lacking:
        try:
            if RunFolder(folder).weights.exists():
                raise reason
            if _network(run) not in whole.values():
                check_size(run.label, partial(components.construct, "model", run.config["model"]))
            without_weights.append(folder)
        except UserError as error:
            log.warning("left out: %s", error)
    if not whole and not without_weights:
        none = "none that can be measured here" if lacking or untested else "no finished run"
        allowed = f"used where there are finished runs; {outputs} has {none}"
        raise bad_value("run", "all", allowed)
    return [*whole, *without_weights]


def _measured(folder: Path) -> bool:
    return any(RunFolder(folder).measurements.glob("*.json"))


def _network(run: Run) -> str:
    return candidate_key(run.config["model"], "fp32", {}, {}, 1)


def load_data(
    folder: Path, root: str | None = None, download: bool = True, check: bool = True
) -> ImageDataModule:
    """Read a run's data anew.

    Where they lie is this machine's to say, not the record's, which may be anybody's.

    Args:
        folder: The run's.
        root: Where its data lie here, if not where ``conf/data`` says.
        download: Whether to download them where they are missing.
        check: Whether data that the run was not trained on are refused, not only told of.

    Raises:
        UserError: If they can't be read or are not what the run was trained on.
    """
    run = load_run(folder)
    recorded = run.config["data"]
    outputs, hint = folder.resolve().parent.parent, ""
    node = components.of_this_machine("data", recorded, outputs)
    if "root" in recorded and root is not None:
        node["root"] = root
    elif "root" in recorded:
        hint = f"; the run was trained on data in {recorded['root']}: say data_root=..."
        if "root" not in node:
            raise UserError(f"data_root: needs a value{hint}")
        beside = outputs.parent / node["root"]
        if beside.exists() and not Path(node["root"]).exists():
            node["root"] = str(beside)
        if Path(recorded["root"]).absolute() == Path(node["root"]).absolute():
            hint = ""
        elif "mirrors" in node:
            node["mirrors"] = []  # they are probably there
    if "md5" in node:  # of what the mirrors have, which may be another archive than the run's
        served = components.configured("data", node, outputs, ["md5"]).get("md5", node["md5"])
        if check and served != node["md5"]:
            node["mirrors"] = []
        node["md5"] = served
    try:
        data: ImageDataModule = components.construct("data", node)
        data.known_by_images()
        if download:
            data.prepare_data()
        other = difference(run, data.images)
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    if other is not None:
        told = f"{run.name} was trained on other data than these ({other})"
        if check:
            raise UserError(f"{told}{hint or '; say data_root=...'}, or data_check=false to go on")
        log.warning("%s", told)
    return data

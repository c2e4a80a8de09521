"""Where metrics go: Lightning's loggers, of which TensorBoard's and CSV's also continue a run."""

import csv
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from cifar_lightning.comparison.publish import attempt
from cifar_lightning.config.components import check_component, parameters_of
from cifar_lightning.errors import UserError
from cifar_lightning.runs import identity
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.system import escaping, event_files
from cifar_lightning.training.components import construct


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Leaves out the machine's name, and what is no curve.

    That is the epoch's number, which Lightning adds to everything, and the test's figures, which
    `comparison.tensorboard` shows with the others of the chosen weights.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version=RunFolder(Path(save_dir)).tensorboard.name)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        if self._experiment is None:
            self._experiment = event_files.Writer(self.log_dir, **self._kwargs)
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        curves = {k: v for k, v in metrics.items() if k != "epoch" and not k.startswith("test/")}
        super().log_metrics(curves, step)

    def continue_at(self, step: int) -> None:
        """Drop what a killed process wrote beyond a step."""
        self._kwargs["purge_step"] = step


class CSVLogger(loggers.CSVLogger):
    """Keeps the earlier lines when a run continues; Lightning's would begin a new file."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version=RunFolder(Path(save_dir)).csv.name)

    def continue_at(self, step: int) -> None:
        """Drop what a killed process wrote beyond a step, and keep the rest."""
        path = Path(self.log_dir) / "metrics.csv"
        earlier = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        self.experiment.metrics = [line for line in earlier if int(line["step"]) < step]


def build_loggers(nodes: Mapping[str, Any], folder: Path, failures: list[str]) -> list[Logger]:
    """Build what the ``logger`` group names; each writes into the run's folder, or under its name.

    One that can't be closed, as a full disk or a server that is gone does not let it, ends nothing.

    Args:
        nodes: Of the configuration, by the loggers' names.
        folder: The run's.
        failures: Where a line is added for each that could not be closed.

    Raises:
        UserError: If one's package is not installed, or its settings are wrong.
    """
    given = {"save_dir": str(folder), "id": folder.name, "run_name": folder.name}
    found = []
    for name, node in nodes.items():
        key = f"logger.{name}"
        try:
            check_component(key, node, tuple(given.keys() - node.keys()))
            taken = parameters_of(get_object(node["_target_"])).keys() - node.keys()
            logger = construct(key, node, (), **{k: given[k] for k in given.keys() & taken})
        except ImportError as error:
            message = f"logger={name}: needs the package {name}: pip install {name}"
            raise UserError(message, key) from error
        logger.finalize = partial(_close, logger.finalize, f"closing {key}", failures)
        found.append(logger)
    return found


def _close(finalize: Callable[[str], None], what: str, failures: list[str], status: str) -> None:
    with attempt(what, failures):
        finalize(status)


def keep_logging(found: list[Logger]) -> None:
    """Let the loggers of a run that is trained add to what they have of it."""
    for logger in found:
        if isinstance(logger, CSVLogger):
            logger.continue_at(sys.maxsize)


def begin_logging(found: list[Logger], config: Mapping[str, Any], continued_at: int | None) -> None:
    """Give each logger the run's settings, or where a continued run goes on.

    Args:
        found: The run's loggers.
        config: Resolved; what changes the weights is shown, without paths and addresses.
        continued_at: The optimizer's steps that are done; None at the very beginning.
    """
    shown = identity.training_config(config)
    for logger in found:
        if continued_at is not None:
            if isinstance(logger, TensorBoardLogger | CSVLogger):
                logger.continue_at(continued_at)
        elif isinstance(logger, TensorBoardLogger):
            text = OmegaConf.to_yaml(OmegaConf.create(shown))
            logger.experiment.add_text("configuration", escaping.markdown_block(text, "yaml"))
        else:
            logger.log_hyperparams(shown)

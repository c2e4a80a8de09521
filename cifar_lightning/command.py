"""What every command shares: Hydra around it, errors in one line, exit statuses, no leftovers."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cifar_lightning import config
from cifar_lightning.errors import CifarLightningError, Interrupted, UserError


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command out of a function of the composed configuration.

    A mistake of the user ends it with one line on stderr and status 2, and what the command had
    made is removed again. Other errors of ours end it with one line and their own status.

    Args:
        config_name: The file in ``conf``, without its ending.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        config.register()
        composed: list[DictConfig] = []

        @wraps(task)
        def tidy_task(cfg: DictConfig) -> None:
            composed.append(cfg)
            try:
                task(cfg)
            except (UserError, KeyboardInterrupt):
                _remove_leftovers()
                raise

        hydra_main = hydra.main(
            version_base="1.3", config_path=str(config.CONF_DIR), config_name=config_name
        )(tidy_task)

        @wraps(task)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, instead of printing and exiting with 1
            composed.clear()
            try:
                hydra_main()
            except KeyboardInterrupt:
                _end(Interrupted("interrupted"))
            except Exception as error:
                known = error if isinstance(error, CifarLightningError) else config.explain(error)
                if known is None and not composed:
                    # Hydra does not wrap everything that it finds wrong with a command line.
                    known = UserError(" ".join(str(error).split()))
                if known is None:
                    raise
                _end(known)

        return main

    return decorate


def _end(error: CifarLightningError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)


def _remove_leftovers() -> None:
    """Remove what Hydra made for a job that never became a run."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if not (folder / "run.json").exists():
        shutil.rmtree(folder / str(settings.output_subdir), ignore_errors=True)
        (folder / "train.log").unlink(missing_ok=True)
        _remove_empty(folder)
    if settings.mode == RunMode.MULTIRUN:
        (Path(settings.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
        _remove_empty(Path(settings.sweep.dir))


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those above it as far as they hold nothing."""
    for candidate in (folder, *folder.parents):
        try:
            candidate.rmdir()
        except OSError:
            return

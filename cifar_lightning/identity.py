"""From a composed configuration to a run: its settings as plain values, and its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config import (
    NAMING_GROUPS,
    SCHEMAS,
    check,
    plain,
    run_name,
)
from cifar_lightning.errors import UserError
from cifar_lightning.results import RUNS, find_run


def resolve(composed: DictConfig) -> dict[str, Any]:
    """Make plain containers of the task's part of a composed configuration.

    A teacher becomes the name of its run, however it was given: by what it is, it is part of the
    student's identity.

    Raises:
        UserError: If a needed value is missing, or there is no such teacher.
    """
    config = plain(composed)
    if config["distill"] is not None:
        outputs, given = Path(config["outputs"]), str(config["distill"]["teacher"])
        folder = find_run(outputs, given, "distill.teacher")
        if folder.resolve().parent != (outputs / RUNS).resolve():
            raise UserError(f"distill.teacher={given}: needed is a run in {outputs / RUNS}")
        config["distill"]["teacher"] = folder.name
    return config


def register() -> None:
    """Make the schemas and the ``run_name`` resolver known to Hydra."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=name, node=schema)
    OmegaConf.register_new_resolver("run_name", _resolve_run_name, replace=True)


def _resolve_run_name(_root_: DictConfig) -> str:
    """Check the whole configuration and name its run.

    Hydra asks for the name before it makes the run's folder, so a mistake leaves nothing behind.
    """
    config = resolve(_root_)
    check(config)
    hydra = _root_.get("hydra") or HydraConfig.get()
    choices = hydra.runtime.choices
    for group in NAMING_GROUPS:
        if not isinstance(choices.get(group), str):
            raise UserError(f"{group}: needs exactly one option, say {group}=...")
    return run_name(config, choices)

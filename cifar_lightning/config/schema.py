"""The top-level keys of every command and their types; `conf/` holds the values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from cifar_lightning.errors import UserError

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
NAMING_GROUPS = ("model", "optim", "scheduler")  # their options are in a run's name


@dataclass
class TrainConfig:
    """Types of the top level of ``conf/train.yaml``, which holds the values."""

    model: dict[str, Any] = MISSING
    optim: dict[str, Any] = MISSING
    scheduler: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    augment: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    distill: dict[str, Any] | None = None
    benchmark: dict[str, Any] = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    precision: str = MISSING
    ema: float | None = MISSING
    label_smoothing: float = MISSING
    channels_last: bool = MISSING
    compile: bool = MISSING
    id: str | None = MISSING
    outputs: str = MISSING
    rerun: bool = MISSING


@dataclass
class TuneConfig(TrainConfig):
    """Types of what ``conf/tune.yaml`` adds."""

    n_trials: int = MISSING
    space: dict[str, Any] = MISSING


@dataclass
class MeasureConfig:
    """Types of ``conf/measure.yaml``."""

    run: Any = MISSING
    variants: list[str] = MISSING
    threads: list[int] = MISSING
    protocol: str = MISSING
    device: str = MISSING
    repeats: int = MISSING
    outputs: str = MISSING
    data_root: str | None = MISSING


@dataclass
class ReportConfig:
    """Types of ``conf/report.yaml``."""

    outputs: list[str] = MISSING
    to: str | None = MISSING
    min_acc: float = MISSING
    baseline: str | None = MISSING
    sort: str = MISSING
    filter: list[str] = MISSING
    detail: str | None = MISSING


@dataclass
class PredictConfig:
    """Types of ``conf/predict.yaml``."""

    run: str = MISSING
    images: list[str] = MISSING
    top: int = MISSING
    format: str = MISSING
    device: str = MISSING
    outputs: str = MISSING


@dataclass
class ExportConfig:
    """Types of ``conf/export.yaml``."""

    run: str = MISSING
    format: str = MISSING
    to: str | None = MISSING
    outputs: str = MISSING
    data_root: str | None = MISSING


SCHEMAS = {
    "schema": TrainConfig,
    "tune_schema": TuneConfig,
    "measure_schema": MeasureConfig,
    "report_schema": ReportConfig,
    "predict_schema": PredictConfig,
    "export_schema": ExportConfig,
}


def plain(config: DictConfig) -> dict[str, Any]:
    """Make plain containers of the task's part of a composed configuration.

    Raises:
        UserError: If a needed value is missing.
    """
    keys = [field.name for field in fields(TrainConfig)]
    task = OmegaConf.masked_copy(config, keys)
    for key in sorted(OmegaConf.missing_keys(task)):
        raise UserError(f"{key}: needs a value, say {key}=...")
    resolved = OmegaConf.to_container(task, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}

"""The top-level keys of every command and their types; `conf/` holds the values."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from cifar_lightning.config.texts import (
    DataTexts,
    DistillTexts,
    LoggerTexts,
    ModelTexts,
    PathText,
    expand_home,
    text_keys,
)
from cifar_lightning.errors import UserError, bad_value, unknown_name

_PACKAGE = Path(__file__).resolve().parents[1]
# Beside the package in a checkout, inside it where it was installed.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
NAMING_GROUPS = ("model", "optim", "scheduler")  # their options are in a run's name


@dataclass
class TrainConfig:
    """Types of the top level of ``conf/train.yaml``, which holds the values."""

    model: dict[str, Any] = field(default=MISSING, metadata={"texts": ModelTexts})
    optim: dict[str, Any] = MISSING
    scheduler: dict[str, Any] = MISSING
    data: dict[str, Any] = field(default=MISSING, metadata={"texts": DataTexts})
    augment: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    callbacks: dict[str, Any] | None = None
    logger: dict[str, Any] | None = field(default=None, metadata={"texts": LoggerTexts})
    distill: dict[str, Any] | None = field(default=None, metadata={"texts": DistillTexts})
    benchmark: dict[str, Any] = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    precision: str = MISSING
    ema: float | None = MISSING
    label_smoothing: float = MISSING
    channels_last: bool = MISSING
    compile: bool | str = MISSING
    init: PathText | None = None
    id: str | None = MISSING
    outputs: PathText = MISSING
    test: bool = MISSING
    rerun: bool = MISSING


@dataclass
class TuneConfig(TrainConfig):
    """Types of what ``conf/tune.yaml`` adds."""

    n_trials: int = MISSING
    space: dict[str, Any] = MISSING
    storage: str | None = None
    # Of a search for a front; null in one for an accuracy.
    variant: str | None = None
    threads: int | None = None
    max_ms: float | None = None
    rungs: list[int] | None = None
    hours: float | None = None
    targets: list[float] | None = None
    final_minutes: float | None = None
    final_seeds: list[int] | None = None
    base: list[str] | None = None


@dataclass
class MeasureConfig:
    """Types of ``conf/measure.yaml``."""

    run: list[PathText] = MISSING
    # Hydra takes what a group is called for the group.
    networks: list[str] = field(default=MISSING, metadata={"argument": "model"})
    variants: list[str] = MISSING
    threads: list[int] = MISSING
    protocol: str = MISSING
    device: str = MISSING
    processes: int | None = MISSING
    rerun: bool = MISSING
    outputs: PathText = MISSING
    data_root: PathText | None = MISSING
    data_check: bool = MISSING


@dataclass
class ReportConfig:
    """Types of ``conf/report.yaml``."""

    outputs: list[PathText] = MISSING
    to: PathText | None = MISSING
    min_acc: float = MISSING
    max_ms: float | None = MISSING
    stat: str = MISSING
    baseline: str | None = MISSING
    sort: str = MISSING
    filter: list[str] = MISSING
    detail: str | None = MISSING


@dataclass
class PredictConfig:
    """Types of ``conf/predict.yaml``."""

    run: PathText = field(default=MISSING, metadata={"example": "run=B1"})
    images: list[PathText] = field(
        default=MISSING, metadata={"example": "the name of an image or a folder"}
    )
    top: int = MISSING
    format: str = MISSING
    device: str = MISSING
    outputs: PathText = MISSING


@dataclass
class ExportConfig:
    """Types of ``conf/export.yaml``."""

    run: PathText = field(default=MISSING, metadata={"example": "run=B1"})
    format: str = MISSING
    opset: int | None = MISSING
    to: PathText | None = MISSING
    outputs: PathText = MISSING
    data_root: PathText | None = MISSING
    data_check: bool = MISSING


SCHEMAS: dict[str, Any] = {
    "schema": TrainConfig,
    "tune_schema": TuneConfig,
    "measure_schema": MeasureConfig,
    "report_schema": ReportConfig,
    "predict_schema": PredictConfig,
    "export_schema": ExportConfig,
}


def options_of(group: str) -> list[str]:
    """List a group's options, those in its folders included."""
    paths = sorted((CONF_DIR / group).rglob("*.yaml"))
    names = [str(path.relative_to(CONF_DIR / group).with_suffix("")) for path in paths]
    return [name for name in names if not name.rpartition("/")[2].startswith("_")]


def is_optional(group: str) -> bool:
    """Tell whether a group may be left out."""
    return NoneType in get_args(get_type_hints(TrainConfig).get(group, NoneType | Any))


def renamed_arguments(schema: type) -> dict[str, str]:
    """Tell which keys of a schema have another name on the command line."""
    named = {option.metadata.get("argument"): option.name for option in fields(schema)}
    return {str(argument): name for argument, name in named.items() if argument is not None}


def plain(config: DictConfig, schema: type = TrainConfig) -> dict[str, Any]:
    """Make plain containers of the task's part of a composed configuration.

    Raises:
        UserError: If a needed value is missing, a key was added that the command does not know, or
            a list holds another one or settings.
    """
    options = {option.name: option for option in fields(schema)}
    # A search's configuration is a training run's, too, with more in it.
    of_these = [kind for kind in SCHEMAS.values() if issubclass(kind, schema)]
    known = {one.name for kind in of_these for one in fields(kind)}
    for key in sorted({str(key) for key in config} - {"hydra", *known}):
        raise unknown_name(key, "key", key, options)
    task = OmegaConf.masked_copy(config, list(options))
    missing = sorted(OmegaConf.missing_keys(task))
    for key in [key for key in options if key in missing] or missing:
        told = options[key].metadata if key in options else {}
        raise UserError(f"{key}: needs a value, say {told.get('example', f'{key}=...')}")
    for key in (key for key, text in text_keys(schema).items() if text.path):
        value = OmegaConf.select(task, key)
        if isinstance(value, str):
            OmegaConf.update(task, key, expand_home(value))
        elif isinstance(value, ListConfig):
            OmegaConf.update(task, key, [expand_home(path) for path in value])
    resolved = OmegaConf.to_container(task, resolve=True)
    assert isinstance(resolved, dict)
    hints = get_type_hints(schema)
    for name, value in resolved.items():  # OmegaConf takes settings for an integer of a list
        nested = isinstance(value, list) and any(isinstance(one, dict | list) for one in value)
        if nested and get_origin(hints.get(str(name))) is list:
            raise bad_value(str(name), value, "a list of single values")
    return {str(key): value for key, value in resolved.items()}

"""The top-level keys of every command and their types; `conf/` holds the values."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from cifar_lightning.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
# Beside the package in a checkout, inside it where it was installed.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
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
    callbacks: dict[str, Any] | None = None
    logger: dict[str, Any] = MISSING
    distill: dict[str, Any] | None = field(default=None, metadata={"texts": ("teacher",)})
    benchmark: dict[str, Any] = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    precision: str = MISSING
    ema: float | None = MISSING
    label_smoothing: float = MISSING
    channels_last: bool = MISSING
    compile: bool | str = MISSING
    id: str | None = MISSING
    outputs: str = MISSING
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

    run: list[str] = MISSING
    # Hydra takes what a group is called for the group.
    networks: list[str] = field(default=MISSING, metadata={"argument": "model"})
    variants: list[str] = MISSING
    threads: list[int] = MISSING
    protocol: str = MISSING
    device: str = MISSING
    processes: int = MISSING
    rerun: bool = MISSING
    outputs: str = MISSING
    data_root: str | None = MISSING
    data_check: bool = MISSING


@dataclass
class ReportConfig:
    """Types of ``conf/report.yaml``."""

    outputs: list[str] = MISSING
    to: str | None = MISSING
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

    run: str = field(default=MISSING, metadata={"example": "run=B1"})
    images: list[str] = field(
        default=MISSING, metadata={"example": "the name of an image or a folder"}
    )
    top: int = MISSING
    format: str = MISSING
    device: str = MISSING
    outputs: str = MISSING


@dataclass
class ExportConfig:
    """Types of ``conf/export.yaml``."""

    run: str = field(default=MISSING, metadata={"example": "run=B1"})
    format: str = MISSING
    opset: int | None = MISSING
    to: str | None = MISSING
    outputs: str = MISSING
    data_root: str | None = MISSING
    data_check: bool = MISSING


SCHEMAS = {
    "schema": TrainConfig,
    "tune_schema": TuneConfig,
    "measure_schema": MeasureConfig,
    "report_schema": ReportConfig,
    "predict_schema": PredictConfig,
    "export_schema": ExportConfig,
}


def text_keys(schema: type) -> tuple[set[str], set[str]]:
    """Tell which keys of a schema are texts, and which are lists of texts.

    On a command line ``id=1e5`` is a name then, and ``run=A,B`` is a list, not a sweep.
    """
    texts, lists = set(), set()
    hints = get_type_hints(schema)
    for option in fields(schema):
        if hints[option.name] in (str, str | None):
            texts.add(option.name)
        elif hints[option.name] == list[str]:
            lists.add(option.name)
        texts |= {f"{option.name}.{inner}" for inner in option.metadata.get("texts", ())}
    return texts, lists


def renamed_arguments(schema: type) -> dict[str, str]:
    """Tell which keys of a schema have another name on the command line."""
    named = {option.metadata.get("argument"): option.name for option in fields(schema)}
    return {str(argument): name for argument, name in named.items() if argument is not None}


def plain(config: DictConfig, schema: type = TrainConfig) -> dict[str, Any]:
    """Make plain containers of the task's part of a composed configuration.

    Raises:
        UserError: If a needed value is missing.
    """
    options = {option.name: option for option in fields(schema)}
    task = OmegaConf.masked_copy(config, list(options))
    missing = sorted(OmegaConf.missing_keys(task))
    for key in [key for key in options if key in missing] or missing:
        told = options[key].metadata if key in options else {}
        raise UserError(f"{key}: needs a value, say {told.get('example', f'{key}=...')}")
    resolved = OmegaConf.to_container(task, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}

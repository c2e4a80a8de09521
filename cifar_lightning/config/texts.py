"""Which keys take a text or a path: told by the types of the schemas."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hydra.conf import HydraConf

_PATH = "~ is the home folder"
PathText = Annotated[str, _PATH]  # OmegaConf and JSON see a str


@dataclass(frozen=True)
class Text:
    """What a key takes.

    Attributes:
        path: Whether it may be a path.
        several: Whether it is a list of them.
        nullable: Whether ``null`` says that there is none.
    """

    path: bool = False
    several: bool = False
    nullable: bool = False


@dataclass
class ModelTexts:
    """Of ``model``: timm's."""

    name: str


@dataclass
class DataTexts:
    """Of ``data``."""

    name: str
    root: PathText
    cache_dir: PathText
    md5: str
    mirrors: list[str]
    device: str


@dataclass
class DistillTexts:
    """Of ``distill``."""

    teacher: PathText


@dataclass
class _FileLogger:
    save_dir: PathText


@dataclass
class _MLflow:
    artifact_location: str | None
    experiment_name: str
    prefix: str
    run_id: str | None
    run_name: str | None
    save_dir: PathText | None
    tracking_uri: str | None


@dataclass
class _WandB:
    checkpoint_name: str | None
    dir: PathText | None
    id: str | None
    name: str | None
    prefix: str
    project: str | None
    save_dir: PathText
    version: str | None


@dataclass
class LoggerTexts:
    """Of ``logger``, by its options."""

    csv: _FileLogger
    mlflow: _MLflow
    tensorboard: _FileLogger
    wandb: _WandB


def expand_home(path: str) -> str:
    """Replace ``~`` at the beginning; the rest, and ``~nobody``, stay as typed."""
    return os.path.expanduser(path)  # noqa: PTH111


def text_keys(schema: type) -> Mapping[str, Text]:
    """Tell which keys take texts: a command's, by its schema, and Hydra's own."""
    return _text_keys(schema, "") | _text_keys(HydraConf, "hydra.")


@cache
def _text_keys(schema: type, prefix: str) -> dict[str, Text]:
    hints = get_type_hints(schema, include_extras=True)
    found: dict[str, Text] = {}
    for option in fields(schema):
        key, hint = prefix + option.name, option.metadata.get("texts", hints[option.name])
        if is_dataclass(hint):
            assert isinstance(hint, type)
            found |= _text_keys(hint, f"{key}.")
        elif (text := text_of(hint)) is not None:
            found[key] = text
    return found


def text_of(hint: Any) -> Text | None:
    """Tell what texts a type allows; None where it allows others or none."""
    (several, inner) = (True, get_args(hint)[0]) if get_origin(hint) is list else (False, hint)
    kinds = {*get_args(inner)} if get_origin(inner) in (Union, UnionType) else {inner}
    nullable, kinds = NoneType in kinds, kinds - {NoneType}
    if kinds not in ({str}, {PathText}):
        return None
    return Text(kinds == {PathText}, several, nullable)

"""A configuration out of a record, which may be anybody's."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from msgspec import Meta

from cifar_lightning.config.rules import REINSTANTIATED_GROUPS, check_rules
from cifar_lightning.config.schema import TrainConfig
from cifar_lightning.errors import UserError
from cifar_lightning.system.untrusted import Unreadable, check_plain, convert

OPTIONAL = ("init", "test")  # older records lack both, newer ones the second
# One number a channel; those that images are divided by are not 0.
Colours = Annotated[list[float], Meta(min_length=3, max_length=3)]
Deviations = Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=3, max_length=3)]


def check_recorded(config: dict[str, Any]) -> None:
    """Check what a record says of its run's configuration.

    Raises:
        ValueError: If a key is missing that commands need, one has the wrong type or value, or it
            holds what could be resolved or called.
    """
    try:
        check_plain(config, REINSTANTIATED_GROUPS)
        for option in fields(TrainConfig):
            if option.name not in config and option.name not in OPTIONAL:
                raise Unreadable(f"{option.name}: missing")
        convert(config | {"init": None}, TrainConfig)
        if config.get("init") is not None:
            convert(config["init"], _RecordedInit)
        convert(config["augment"], dict[str, dict[str, Any]])
        convert(config["data"], _RecordedData)
        if config["distill"] is not None:
            convert(config["distill"], _RecordedDistill)
        check_rules(config)
    except (Unreadable, UserError) as error:
        raise ValueError(f"config: {error}") from error


@dataclass
class _RecordedData:
    """What commands need of a data set's configuration."""

    name: Annotated[str, Meta(min_length=1, max_length=250)]
    num_classes: Annotated[int, Meta(ge=2, le=100_000)]
    val_fraction: float
    split_seed: int
    mean: Colours
    std: Deviations


@dataclass
class _RecordedInit:
    """What a record's configuration says of the weights that the run began with.

    Attributes:
        run: The run that trained them.
        weights: The beginning of their file's SHA-256.
    """

    run: Annotated[str, Meta(pattern=r"^\w[\w.+-]*\Z", max_length=250)]
    weights: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


@dataclass
class _RecordedDistill:
    """What commands need of a distillation's configuration."""

    teacher: str

"""The configuration: its top-level schema, the checks across keys, and a run's identity.

Only light modules are imported here, so that a mistake is answered before torch is loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from msgspec import Meta
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from cifar_lightning.errors import UserError, bad_value, chain, unknown_name
from cifar_lightning.gate import Unreadable, check_plain, convert
from cifar_lightning.latency_stats import PROTOCOLS

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
NAMING_GROUPS = ("model", "optim", "scheduler")  # their options are in a run's name
# One number a channel; those that images are divided by are not 0.
Colours = Annotated[list[float], Meta(min_length=3, max_length=3)]
Deviations = Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=3, max_length=3)]
MAX_EXACT = 2**53  # integers up to here are exact as floats
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

# Paths, addresses and the like, which this machine's configuration and command line alone decide:
# from a record, which may be anybody's, they are never taken.
MACHINE = {
    "data.cache_dir",
    "data.connect_timeout",
    "data.device",
    "data.mirrors",
    "data.num_workers",
    "data.root",
}

# Where a training is computed, what it is called and what follows it: none of it changes the
# trained weights, so none of it is in a run's identity. Everything else is.
NEUTRAL = {
    *MACHINE,
    "benchmark",
    "channels_last",
    "compile",
    "id",
    "outputs",
    "rerun",
    "data.eval_batch_size",
    "data.md5",
    "optim.foreach",
    "optim.fused",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.detect_anomaly",
    "trainer.deterministic",
    "trainer.devices",  # enters as the number of processes
    "trainer.enable_autolog_hparams",
    "trainer.log_every_n_steps",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
}


# Keys that follow another one, by interpolation in conf/: that one alone is to be set.
FOLLOWING = {
    "augment.cutmix.num_classes": "data.num_classes",
    "augment.cutout.fill": "data.mean",
    "augment.mixup.num_classes": "data.num_classes",
    "data.batch_size": "batch_size",
    "data.seed": "seed",
    "model.num_classes": "data.num_classes",
    "trainer.max_epochs": "epochs",
    "trainer.precision": "precision",
}


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


# --- Checks ---------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(holds: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: _is_number(value) and holds(value)


def _whole(holds: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and holds(value)


_POSITIVE = (_number(lambda v: v > 0), "a number above 0")
_NOT_NEGATIVE = (_number(lambda v: v >= 0), "a number of 0 or more")
_IN_UNIT = _number(lambda v: 0 < v < 1)
_BELOW_ONE = (_number(lambda v: 0 <= v < 1), "0 or more, below 1")

REBUILT = ("model", "data")  # from run.json, when a run is measured again

# Each key that is there must satisfy its rule; the text says what is allowed.
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "epochs": (_whole(lambda v: v >= 1), "a whole number of at least 1"),
    "batch_size": (_whole(lambda v: v >= 2), "a whole number of at least 2"),
    "seed": (_whole(lambda v: 0 <= v < 2**32), "a whole number from 0 to 2^32 - 1"),
    "label_smoothing": _BELOW_ONE,
    "ema": (lambda v: v is None or _IN_UNIT(v), "null, or above 0 and below 1"),
    "precision": (lambda v: v in PRECISIONS, ", ".join(PRECISIONS)),
    "id": (
        lambda v: v is None or bool(re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", str(v), re.ASCII)),
        "up to 64 letters, digits and ._+-, a letter or digit first",
    ),
    "optim.lr": _POSITIVE,
    "optim.momentum": _BELOW_ONE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "scheduler.warmup": _BELOW_ONE,
    "model.dropout": _BELOW_ONE,
    "model.bn_momentum": (_number(lambda v: 0 < v <= 1), "above 0, at most 1"),
    "model.bn_eps": _POSITIVE,
    "data.val_fraction": _BELOW_ONE,
    "distill.temperature": _POSITIVE,
    "distill.alpha": (_number(lambda v: 0 <= v <= 1), "0 to 1"),
    "augment.cutout.size": (_whole(lambda v: 1 <= v <= 32), "1 to 32, the image's size"),
    "augment.progressive.start": (_whole(lambda v: 8 <= v <= 32), "8 to 32, the image's size"),
    "augment.progressive.until": (_number(lambda v: 0 < v <= 1), "above 0, at most 1"),
    "augment.mixup.alpha": _POSITIVE,
    "augment.cutmix.alpha": _POSITIVE,
    "benchmark.variants": (lambda v: isinstance(v, list), "a list, such as [fp32,onnx]"),
    "benchmark.threads": (
        lambda v: isinstance(v, list) and bool(v) and all(map(_whole(lambda n: n >= 1), v)),
        "a list of whole numbers of at least 1, such as [1,2]",
    ),
    "benchmark.protocol": (lambda v: v in list(PROTOCOLS), ", ".join(PROTOCOLS)),
    "data.device": (lambda v: v in ("cpu", "gpu"), "cpu, gpu"),
    "data.num_workers": (_whole(lambda v: v >= 0), "a whole number of 0 or more"),
    "data.eval_batch_size": (_whole(lambda v: v >= 1), "a whole number of at least 1"),
    "data.num_classes": (_whole(lambda v: v >= 2), "a whole number of at least 2"),
    "data.connect_timeout": _POSITIVE,
    "n_trials": (_whole(lambda v: v >= 1), "a whole number of at least 1"),
    "top": (_whole(lambda v: v >= 1), "a whole number of at least 1"),
    "min_acc": (_number(lambda v: 0 <= v <= 100), "0 to 100, percent"),
    "repeats": (_whole(lambda v: v >= 1), "a whole number of at least 1"),
}


def check(config: Mapping[str, Any]) -> None:
    """Check the values of a resolved configuration that can be judged without torch.

    Raises:
        UserError: With the key, the value and what is allowed.
    """
    _check_rules(config)
    for key, source in FOLLOWING.items():
        for value, wanted in zip(_values(config, key), _values(config, source), strict=False):
            if value != wanted:
                raise bad_value(key, value, f"{wanted}, which follows from {source}; set that")
    for name in REBUILT:
        if name in config:
            check_targets(name, config[name])
    if {"mixup", "cutmix"} <= set(config.get("augment", {})):
        raise UserError("augment=mixup,cutmix: allowed is one of them")
    data = config.get("data", {})
    if data.get("device") == "gpu" and data.get("num_workers"):
        raise bad_value("data.num_workers", data["num_workers"], "0 where data.device=gpu")
    trainer = config.get("trainer", {})
    if trainer.get("deterministic") and trainer.get("benchmark"):
        raise bad_value("trainer.benchmark", "true", "false or null where trainer.deterministic")


def _check_rules(config: Mapping[str, Any]) -> None:
    for key, (holds, allowed) in RULES.items():
        for value in _values(config, key):
            if not holds(value):
                raise bad_value(key, value, allowed)


def check_recorded(config: dict[str, Any]) -> None:
    """Check a configuration out of a record, which may be anybody's.

    Raises:
        ValueError: If a key is missing that commands need, one has the wrong type or value, or it
            holds what could be resolved or called.
    """
    try:
        check_plain(config, REBUILT)
        for option in fields(TrainConfig):
            if option.name not in config:
                raise Unreadable(f"{option.name}: missing")
        convert(config, TrainConfig)
        convert(config["augment"], dict[str, dict[str, Any]])
        convert(config["data"], _RecordedData)
        if config["distill"] is not None:
            convert(config["distill"], _RecordedDistill)
        _check_rules(config)
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
class _RecordedDistill:
    """What commands need of a distillation's configuration."""

    teacher: str


def _values(config: Mapping[str, Any], key: str) -> list[Any]:
    """Look a dotted key up: a list of its value, empty where there is no such key."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return []
        value = value[part]
    return [value]


def check_targets(name: str, node: Mapping[str, Any]) -> None:
    """See that a component is one that a file in ``conf`` names, and names nothing to call inside.

    It will be built again from ``run.json``, which may come from someone else and must not name
    what to call.

    Args:
        name: ``model`` or ``data``.
        node: Its configuration.

    Raises:
        UserError: If not.
    """
    try:
        check_plain({name: node}, (name,))
    except Unreadable as error:
        raise UserError(str(error)) from error
    if (target := node.get("_target_")) not in (allowed := sorted(_builders(name))):
        options = ", ".join(allowed)
        raise bad_value(f"{name}._target_", target, f"what a file in conf/{name} names: {options}")


def _builders(name: str) -> dict[str, Path]:
    """List what the files of a group name to call, each with its file.

    Beside ours, the files count that the user's own command line adds with ``--config-dir`` or
    ``hydra.searchpath``.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    paths = sorted(
        path for folder in {*folders, CONF_DIR} for path in (folder / name).glob("*.yaml")
    )
    found = {path: re.findall(r"^_target_: (\S+)", path.read_text(), re.M) for path in paths}
    return {target: path for path, targets in found.items() for target in targets}


def construct(name: str, node: Mapping[str, Any], **given: Any) -> Any:
    """Build a component out of a record: its known builder is called with the values as they are.

    Nothing in them is built, resolved or imported, unlike in `hydra.utils.instantiate`.

    Raises:
        UserError: If the builder is none of ours, or refuses the values.
    """
    from hydra.utils import get_object

    check_targets(name, node)
    check_component(name, node, tuple(given))
    settings = {key: value for key, value in node.items() if key != "_target_"}
    try:
        return get_object(node["_target_"])(**settings, **given)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name}: {_one_line(error)}") from error


def of_this_machine(name: str, node: Mapping[str, Any], outputs: Path) -> dict[str, Any]:
    """Replace what a record must not decide by what this machine's configuration says.

    Args:
        name: The component, such as ``data``.
        node: Its recorded configuration.
        outputs: The outputs folder, for values that lie in it.

    Returns:
        The node; without the keys that the configuration leaves open.
    """
    keys = {key.partition(".")[2] for key in MACHINE if key.startswith(f"{name}.")}
    path = _builders(name).get(str(node.get("_target_")))
    kept = {key: value for key, value in node.items() if key not in keys}
    if path is None:
        return kept
    file = OmegaConf.load(path)
    assert isinstance(file, DictConfig)
    for base in file.get("defaults", []):
        file = OmegaConf.merge(OmegaConf.load(path.with_name(f"{base}.yaml")), file)
    ours = OmegaConf.create({"outputs": str(outputs), "here": file}).here
    return kept | {
        key: OmegaConf.to_container(ours[key]) if OmegaConf.is_config(ours[key]) else ours[key]
        for key in sorted(keys & {str(key) for key in ours})
        if not OmegaConf.is_missing(ours, key)
    }


def check_component(name: str, node: Mapping[str, Any], given: tuple[str, ...] = ()) -> None:
    """Check a component's keys and their types against the signature of its ``_target_``.

    Args:
        name: Where the component is, such as ``optim``.
        node: Its resolved configuration; components inside it are checked too.
        given: Arguments that the code adds when it builds the component.

    Raises:
        UserError: If the target does not exist, a key is none of its arguments, a needed one is
            missing or a value has the wrong type.
    """
    for key, value in node.items():
        if isinstance(value, Mapping):
            check_component(f"{name}.{key}", value)
    if "_target_" not in node:
        return
    from hydra.utils import get_object  # imports what the target names

    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise bad_value(f"{name}._target_", node["_target_"], "what can be imported") from error
    parameters = _parameters(target)
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    for key, value in settings.items():
        if key not in parameters or key in given:
            allowed = [parameter for parameter in parameters if parameter not in given]
            raise unknown_name(f"{name}.{key}", "key", key, allowed)
        if not _fits(value, parameters[key].annotation):
            expected = _describe(parameters[key].annotation)
            raise bad_value(f"{name}.{key}", value, expected)
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and not node.get("_partial_")
        if needed and key not in settings and key not in given:
            raise UserError(f"{name}.{key}: needed by {node['_target_']}")


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Collect named parameters with real annotations; ``**kwargs`` go on to the base class."""
    parameters: dict[str, inspect.Parameter] = {}
    for level in target.__mro__ if inspect.isclass(target) else (target,):
        function = level.__dict__.get("__init__") if inspect.isclass(level) else level
        if function is None:
            continue
        hints = get_type_hints(function)
        own = inspect.signature(function).parameters
        for key, parameter in own.items():
            if key != "self" and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                parameters[key] = parameter.replace(annotation=hints.get(key, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return parameters


def _fits(value: Any, annotation: Any) -> bool:
    """Tell whether a plain value can be of the annotated type; unclear annotations allow all."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation is float:
        return _is_number(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation is type(None):
        return value is None
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(
            _fits(item, option) for item in value for option in get_args(annotation)
        )
    return True


def _describe(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation)).replace("typing.", "")


# --- Identity -------------------------------------------------------------------------------


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


def training_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a resolved configuration what changes the trained weights.

    A value of None says that an optional feature is off and is left out, so that adding such a
    feature renames no old run.
    """

    def kept(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        result = {}
        for key, value in node.items():
            if prefix + key in NEUTRAL or value is None:
                continue
            result[key] = kept(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        return result

    training: dict[str, Any] = _canonical(kept(config, ""), "")
    training["augment"] = list(training["augment"].items())  # transforms work in this order
    trainer = config["trainer"]
    processes = [count_devices(trainer.get("devices", 1)), trainer.get("num_nodes", 1)]
    if processes != [1, 1]:
        training["processes"] = processes
    return training


def count_devices(devices: Any) -> Any:
    """Count what ``trainer.devices`` names: a number, or a list as in ``[0,1]`` or ``"0,1"``."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([one for one in devices.split(",") if one.strip()])
    if isinstance(devices, str) and devices.strip().isdecimal():
        return int(devices)
    return devices


def _canonical(value: Any, key: str) -> Any:
    """Write equal numbers alike: 1 and 1.0 are one value, true is another.

    A number has the type that the files in ``conf`` give its key; where none does, it is an integer
    if it has no fraction.
    """
    if isinstance(value, Mapping):
        prefix = f"{key}." if key else ""
        return {name: _canonical(one, f"{prefix}{name}") for name, one in value.items()}
    if isinstance(value, list):
        return [_canonical(one, key) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if key in _float_keys():
        return float(value) if abs(value) < MAX_EXACT else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def _float_keys() -> frozenset[str]:
    """List the keys, with their group, that a file in ``conf`` gives a number with a fraction."""

    def found(node: Any, key: str) -> Iterator[str]:
        if isinstance(node, dict):
            for name, inner in node.items():
                yield from found(inner, f"{key}.{name}")
        elif isinstance(node, float):
            yield key
        elif isinstance(node, list):
            for inner in node:
                yield from found(inner, key)

    keys = {option.name for option in fields(TrainConfig) if "float" in str(option.type)}
    for path in CONF_DIR.glob("*/*.yaml"):
        if path.parent.name not in ("experiment", "hydra"):
            keys |= {*found(OmegaConf.to_container(OmegaConf.load(path)), path.parent.name)}
    return frozenset(keys)


def run_name(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """Name a run: ``<model>-<optim>-<scheduler>-e<epochs>-s<seed>-<8 hex>``.

    Args:
        config: Resolved and checked.
        choices: The option chosen in each group.
    """
    hexdigest = _digest(training_config(config))
    parts = [choices[group] for group in NAMING_GROUPS]
    return "-".join([*parts, f"e{config['epochs']}", f"s{config['seed']}", hexdigest])


def group_name(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """Name what runs that differ only in the seed have in common; arguments as for `run_name`."""
    training = training_config(config)
    training["data"] = {key: value for key, value in training["data"].items() if key != "seed"}
    del training["seed"]
    parts = [choices[group] for group in NAMING_GROUPS]
    return "-".join([*parts, f"e{config['epochs']}", _digest(training)])


def _digest(training: Mapping[str, Any]) -> str:
    canonical = json.dumps(training, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


# --- Hydra's errors in one line -------------------------------------------------------------

COMPOSERS = ("hydra", "omegaconf", "antlr4", "yaml")


def explain(error: BaseException) -> UserError | None:
    """Turn an error of composing a configuration into one line, or None if it is another.

    Hydra and OmegaConf wrap whatever is raised while they work. So it counts where the first error
    was raised: in theirs it is a mistake in the configuration, elsewhere a fault.
    """
    links = list(chain(error))
    for link in links:
        if isinstance(link, UserError):
            return link
    if not raised_in_composing(links[-1]):
        return None
    for link in links:
        if isinstance(link, MissingConfigException) and link.options is not None:
            group, _, option = (link.missing_cfg_file or "").rpartition("/")
            options = [name for name in link.options if not name.startswith("_")]
            return unknown_name(f"{group}={option}", "option", option, options)
        if isinstance(link, ConfigKeyError | ConfigAttributeError):
            return _explain_key(link)
        if isinstance(link, ValidationError):
            return _explain_type(link)
        if isinstance(link, OverrideParseException):
            return UserError(f"{link.override}: can't be read ({_one_line(link)})")
    for link in links:
        if isinstance(link, HydraException | OmegaConfBaseException):
            return UserError(_one_line(link))
    return None


def raised_in_composing(error: BaseException) -> bool:
    """Tell whether an error was raised by Hydra, its parts, or what they called of Python's own."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    names = [module.partition(".")[0] for module in modules]
    foreign = [name for name in names if name not in sys.stdlib_module_names]
    return bool(foreign) and foreign[-1] in COMPOSERS


def _explain_key(error: OmegaConfBaseException) -> UserError:
    full_key, parent = str(error.full_key or error.key), error.parent_node
    key = full_key.rpartition(".")[2]
    names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
    if key == full_key and {*NAMING_GROUPS} <= {*names}:  # groups that change others are names, too
        names += groups
    shown = {name for name in names if not name.startswith("_") and name != "hydra"}
    return unknown_name(full_key, "key", key, shown)


def _explain_type(error: ValidationError) -> UserError:
    expected = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    found = (schema.__annotations__.get(str(error.full_key)) for schema in SCHEMAS.values())
    annotation = str(next((one for one in found if one is not None), ""))
    if annotation in expected:
        return bad_value(str(error.full_key), error.value, expected[annotation])
    return UserError(f"{error.full_key}: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("See https"))

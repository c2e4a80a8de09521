"""What each value must be, and what keys exclude each other; judged without torch."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig

from cifar_lightning.config.components import check_targets, is_integer, is_number
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.config.schema import plain
from cifar_lightning.errors import UserError, bad_value

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of torch.compile; on a GPU by CUDA graphs
COMPILE_MODES = ("default", *GRAPH_MODES)

# Keys that follow another one, by interpolation in conf/: that one alone is to be set.
DERIVED_KEYS = {
    "augment.cutmix.num_classes": "data.num_classes",
    "augment.cutout.fill": "data.mean",
    "augment.mixup.num_classes": "data.num_classes",
    "augment.mixup_growing.num_classes": "data.num_classes",
    "data.batch_size": "batch_size",
    "data.seed": "seed",
    "model.num_classes": "data.num_classes",
    "trainer.max_epochs": "epochs",
    "trainer.precision": "precision",
}
# Options that do the same to an image, or need labels that the other one has mixed.
EXCLUSIVE_AUGMENTATIONS = (("mixup", "mixup_growing", "cutmix"), ("flip", "flip_alternating"))


def _number(holds: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: is_number(value) and holds(value)


def _integer(holds: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: is_integer(value) and holds(value)


def _list_of(holds: Callable[[Any], bool], rising: bool = False) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, list) or not value or not all(map(holds, value)):
            return False
        return not rising or value == sorted(set(value))

    return check


def _at_least(least: int) -> tuple[Callable[[object], bool], str]:
    return _integer(lambda value: value >= least), f"an integer of at least {least}"


_POSITIVE = (_number(lambda v: v > 0), "a number above 0")
# A number of batches, or a fraction of all.
_LIMIT = _number(lambda v: v >= 1 if isinstance(v, int) else 0 < v <= 1)
_BELOW_ONE = (_number(lambda v: 0 <= v < 1), "0 or more, below 1")
REINSTANTIATED_GROUPS = ("model", "data")  # from run.json, when a run is measured again

# Each key that is there must satisfy its rule; the text says what it must be.
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "epochs": _at_least(1),
    "batch_size": _at_least(2),
    "seed": (_integer(lambda v: 0 <= v < 2**32), "an integer from 0 to 2^32 - 1"),
    "label_smoothing": _BELOW_ONE,
    "ema": (lambda v: v is None or _number(lambda n: 0 < n < 1)(v), "null, or above 0 and below 1"),
    "precision": (lambda v: v in PRECISIONS, ", ".join(PRECISIONS)),
    "compile": (
        lambda v: isinstance(v, bool) or v in COMPILE_MODES,
        f"false, true, {', '.join(COMPILE_MODES)}",
    ),
    "id": (
        lambda v: v is None or bool(re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", str(v), re.ASCII)),
        "up to 64 letters, digits and ._+-, a letter or digit first",
    ),
    "optim.lr": _POSITIVE,
    "optim.momentum": _BELOW_ONE,
    "optim.weight_decay": (_number(lambda v: v >= 0), "a number of 0 or more"),
    "scheduler.warmup": _BELOW_ONE,
    "model.dropout": _BELOW_ONE,
    "model.bn_momentum": (_number(lambda v: 0 < v <= 1), "above 0, at most 1"),
    "model.bn_eps": _POSITIVE,
    "data.val_fraction": _BELOW_ONE,
    "distill.temperature": _POSITIVE,
    "distill.alpha": (_number(lambda v: 0 <= v <= 1), "0 to 1"),
    "augment.cutout.size": (_integer(lambda v: 1 <= v <= 32), "1 to 32, the image's size"),
    "augment.progressive.start": (_integer(lambda v: 8 <= v <= 32), "8 to 32, the image's size"),
    "augment.progressive.until": (_number(lambda v: 0 < v <= 1), "above 0, at most 1"),
    "augment.mixup.alpha": _POSITIVE,
    "augment.cutmix.alpha": _POSITIVE,
    "benchmark.variants": (lambda v: isinstance(v, list), "a list, such as [fp32,onnx]"),
    "benchmark.threads": (
        _list_of(_integer(lambda n: n >= 1)),
        "a list of integers of at least 1, such as [1,2]",
    ),
    "benchmark.protocol": (lambda v: v in list(PROTOCOLS), ", ".join(PROTOCOLS)),
    "data.device": (lambda v: v in ("cpu", "gpu"), "cpu, gpu"),
    "data.num_workers": _at_least(0),
    "data.eval_batch_size": _at_least(1),
    "data.num_classes": _at_least(2),
    "data.connect_timeout": _POSITIVE,
    "trainer.accumulate_grad_batches": _at_least(1),
    "trainer.check_val_every_n_epoch": _at_least(1),
    "trainer.limit_train_batches": (_LIMIT, "an integer of at least 1, or a fraction up to 1.0"),
    "trainer.limit_val_batches": (
        lambda v: v == 0 or _LIMIT(v),
        "an integer of 0 or more, or a fraction up to 1.0",
    ),
    "trainer.max_steps": _at_least(1),
    "n_trials": _at_least(1),
    "rungs": (
        _list_of(_integer(lambda n: n >= 1), rising=True),
        "a list of rising numbers of epochs, such as [4,12,36]",
    ),
    "hours": _POSITIVE,
    "targets": (
        lambda v: v == [] or _list_of(_number(lambda n: 0 <= n <= 100))(v),
        "a list of 0 to 100, percent, such as [85,90]",
    ),
    "final_minutes": _POSITIVE,
    "final_seeds": (
        lambda v: v == [] or _list_of(_integer(lambda n: 0 <= n < 2**32))(v),
        "a list of integers from 0 to 2^32 - 1, such as [0,1,2]",
    ),
    "top": _at_least(1),
    "min_acc": (_number(lambda v: 0 <= v <= 100), "0 to 100, percent"),
    "max_ms": (lambda v: v is None or _POSITIVE[0](v), "a number above 0"),
    "stat": (lambda v: v in ("mean", "p95"), "mean, p95"),
    "processes": _at_least(1),
}


C = TypeVar("C")


def typed(composed: DictConfig, schema: type[C]) -> C:
    """Make a schema's object of a composed configuration; `UserError` if a value is wrong."""
    config = plain(composed, schema)
    check(config)
    return schema(**config)


def check(config: Mapping[str, Any]) -> None:
    """Check the values of a resolved configuration that can be judged without torch.

    Raises:
        UserError: With the key, the value and what it must be.
    """
    check_rules(config)
    for name in REINSTANTIATED_GROUPS:
        if name in config:
            check_targets(name, config[name])
    for alternatives in EXCLUSIVE_AUGMENTATIONS:
        if len(both := [name for name in alternatives if name in config.get("augment", {})]) > 1:
            raise UserError(f"augment={','.join(both)}: must be one of them")
    monitors = [
        name
        for name, node in (config.get("callbacks") or {}).items()
        if str(node.get("_target_")).endswith("Monitor")
    ]
    if monitors and not config.get("logger"):
        raise UserError(f"callbacks={','.join(monitors)}: needs a logger, say logger=csv")
    data = config.get("data", {})
    if data.get("device") == "gpu" and data.get("num_workers"):
        raise bad_value("data.num_workers", data["num_workers"], "0 where data.device=gpu")
    trainer = config.get("trainer", {})
    if trainer.get("deterministic") and trainer.get("benchmark"):
        raise bad_value("trainer.benchmark", "true", "false or null where trainer.deterministic")
    scaled = config.get("optim", {}).get("fused") and config.get("precision") == "16-mixed"
    if scaled and trainer.get("gradient_clip_val"):  # the optimizer's kernel undoes the scaling
        allowed = "null where precision=16-mixed and optim.fused"
        raise bad_value("trainer.gradient_clip_val", trainer["gradient_clip_val"], allowed)
    if trainer.get("accumulate_grad_batches", 1) > 1 and config["compile"] in GRAPH_MODES:
        # torch's issue 169545: the graph's next run overwrites the gradients of the one before.
        allowed = "false or true where trainer.accumulate_grad_batches is above 1"
        raise bad_value("compile", config["compile"], allowed)


def check_rules(config: Mapping[str, Any]) -> None:
    """Check each key by itself; errors as `check`."""
    for key, (holds, allowed) in RULES.items():
        for value in _values(config, key):
            if not holds(value):
                raise bad_value(key, value, allowed)
    for key, source in DERIVED_KEYS.items():
        for value, wanted in zip(_values(config, key), _values(config, source), strict=False):
            if value != wanted:
                raise bad_value(key, value, f"{wanted}, which follows from {source}; set that")


def _values(config: Mapping[str, Any], key: str) -> list[Any]:
    """Look a dotted key up: a list of its value, empty where there is no such key."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return []
        value = value[part]
    return [value]

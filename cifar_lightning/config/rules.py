"""What each value must be, and what keys exclude each other; judged without torch."""

from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig

from cifar_lightning.config.components import check_targets
from cifar_lightning.config.schema import plain
from cifar_lightning.config.values import GRAPH_MODES, RULES
from cifar_lightning.errors import UserError, bad_value

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


REINSTANTIATED_GROUPS = ("model", "data")  # from run.json, when a run is measured again


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
    if config.get("test") is False and config["benchmark"]["variants"]:
        allowed = "true, or benchmark.variants=[]: what is measured is tested"
        raise bad_value("test", "false", allowed)
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

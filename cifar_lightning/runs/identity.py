"""A run's identity: the part of its configuration that changes the weights, and its name."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self

from omegaconf import OmegaConf

from cifar_lightning.config.components import MACHINE
from cifar_lightning.config.schema import CONF_DIR, NAMING_GROUPS, TrainConfig

MAX_EXACT = 2**53  # integers up to here are exact as floats

# Where a training is computed, what it is called and what follows it: none of it changes the
# trained weights, so none of it is in a run's identity. Everything else is.
NON_IDENTITY_KEYS = {
    *MACHINE,
    "benchmark",
    "channels_last",
    "compile",
    "id",
    "logger",
    "outputs",
    "rerun",
    "test",
    "data.eval_batch_size",
    "data.md5",
    "init.path",
    "optim.foreach",
    "optim.fused",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.detect_anomaly",
    "trainer.deterministic",
    "trainer.devices",  # enters as the number of processes
    "trainer.enable_progress_bar",
    "trainer.inference_mode",
    "trainer.log_every_n_steps",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
}
# An integer is a number of batches there, a number with a fraction a part of all.
COUNT_OR_FRACTION = {"trainer.limit_train_batches", "trainer.limit_val_batches"}

SEED_KEYS = {"seed", "data.seed"}
# How long it is trained: what a user may expect to go on with, though the schedule is another one.
LENGTH_KEYS = {
    "epochs",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.min_epochs",
    "trainer.min_steps",
}


def training_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a resolved configuration what changes the trained weights.

    A value of None says that an optional feature is off and is left out, so that adding such a
    feature renames no old run.
    """
    kept = leave_out(config, lambda key, value: key in NON_IDENTITY_KEYS or value is None)
    training: dict[str, Any] = canonical(kept, "")
    training["augment"] = list(training["augment"].items())  # transforms work in this order
    trainer = config["trainer"]
    processes = [count_devices(trainer.get("devices", 1)), trainer.get("num_nodes", 1)]
    if processes != [1, 1]:
        training["processes"] = processes
    return training


def leave_out(
    node: Mapping[str, Any], unwanted: Callable[[str, Any], bool], prefix: str = ""
) -> dict[str, Any]:
    """Copy nested settings without those that are unwanted by their dotted key and value."""
    return {
        key: leave_out(value, unwanted, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in node.items()
        if not unwanted(prefix + key, value)
    }


def count_devices(devices: Any) -> Any:
    """Count what ``trainer.devices`` names: a number, or a list as in ``[0,1]`` or ``"0,1"``."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([one for one in devices.split(",") if one.strip()])
    if isinstance(devices, str) and devices.strip().isdecimal():
        return int(devices)
    return devices


def canonical(value: Any, key: str) -> Any:
    """Write equal numbers alike: 1 and 1.0 are one value, true is another.

    A number has the type that the files in ``conf`` give its key; where none does, it is an integer
    if it has no fraction.
    """
    if isinstance(value, Mapping):
        prefix = f"{key}." if key else ""
        return {name: canonical(one, f"{prefix}{name}") for name, one in value.items()}
    if isinstance(value, list):
        return [canonical(one, key) for one in value]
    if key.endswith("._target_") and str(value).startswith("cifar_lightning."):
        return str(value).rpartition(".")[2]  # a module may move
    if isinstance(value, bool) or not isinstance(value, int | float) or key in COUNT_OR_FRACTION:
        return value
    if key in _float_keys():
        return float(value) + 0.0 if abs(value) < MAX_EXACT else value  # -0.0 + 0.0 is 0.0
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
    numbers = f"e{config['epochs']}-s{config['seed']}"
    return _named(choices, numbers, _digest(training_config(config)))


def group_name(config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """Name what runs that differ only in the seed have in common; arguments as for `run_name`."""
    return _named(choices, f"e{config['epochs']}", _shared(config, SEED_KEYS))


@dataclass(frozen=True)
class Kin:
    """What a run has in common with others, as digests of the settings that are the same.

    Attributes:
        seeds: Those that differ only in the seed.
        lengths: Those that differ only in how long they are trained.
    """

    seeds: str
    lengths: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Take it from a resolved configuration."""
        return cls(_shared(config, SEED_KEYS), _shared(config, LENGTH_KEYS))


def _shared(config: Mapping[str, Any], keys: Collection[str]) -> str:
    """Digest what runs have in common that differ in no other settings than these."""
    return _digest(leave_out(training_config(config), lambda key, _: key in keys))


def _digest(training: Mapping[str, Any]) -> str:
    """Make 8 hex digits, of which the first is a letter, or they may be read as a number."""
    content = json.dumps(training, sort_keys=True)
    found = re.search("[a-f][0-9a-f]{7}", hashlib.sha256(content.encode()).hexdigest())
    assert found is not None
    return found.group()


def _named(choices: Mapping[str, str], *parts: str) -> str:
    return "-".join([*(choices[group] for group in NAMING_GROUPS), *parts])

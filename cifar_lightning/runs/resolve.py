"""From a composed configuration to a run: its settings as plain values, and its name."""

import os
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config.rules import check
from cifar_lightning.config.schema import CONF_DIR, SCHEMAS, options_of, plain
from cifar_lightning.config.texts import expand_home
from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.runs.find import find_run, load_run
from cifar_lightning.runs.folder import RUNS, RunFolder
from cifar_lightning.runs.identity import run_name
from cifar_lightning.runs.ownership import check_ours
from cifar_lightning.runs.weights import initial_weights
from cifar_lightning.system.processor import fastest_precision


def resolve(composed: DictConfig) -> dict[str, Any]:
    """Make plain containers of the task's part of a composed configuration.

    A teacher becomes the name of its run, however it was given: by what it is, it is part of the
    student's identity. Initial weights are told by what they are, too.

    Raises:
        UserError: If a needed value is missing, or there is no such teacher, or no such weights.
    """
    config = plain(composed)
    _drop_unchosen(config, (composed.get("hydra") or HydraConfig.get()).overrides.task)
    if config["distill"] is not None:
        outputs, given = Path(config["outputs"]), str(config["distill"]["teacher"])
        folder = find_run(outputs, given, "distill.teacher")
        if not RunFolder(folder).is_in(outputs) or load_run(folder).name != folder.name:
            own = outputs / RUNS / load_run(folder).name
            raise UserError(f"distill.teacher={given}: needed is a run in its own folder, {own}")
        config["distill"]["teacher"] = folder.name
    if config["init"] is not None:
        config["init"] = initial_weights(Path(config["outputs"]), config["init"])
    _resolve_devices(config["trainer"])
    return config


def _drop_unchosen(config: dict[str, Any], typed: Sequence[str]) -> None:
    """Leave out a preset's settings of options that are not chosen, as in ``augment=flip``.

    Raises:
        UserError: If the user has set one.
    """
    for group in ("augment", "callbacks", "logger"):  # several options, each under its name
        chosen = {
            name: node
            for name, node in (config[group] or {}).items()
            if not isinstance(node, dict) or "_target_" in node
        }
        for name in (config[group] or {}).keys() - chosen:
            if any(text.lstrip("+").startswith(f"{group}.{name}.") for text in typed):
                raise unknown_name(f"{group}.{name}", "key", name, chosen)
        config[group] = chosen or (config[group] and {})


def _resolve_devices(trainer: dict[str, Any]) -> None:
    """Turn ``trainer.devices=auto`` and ``-1`` into the number of this machine's devices.

    How many processes train is part of a run's identity.

    Raises:
        UserError: If there is no number of them.
    """
    devices = trainer.get("devices", 1)
    if str(devices).strip() not in ("auto", "-1"):
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has decided
        trainer["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
        return
    import torch  # only here is it needed to name a run

    accelerator, gpus = trainer.get("accelerator", "auto"), torch.cuda.device_count()
    if gpus and accelerator in ("auto", "gpu", "cuda"):
        trainer["devices"] = gpus
    elif str(devices).strip() == "auto" and accelerator not in ("cuda", "tpu", "hpu"):
        trainer["devices"] = 1  # a CPU and Apple's GPU are one device each
    elif accelerator in ("auto", "cpu"):
        raise bad_value("trainer.devices", devices, "auto or a number of processes on a CPU")


def register() -> None:
    """Make the schemas and the resolvers in ``conf`` known to Hydra."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=name, node=schema)
    OmegaConf.register_new_resolver("run_name", _resolve_run_name, replace=True)
    OmegaConf.register_new_resolver("home", expand_home, replace=True)
    OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)
    OmegaConf.register_new_resolver("checked_places", _check_places, replace=True)


def _resolve_run_name(_root_: DictConfig) -> str:
    """Check the whole configuration and name its run.

    Hydra asks for the name before it makes the run's folder, so a mistake leaves nothing behind.
    """
    hydra = _root_.get("hydra") or HydraConfig.get()
    choices = hydra.runtime.choices
    check_choices(choices)
    config = resolve(_root_)
    check(config)
    for group, node in config.items():
        one = isinstance(node, dict) and "_target_" in node
        if one and not isinstance(choices.get(group), str):
            raise UserError(f"{group}: needs exactly one option, say {group}=...")
    name = run_name(config, choices)
    outputs = Path(config["outputs"])
    check_ours(outputs, RunFolder.of(outputs, name).path)
    return name


def check_choices(choices: Mapping[str, Any]) -> None:
    """See that each group's option is one for users.

    Raises:
        UserError: If it is a part that others are made of.
    """
    for group, choice in choices.items():
        if str(choice).rpartition("/")[2].startswith("_"):
            raise unknown_name(f"{group}={choice}", "option", choice, options_of(group))


# Of Hydra's settings, those that decide where it writes, and where relative paths begin.
PLACES = ("mode", "run.dir", "sweep.dir", "sweep.subdir", "output_subdir", "job.chdir")


def _check_places(_root_: DictConfig) -> bool:
    """Refuse other folders than ours before Hydra makes any.

    The values are compared as they are written: in a multirun they can't be resolved yet.
    """
    own, given = _own_places(str(_root_.hydra.job.config_name)), _places(_root_.hydra)
    for key in PLACES:
        any_mode = key == "mode" and own[key] is None  # a command that sweeps
        same = given[key] == own[key] or _is_the_same(key, given[key], own[key], _root_)
        if not same and not any_mode:
            raise UserError(
                f"hydra.{key}={given[key]}: can't be changed; outputs=... says where files go"
            )
    return True


@cache
def _own_places(command: str) -> dict[str, Any]:
    """Read what Hydra and a command's file in ``conf`` say of `PLACES`."""
    own = OmegaConf.structured(HydraConf)
    _add_own_settings(own, command)
    return _places(own)


def _add_own_settings(own: DictConfig, name: str) -> None:
    """Add what a command's file in ``conf``, and those that it is based on, say of Hydra."""
    path = CONF_DIR / f"{name}.yaml"
    file = OmegaConf.load(path if path.exists() else CONF_DIR / "train.yaml")
    assert isinstance(file, DictConfig)
    for base in file.get("defaults", []):
        if isinstance(base, str) and (CONF_DIR / f"{base}.yaml").exists():
            _add_own_settings(own, base)
    own.merge_with(file.hydra)


def _is_the_same(key: str, given: Any, ours: Any, root: DictConfig) -> bool:
    """Tell whether a setting comes to the same, as those that Lightning gives its processes."""
    if key == "run.dir" and "run_name" in ours and root.hydra.mode != RunMode.MULTIRUN:
        folder = RunFolder.of(Path(expand_home(root.outputs)), _resolve_run_name(root)).path
        return Path(str(given)).absolute() == folder.absolute()
    return key == "output_subdir" and given is None


def _places(hydra: DictConfig) -> dict[str, Any]:
    """Read `PLACES` of Hydra's settings without resolving what they refer to."""
    settings: Any = OmegaConf.to_container(hydra, enum_to_str=True)
    return {key: reduce(getitem, key.split("."), settings) for key in PLACES}

"""What a preset sets over an option that the command line chose."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config.options import as_override, files_of, read_option
from cifar_lightning.errors import UserError

PRESET = "experiment"


def set_over_options(config: DictConfig) -> list[str]:
    """Tell which values of options that were typed a preset has replaced, a line an option.

    Hydra merges presets last: after ``experiment=quick optim=adamw`` AdamW has quick's rate, which
    is one for SGD.

    Args:
        config: As Hydra composed it for the command line.
    """
    overrides = OverridesParser.create().parse_overrides([*HydraConfig.get().overrides.task])
    typed = {one.key_or_group: one.value() for one in overrides}
    if not typed.get(PRESET):
        return []
    preset = as_override(PRESET, typed[PRESET])
    return [
        f"{preset} sets {', '.join(changes)}"
        for group, chosen in typed.items()
        if OmegaConf.is_config(config.get(group))
        for name in (chosen if isinstance(chosen, list) else [chosen])
        if (changes := [*_changes(config, group, str(name), typed)])
    ]


def _changes(config: DictConfig, group: str, name: str, typed: Mapping[str, Any]) -> Iterator[str]:
    for path in (path for path in files_of(group) if path.stem == name):
        now = dict(_values(group, OmegaConf.to_container(config[group])))
        try:
            file = read_option(path)
        except UserError:  # it stands on others in a way that Hydra alone knows
            continue
        for key, own in _values(group, OmegaConf.to_container(file)):
            said = any(f"{key}.".startswith(f"{one}.") for one in typed if "." in one)
            if key in now and now[key] != own and not said:
                here = as_override(key, now[key])
                yield f"{here} where {as_override(group, name)} has {as_override('', own)[1:]}"


def _values(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, one in node.items():
            yield from _values(f"{key}.{name}", one)
    else:
        yield key, node

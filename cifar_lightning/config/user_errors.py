"""Errors of Hydra and OmegaConf as one line for the user."""

import re
import sys
from traceback import walk_tb
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError
from omegaconf.errors import OmegaConfBaseException as OmegaConfError

from cifar_lightning.config.schema import CONF_DIR, NAMING_GROUPS, SCHEMAS, options_of
from cifar_lightning.config.values import RULES
from cifar_lightning.errors import UserError, bad_value, chain, unknown_name

COMPOSERS = ("hydra", "omegaconf", "antlr4", "yaml")


def to_user_error(error: BaseException) -> UserError | None:
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
        if isinstance(link, MissingConfigException):
            return _option_error(link)
        if isinstance(link, ConfigKeyError | ConfigAttributeError):
            return _key_error(link)
        if isinstance(link, ValidationError):
            return _type_error(link)
        if several := re.match(r"Ambiguous value for argument '(([^=]*)=(.*))'\n", str(link)):
            argument, key, values = several.groups()
            return UserError(
                f"{argument}: must be one value; a sweep needs -m, a list is '{key}=[{values}]'"
            )
        if isinstance(link, OverrideParseException):
            return UserError(f"{link.override}: can't be read ({one_line(link)})")
    for link in links:
        if merged := re.match(r"Error merging override \+*([^=]*)=(.*)", str(link), re.DOTALL):
            return _kind_error(*merged.groups())
    known = [link for link in links if isinstance(link, HydraException | OmegaConfError)]
    return UserError(one_line(known[0])) if known else None


def raised_in_composing(error: BaseException) -> bool:
    """Tell whether an error was raised by Hydra, its parts, or what they called of Python's own."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    names = [module.partition(".")[0] for module in modules]
    foreign = [name for name in names if name not in sys.stdlib_module_names]
    return bool(foreign) and foreign[-1] in COMPOSERS


def _option_error(error: MissingConfigException) -> UserError:
    parts = (error.missing_cfg_file or "").split("/")
    depth = 2 if parts[0] == "hydra" else 1
    group, option = "/".join(parts[:depth]), "/".join(parts[depth:])
    found = {name for name in error.options or () if not name.startswith("_")}
    return unknown_name(f"{group}={option}", "option", option, found.union(options_of(group)))


def _key_error(error: OmegaConfError) -> UserError:
    full_key, parent = str(error.full_key or error.key), error.parent_node
    key = full_key.rpartition(".")[2]
    names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
    if key == full_key and {*NAMING_GROUPS} <= {*names}:  # groups that change others are names, too
        names += groups
    shown = {name for name in names if not name.startswith("_") and name != "hydra"}
    return unknown_name(full_key, "key", key, shown)


def _type_error(error: ValidationError) -> UserError:
    key = re.split(r"[.\[]", str(error.full_key))[0]  # an element's error is its list's
    node = error.parent_node
    schema = None if node is None else OmegaConf.get_type(node._get_root())
    hint = get_type_hints(schema).get(key) if schema in SCHEMAS.values() else None
    if hint is None:
        return UserError(f"{error.full_key}: {one_line(error)}")
    return _wrong_type(key, error.value, hint)


def _kind_error(key: str, value: str) -> UserError:
    """Refuse settings where there must be a list, or the other way round.

    Hydra's error does not tell whose key it is, and several commands may have one of this name.
    """
    hints = [get_type_hints(schema).get(key) for schema in SCHEMAS.values()]
    known = [hint for hint in hints if hint is not None]
    if not known or any(hint != known[0] for hint in known):
        return UserError(f"{key}={value}: must be of the kind that its default is")
    return _wrong_type(key, value, known[0])


def _wrong_type(key: str, value: object, hint: Any) -> UserError:
    told = _told(hint)
    allowed = RULES[key][1] if key in RULES else told
    if hint in (int, float) and not allowed.startswith(told):
        allowed = f"{told}, {allowed}"
    return bad_value(key, value, allowed)


def _told(hint: Any) -> str:
    """Tell what a type of a schema allows, as a user writes it."""
    known = {
        int: "an integer", float: "a number", bool: "true or false", str: "a text",
        NoneType: "null", bool | str: "true, false or the name of a mode",
        list[int]: "a list of integers, such as [1,2]",
        list[float]: "a list of numbers, such as [85,90]", list[str]: "a list, such as [a,b]",
        dict[str, Any]: "settings of a group",
    }  # fmt: skip
    return known.get(hint) or " or ".join(map(_told, get_args(hint)))


def key_of_preset(error: UserError, key: str) -> UserError:
    """Add to an error how to leave out a key that a preset, not the user, has set."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else [key]
    if any(text.lstrip("+").startswith(key) for text in typed):
        return error
    return UserError(f"{error}; a preset sets it: ~{key} leaves it out", error.key)


def one_line(error: BaseException) -> str:
    """Put an error's text into one line, without links to manuals."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("See https"))

"""Components: which builders may be called, and their arguments against the signature."""

import inspect
import re
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf

from cifar_lightning.config.options import files_of, read_option
from cifar_lightning.config.user_errors import key_of_preset, one_line
from cifar_lightning.config.values import is_integer, is_number
from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.system.untrusted import Unreadable, check_plain

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


def check_targets(name: str, node: Mapping[str, Any]) -> None:
    """See that ``model`` or ``data`` is what a file in ``conf`` names, and calls nothing inside.

    It will be built again from ``run.json``, which may come from someone else and must not name
    what to call: that is a `UserError`.
    """
    try:
        check_plain({name: node}, (name,))
    except Unreadable as error:
        raise UserError(str(error)) from error
    if (target := node.get("_target_")) not in (allowed := sorted(_builders(name))):
        options = ", ".join(allowed)
        raise bad_value(f"{name}._target_", target, f"what a file in conf/{name} names: {options}")


def _builders(name: str) -> dict[str, Path]:
    """List what the files of a group name to call, each with its file."""
    found = {
        path: re.findall(r"^_target_: (\S+)", path.read_text(), re.M) for path in files_of(name)
    }
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
        raise UserError(f"{name}: {one_line(error)}") from error


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
    kept = {key: value for key, value in node.items() if key not in keys}
    return kept | configured(name, node, outputs, keys)


def configured(
    name: str, node: Mapping[str, Any], outputs: Path, keys: Collection[str]
) -> dict[str, Any]:
    """Read what this machine's configuration says of a component that a record names.

    Returns:
        The values of ``keys``; without those that it leaves open.
    """
    path = _builders(name).get(str(node.get("_target_")))
    if path is None:
        return {}
    ours = OmegaConf.create({"outputs": str(outputs), "here": read_option(path)}).here
    return {
        key: OmegaConf.to_container(ours[key]) if OmegaConf.is_config(ours[key]) else ours[key]
        for key in sorted({*keys} & {str(key) for key in ours})
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
    parameters = parameters_of(target)
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    for key, value in settings.items():
        if key not in parameters and _takes_any(target):
            continue  # calling it tells whether it knows the key
        if key not in parameters or key in given:
            allowed = [parameter for parameter in parameters if parameter not in given]
            unknown = unknown_name(f"{name}.{key}", "key", key, allowed)
            raise key_of_preset(unknown, f"{name}.{key}")
        if not _fits(value, expected := parameters[key].annotation):
            raise bad_value(f"{name}.{key}", value, _told(expected))
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and not node.get("_partial_")
        if needed and key not in settings and key not in given:
            raise UserError(f"{name}.{key}: needed by {node['_target_']}")


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Collect named parameters with real annotations; ``**kwargs`` go on to the base class."""
    parameters: dict[str, inspect.Parameter] = {}
    for level in target.__mro__ if inspect.isclass(target) else (target,):
        function = vars(level).get("__init__") if inspect.isclass(level) else level
        if function is None:
            continue
        try:
            own = inspect.signature(function, eval_str=True).parameters.values()
        except NameError:  # of a package that is not installed
            own = inspect.signature(function).parameters.values()
        named = [one for one in own if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        parameters |= {one.name: one for one in named if one.name != "self"}
        if not any(one.kind is one.VAR_KEYWORD for one in own):
            break
    return parameters


def _takes_any(target: Any) -> bool:
    """Tell whether a function hands ``**kwargs`` on to what its signature does not name."""
    parameters = () if inspect.isclass(target) else inspect.signature(target).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _told(annotation: Any) -> str:
    """Tell what an annotation allows, as a user writes it."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(map(_told, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    name = str(getattr(annotation, "__name__", annotation)).replace("typing.", "")
    return {"NoneType": "null"}.get(name, name)


def _fits(value: Any, annotation: Any) -> bool:
    """Tell whether a plain value can be of the annotated type; unclear annotations allow all."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation in (int, float):
        return is_integer(value) if annotation is int else is_number(value)
    if annotation in (bool, str, types.NoneType):
        return isinstance(value, annotation)
    if get_origin(annotation) is list:
        (kind,) = get_args(annotation)
        return isinstance(value, list) and all(_fits(item, kind) for item in value)
    return True

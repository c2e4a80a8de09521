"""Options: the files of a group, and what one of them says, read without Hydra."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.errors import bad_value, unknown_name

_CONFIG_DIRS: ContextVar[tuple[Path, ...]] = ContextVar("_CONFIG_DIRS", default=())


@contextmanager
def with_config_dir(folder: str | Path | None) -> Iterator[None]:
    """Let the files of another folder, laid out as ``conf``, name what may be built."""
    token = _CONFIG_DIRS.set(() if folder is None else (Path(folder),))
    try:
        yield
    finally:
        _CONFIG_DIRS.reset(token)


def files_of(name: str) -> list[Path]:
    """List the files of a group.

    Beside ours, those count that the user's own command line adds with ``--config-dir`` or
    ``hydra.searchpath``, and those of `with_config_dir`.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    return sorted(
        path
        for folder in {*folders, *_CONFIG_DIRS.get(), CONF_DIR}
        for path in (folder / name).glob("*.yaml")
    )


def read_option(path: Path) -> DictConfig:
    """Read a file of a group, together with those of the group that its defaults list names.

    They are merged in the order of that list, as Hydra does; without ``_self_`` the file is last.

    Raises:
        UserError: If the list names what is no file of the group.
    """
    file, group = OmegaConf.load(path), path.parent.name
    assert isinstance(file, DictConfig)
    order = list(file.pop("defaults", []))
    there = {one.stem: one for one in files_of(group)}
    parts = []
    for base in order if "_self_" in order else [*order, "_self_"]:
        if base != "_self_" and base not in there:
            raise bad_value(f"{group}={path.stem}: defaults", base, f"a file of conf/{group}")
        parts.append(file if base == "_self_" else read_option(there[base]))
    merged = OmegaConf.merge(*parts)
    assert isinstance(merged, DictConfig)
    return merged


def option(name: str, choice: str, around: Mapping[str, Any]) -> dict[str, Any]:
    """Read an option of a group by itself.

    Args:
        name: The group, such as ``model``.
        choice: The option.
        around: What its interpolations refer to.

    Raises:
        UserError: If there is none of that name.
    """
    options = {path.stem: path for path in files_of(name) if not path.stem.startswith("_")}
    if choice not in options:
        raise unknown_name(f"{name}={choice}", "option", choice, options)
    node = OmegaConf.create({**around, name: read_option(options[choice])})[name]
    resolved = OmegaConf.to_container(node, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def as_override(key: str, value: Any) -> str:
    """Write a setting as the command line takes it."""
    if isinstance(value, list):
        return f"{key}=[{','.join(map(str, value))}]"
    return f"{key}={'null' if value is None else value}"

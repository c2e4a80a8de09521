"""Composes each choice of configuration files once: it is most of what a command's start takes.

A command's own values are applied by Hydra each time, as ever; and an error is never remembered.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def composed_once() -> Iterator[None]:
    """Remember what Hydra reads and composes, pickled, which is quicker to read than to copy."""
    from hydra._internal import config_loader_impl as loader
    from hydra._internal.defaults_list import DefaultsList, Overrides
    from omegaconf import DictConfig, OmegaConf

    from cifar_lightning.config.schema import CONF_DIR

    load, listed, compose = (
        OmegaConf.load,
        loader.create_defaults_list,
        loader.ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    lists: dict[str, DefaultsList] = {}
    composed: dict[int, bytes] = {}

    @cache
    def parsed(text: str) -> bytes:
        return pickle.dumps(load(io.StringIO(text)))

    def load_once(file: str | Path | io.TextIOBase) -> Any:
        text = Path(file).read_text() if isinstance(file, str | Path) else file.read()
        return pickle.loads(parsed(text))

    def list_once(repo: Any, config_name: str, overrides_list: list[Any], **how: Any) -> Any:
        folders = {source.path for source in repo.get_sources()}
        if folders - {str(CONF_DIR), "hydra.conf", ""}:  # with a user's own, whose files may change
            return listed(repo, config_name, overrides_list, **how)
        given = Overrides(repo, overrides_list)
        groups = given.override_choices, given.append_group_defaults, given.deletions
        key = repr((config_name, how, groups))
        if key not in lists:
            lists[key] = listed(repo, config_name, overrides_list, **how)
        same = lists[key]
        return DefaultsList(
            same.defaults, same.defaults_tree, given.config_overrides, same.overrides
        )

    def compose_once(self: Any, defaults: list[Any], repo: Any) -> DictConfig:
        if not any(defaults is one.defaults for one in lists.values()):
            return compose(self, defaults, repo)
        if id(defaults) not in composed:
            composed[id(defaults)] = pickle.dumps(compose(self, defaults, repo))
        return pickle.loads(composed[id(defaults)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        patch.setattr(loader, "create_defaults_list", list_once)
        patch.setattr(loader.ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_once)
        yield

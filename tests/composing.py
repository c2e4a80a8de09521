"""Composes each choice of configuration files once: it is most of what a command's start takes.

What is composed lies pickled in a folder that all processes of the tests share. A command's own
values are applied by Hydra each time, as ever, and a mistake is found anew.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

CONF = Path(__file__).resolve().parent.parent / "conf"


@contextmanager
def composed_once(folder: Path) -> Iterator[None]:
    """Remember in a folder what Hydra makes of the files in ``conf``."""
    from hydra._internal import config_loader_impl as loader
    from hydra._internal.defaults_list import DefaultsList, Overrides
    from omegaconf import OmegaConf

    load, listed = OmegaConf.load, loader.create_defaults_list
    compose = loader.ConfigLoaderImpl._compose_config_from_defaults_list
    remembered: dict[str, bytes] = {}

    def once(key: object, make: Callable[[], Any]) -> Any:
        """Make something or read it again, which is quicker than to copy it."""
        name = sha256(repr(key).encode()).hexdigest()
        if name not in remembered:
            if not (file := folder / name).exists():
                whole = folder / f"{name}-{os.getpid()}"
                whole.write_bytes(pickle.dumps(make()))
                whole.replace(file)
            remembered[name] = file.read_bytes()
        return pickle.loads(remembered[name])

    def load_once(file: str | Path | io.TextIOBase) -> Any:
        text = Path(file).read_text() if isinstance(file, str | Path) else file.read()
        return once(text, lambda: load(io.StringIO(text)))

    def list_once(repo: Any, config_name: str, overrides_list: list[Any], **how: Any) -> Any:
        make = lambda: listed(repo, config_name, overrides_list, **how)  # noqa: E731
        if has_others(repo):
            return make()
        given = Overrides(repo, overrides_list)
        groups = given.override_choices, given.append_group_defaults, given.deletions
        same = once((config_name, how, groups), make)
        return DefaultsList(
            same.defaults, same.defaults_tree, given.config_overrides, same.overrides
        )

    def compose_once(self: Any, defaults: list[Any], repo: Any) -> Any:
        make = lambda: compose(self, defaults, repo)  # noqa: E731
        return make() if has_others(repo) else once(defaults, make)

    with (
        patch.object(OmegaConf, "load", load_once),
        patch.object(loader, "create_defaults_list", list_once),
        patch.object(loader.ConfigLoaderImpl, compose.__name__, compose_once),
        # Hydra composes everything once more to learn hydra.mode, which no test leaves to a file.
        patch("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None),
    ):
        yield


def has_others(repo: Any) -> bool:
    """Tell whether some files are a user's own, which may change."""
    return any(source.path not in (str(CONF), "hydra.conf", "") for source in repo.get_sources())

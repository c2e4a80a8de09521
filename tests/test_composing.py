"""What the tests compose once is what Hydra composes each time."""

from importlib.util import find_spec, module_from_spec
from types import ModuleType

import pytest
from conftest import TINY
from hydra._internal import config_loader_impl
from hydra._internal.utils import create_config_search_path
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from cifar_lightning.config.schema import CONF_DIR
from cifar_lightning.runs.resolve import register


@pytest.fixture(scope="module")
def own():
    """Hydra's module once more, as nobody has changed it."""
    spec = find_spec("hydra._internal.config_loader_impl")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compose(module: ModuleType, name: str, overrides):
    register()
    loader = module.ConfigLoaderImpl(create_config_search_path(str(CONF_DIR)))
    return loader.load_configuration(name, list(overrides), RunMode.RUN)


def nodes(node, path=""):
    """Every node's place, value and what it takes."""
    meta = node._metadata
    value = None if OmegaConf.is_config(node) else node._value()
    yield path, value, meta.flags or {}, meta.ref_type, meta.object_type, meta.optional
    inner = node._content if OmegaConf.is_config(node) else None
    if isinstance(inner, dict | list):
        for key, one in inner.items() if isinstance(inner, dict) else enumerate(inner):
            assert one._get_parent() is node
            yield from nodes(one, f"{path}.{key}")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("train", (*TINY, "epochs=2", "+trainer.max_steps=3")),
        ("train", (*TINY, "epochs=3", "~callbacks", "augment=[crop,flip]")),
        ("train", ("experiment=demo", "logger=[csv,tensorboard]", "hydra.verbose=true")),
        ("tune", (*TINY, "n_trials=2")),
        ("report", ("outputs=[a,b]",)),
    ],
)
def test_it_is_what_hydra_composes(name, overrides, own):
    for _ in range(2):  # the second time it is remembered
        ours, theirs = (compose(one, name, overrides) for one in (config_loader_impl, own))
        assert list(nodes(ours)) == list(nodes(theirs))


def test_what_is_changed_afterwards_is_not_remembered():
    for _ in range(2):
        config = compose(config_loader_impl, "train", TINY)
        assert config.epochs != 77
        config.epochs = 77
        config.hydra.run.dir = "elsewhere"


@pytest.mark.parametrize("wrong", ["model=nope", "nope=1", "+experiment=demo", "epochs=x y"])
def test_a_mistake_is_one_each_time(wrong, own):
    for module in (config_loader_impl, own, config_loader_impl):
        with pytest.raises(Exception) as error:
            compose(module, "train", (*TINY, wrong))
        assert isinstance(error.value, ConfigCompositionException) or "epochs" in wrong


def test_a_users_own_files_may_change(tmp_path, command):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    for epochs in (-1, -2):
        file.write_text(f"# @package _global_\nepochs: {epochs}\n")
        ended = command(f"--config-dir={tmp_path}", "experiment=mine")
        assert ended.status == 2
        assert f"epochs={epochs}" in ended.err

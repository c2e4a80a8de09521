"""Hundreds of wrong overrides: none comes to a training, each is answered in one line."""

import random

import pytest
from conftest import TINY_MOBILENET
from hydra import compose, initialize_config_dir
from test_command import start

from cifar_lightning.config import rules, schema, user_errors
from cifar_lightning.errors import UserError
from cifar_lightning.runs import identity, resolve
from cifar_lightning.training.build import build

WHOLE = ("epochs", "batch_size", "seed", "data.num_workers", "data.eval_batch_size")
NUMBERS = (
    "optim.lr",
    "optim.momentum",
    "optim.weight_decay",
    "label_smoothing",
    "scheduler.warmup",
    "model.width",
    "model.dropout",
    "model.bn_momentum",
    "model.bn_eps",
    "data.val_fraction",
)
FLAGS = ("rerun", "channels_last", "compile", "optim.nesterov")
GROUPS = ("model", "optim", "scheduler", "data", "augment", "benchmark", "trainer", "experiment")
IDS = ("a b", "a/b", "../a", "ünïcode", "🙂", "a|b", "-a", ".a", "a" * 65, "")


def typos(names, count, seed):
    """Leave a letter out of a name, double one, or swap two."""
    chance = random.Random(seed)
    made = set()
    while len(made) < count:
        name = chance.choice(names)
        at = chance.randrange(len(name) - 1)
        made.add(
            chance.choice(
                (
                    name[:at] + name[at + 1 :],
                    name[: at + 1] + name[at:],
                    name[:at] + name[at + 1] + name[at] + name[at + 2 :],
                )
            )
        )
    return sorted(made - set(names) - {""})


def wrong_overrides():
    for key in WHOLE:
        for value in ("ten", "1.5", "-1", "true", "[1]", "{a: 1}", "null", "nan", "''", "1e400"):
            yield f"{key}={value}"
    for key in NUMBERS:
        for value in ("abc", "nan", "inf", "-1", "true", "[0.1]", "½"):
            yield f"{key}={value}"
    for key in FLAGS:
        for value in ("maybe", "[true]", "{a: 1}"):
            yield f"{key}={value}"
    for group in GROUPS:
        for option in ("nothing", "モデル", "../train", "a/b"):
            yield f"{group}={option}"
    for value in IDS:
        yield f"id='{value}'"
    top = [*WHOLE[:3], "precision", "label_smoothing", "channels_last", "outputs", *GROUPS]
    for name in typos(top, 20, seed=0):
        yield f"{name}=1"
    for name in typos(["lr", "momentum", "weight_decay", "nesterov"], 8, seed=1):
        yield f"optim.{name}=1"
        yield f"+optim.{name}=1"
    yield from ("seed='1", 'id="a', "model=[", "optim={", "epochs", "~", "a b", "seed=1=2")
    yield from ("precision=8", "precision=32", "trainer.devices=0", "trainer.devices=abc")
    yield from ("model.output_stride=3", "model.output_stride=[8]", "augment.crop.padding=x")
    yield from ("benchmark.threads=0", "benchmark.threads=[-1]", "benchmark.variants=fp32")


WRONG = sorted(set(wrong_overrides()))


def test_there_are_enough():
    assert len(WRONG) >= 200


@pytest.fixture(scope="module")
def composing():
    resolve.register()
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        yield


def accept(override, folder):
    composed = compose("train", [*TINY_MOBILENET, override], return_hydra_config=True)
    config = resolve.resolve(composed)
    rules.check(config)
    identity.run_name(config, composed.hydra.runtime.choices)
    build(config, folder)


@pytest.mark.parametrize("override", WRONG)
def test_wrong(override, composing, tmp_path):
    with pytest.raises(Exception) as refused:
        accept(override, tmp_path)
    known = user_errors.to_user_error(refused.value)
    assert isinstance(known, UserError), refused.value
    (line,) = str(known).splitlines()
    assert line


# Without those that torch is needed for: importing it takes most of a real command's time.
LIGHT = [
    text for text in WRONG if not text.startswith(("trainer.", "benchmark.", "model.", "augm"))
]


@pytest.mark.parametrize("override", ["=1", *random.Random(2).sample(LIGHT, 9)])
def test_wrong_as_a_real_command(override, outputs):
    done = start(f"outputs={outputs}", *TINY_MOBILENET, override)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not outputs.exists()

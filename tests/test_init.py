"""Runs that begin with the weights of another run, or of a file."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from safetensors.torch import load, load_file, save
from simulated import a_run, measured

from cifar_lightning.comparison.entry import Group
from cifar_lightning.comparison.reproduce import train_command
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.weights import read_network
from cifar_lightning.training.build import build

SMALL = (*TINY, "benchmark.variants=[]", "epochs=1")


@pytest.fixture
def first(finished_run, outputs):
    """The folder of a finished run, `tiny`."""
    (folder,) = (finished_run / "runs").iterdir()
    return Path(shutil.copytree(folder, outputs / "runs" / folder.name))


def others(outputs, *known):
    return [folder for folder in (outputs / "runs").iterdir() if folder not in known]


def test_a_run_begins_with_another_ones_weights(first, command, outputs, resolved, tmp_path):
    ended = command(*SMALL, "init=tiny", "id=F")
    assert ended.status == 0, ended.err
    (second,) = others(outputs, first)
    trained = Run.load(first)
    init = {"run": first.name, "weights": trained.weights[:16]}
    assert Run.load(second).config["init"] == init
    (row,) = rows_of(second)
    assert row.init == first.name
    assert f"F (from {first.name[-8:]})" in ended.out

    # However it is given, it is the same run.
    weights = RunFolder(first).weights
    for given in (first.name, str(first), str(weights)):
        again = command(*SMALL, f"init={given}")
        assert f"{second.name} is finished" in again.out, again.err

    # The weights are in the network that is trained; the seed is not what made them.
    config, _ = resolved(*SMALL, f"init={weights}", "seed=3")
    network = build(config, tmp_path / "run").classifier.backbone
    saved = load_file(weights)
    assert all(torch.equal(one, saved[name]) for name, one in network.state_dict().items())
    assert network.training

    # Weights of a run of the same name that are others make another run.
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    other = tmp_path / "other.safetensors"
    other.write_bytes(changed)
    names = {resolved(*SMALL, f"init={one}")[0]["init"]["weights"] for one in (weights, other)}
    assert len(names) == 2


@pytest.mark.slow
def test_jobs_of_a_sweep_begin_with_weights(first, command, outputs, forked):
    swept = command("-m", *SMALL, "init=tiny", "seed=1,2")
    assert swept.status == 0, swept.err
    found = [Run.load(folder) for folder in others(outputs, first)]
    assert sorted(run.config["seed"] for run in found) == [1, 2]
    assert {run.config["init"]["run"] for run in found} == {first.name}


def test_a_frozen_whitened_stem_stays_the_first_runs(resolved, tmp_path):
    classifier = build(resolved(*SMALL)[0], tmp_path).classifier
    seen = []
    classifier.backbone.initialize_from = seen.append
    classifier.initialized = True
    classifier._trainer = SimpleNamespace(ckpt_path=None)
    classifier.setup("fit")
    assert not seen


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("init=X", "init=X: no such run in"),
        ("init=X.safetensors", "X.safetensors: not a file of weights that was written here"),
        ("model.channels=[8,24]", "must be model.channels=[8, 24], its is [8, 16]"),
        ("data.mean=[0.1,0.1,0.1]", "must be data.mean=[0.1, 0.1, 0.1], its is"),
        ("data.split_seed=1", "must be data.split_seed=1, its is 0"),
        ("data.val_fraction=0.2", "must be data.val_fraction=0.2, its is"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong, line, first, command, outputs):
    refused = command(*SMALL, "init=tiny", wrong)
    assert refused.status == 2
    assert line in refused.err
    assert refused.err.count("\n") == 1
    assert not others(outputs, first)


def test_another_network_is_refused(first, command):
    of_data = [one for one in SMALL if not one.startswith("model")]
    refused = command(*of_data, "model=resnet8", "init=tiny")
    assert refused.status == 2
    assert refused.err.startswith(
        f"error: init={first.name}: must be model._target_=resnet_cifar, its"
    )


def test_other_classes_are_refused_before_training(first, command, outputs):
    """Equally many ones; their names are known when the data are read."""
    path = RunFolder(first).weights
    network, content = read_network(path)
    classes = ["a", *network.classes[1:]]
    path.write_bytes(save(load(content), replace(network, classes=classes).metadata))
    refused = command(*SMALL, f"init={path}")
    assert refused.status == 2
    assert f"init={first.name}: must be of the same classes: a is 0 here" in refused.err
    assert not others(outputs, first)


def test_weights_that_are_not_the_runs_are_refused(first, command):
    path = RunFolder(first).weights
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    refused = command(*SMALL, "init=tiny")
    assert refused.status == 2
    assert f"{path}: not the weights of this run" in refused.err


def test_the_command_that_makes_it_again_names_the_run():
    """Whatever file it was, and wherever that lay."""
    run = a_run("a", init={"run": "net-sgd-e1-s0-abcdef01", "weights": "0" * 16})
    said = ["epochs=3", "init=/somewhere/weights.safetensors"]
    group = Group("a", (run,), (measured(run),), overrides=said, folder=Path("outputs/runs/a"))
    assert train_command(group).endswith(" epochs=3 init=net-sgd-e1-s0-abcdef01 seed=0")

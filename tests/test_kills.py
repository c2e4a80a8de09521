"""Runs killed at any moment continue, and end as if nothing had happened."""

import json
import operator
import subprocess
from importlib import import_module

import pytest
import torch
from conftest import ROOT, TINY_MOBILENET
from safetensors.torch import load_file
from test_experiment import curves, only_run

from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run

COMMAND = (*TINY_MOBILENET, "epochs=3", "batch_size=128", "optim.lr=0.2")

# The process is killed before or after the n-th call of a function (of a file with such a name);
# so many epochs are then done.
MOMENTS = {
    "in the first epoch": ("training.module ImageClassifier.training_step", 5, "before", 0),
    "in the third epoch": ("training.module ImageClassifier.training_step", 25, "before", 2),
    "in validation": ("training.module ImageClassifier.validation_step", 3, "after", 2),
    "while best.ckpt is written": ("system.files os.fsync best.ckpt", 1, "before", 0),
    "between best.ckpt and last.ckpt": (
        "training.callbacks write_atomically last.ckpt", 2, "before", 1,
    ),
    "while last.ckpt is written": ("system.files os.fsync last.ckpt", 2, "before", 1),
    "when the second epoch is saved": (
        "training.callbacks write_atomically last.ckpt", 2, "after", 2,
    ),
    "when the last epoch is saved": (
        "training.callbacks write_atomically last.ckpt", 3, "after", 3,
    ),
    "while the weights are written": ("system.files os.fsync weights", 1, "before", 3),
    "in testing": ("training.module ImageClassifier.test_step", 1, "after", 3),
    "while measuring": ("benchmark.session interleave", 1, "before", None),
    "when it is measured": ("runs.measurement write_atomically measurements", 1, "after", None),
    "while the table is replaced": ("runs.views write_atomically results", 1, "before", None),
}  # fmt: skip
# With processes that load images, which are there while epochs are.
CASES = [
    *((moment, 0) for moment in MOMENTS),
    *((moment, 2) for moment in ("in the first epoch", "in the third epoch", "in validation")),
]

DRIVER = """
import functools, importlib, os, pathlib, signal, sys
sys.path.insert(0, "")
import cifar_lightning.training.run
where, wanted, when = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
module, name, about = (*where.split(), "")[:3]
owner = importlib.import_module("cifar_lightning." + module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
function, calls = getattr(owner, name), 0

def concerns(arguments):
    if not about:
        return True
    first = arguments[0]
    file = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
    return about in "/".join(pathlib.Path(file).parts[-2:])

@functools.wraps(function)
def fatal(*arguments, **settings):
    global calls
    calls += concerns(arguments)
    now = calls == wanted and concerns(arguments)
    if now and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*arguments, **settings)
    if now:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, fatal)
import train
train.main()
"""


@pytest.mark.parametrize("where", sorted({moment[0] for moment in MOMENTS.values()}))
def test_there_is_what_a_process_is_killed_in(where):
    module, name, *_ = where.split()
    assert callable(operator.attrgetter(name)(import_module(f"cifar_lightning.{module}")))


def run(python, outputs, *arguments, driver=()):
    command = [python, *(("-c", DRIVER, *driver) if driver else ("train.py",))]
    return subprocess.run(
        [*command, f"outputs={outputs}", *COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, fork):
    """The same run without a kill; workers don't change its results."""
    outputs = tmp_path_factory.mktemp("reference")
    done = run(fork, outputs)
    assert done.returncode == 0, done.stderr
    return only_run(outputs)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "workers"), CASES)
def test_killed(moment, workers, reference, outputs, fork):
    where, count, when, epochs = MOMENTS[moment]
    setting = f"data.num_workers={workers}"
    killed = run(fork, outputs, setting, driver=(where, str(count), when))
    assert killed.returncode == -9, killed.stderr
    folder = only_run(outputs)
    assert json.loads((folder / "run.json").read_text())["status"] in ("running", "finished")
    again = run(fork, outputs, setting)
    assert again.returncode == 0, again.stderr
    assert (f"continuing after epoch {epochs}" in again.stdout) == bool(epochs)
    assert ("is finished" in again.stdout) == (epochs is None)

    assert folder.name == reference.name
    ours, theirs = (load_file(f / "weights.safetensors") for f in (folder, reference))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    resumed = ("optimizer_states", "lr_schedulers")
    for name, more in (("best.ckpt", ()), ("last.ckpt", resumed)):
        checkpoints = [
            torch.load(f / "checkpoints" / name, weights_only=True) for f in (folder, reference)
        ]
        assert checkpoints[0].keys() == checkpoints[1].keys()
        for part in ("epoch", "global_step", "state_dict", *more):
            torch.testing.assert_close(*(c[part] for c in checkpoints), rtol=0, atol=0)
    records = [Run.load(f) for f in (folder, reference)]
    for value in ("status", "val_acc", "test_acc", "params"):
        assert len({getattr(record, value) for record in records}) == 1
    assert curves(folder) == curves(reference)
    assert [row.test_acc for row in rows_of(folder)] == [row.test_acc for row in rows_of(reference)]
    lines = (outputs / "results.csv").read_text().splitlines()
    assert len(lines) == 2
    assert not list(outputs.rglob(".cifar-lightning-*"))

"""What a run has in common with others is said before it is trained, and by few records read."""

from dataclasses import replace

import pytest
from conftest import TINY
from test_results import RUN, place, with_seed

from cifar_lightning.runs import cache, index, related
from cifar_lightning.runs.identity import Kin
from cifar_lightning.runs.related import relations, shared_ids
from cifar_lightning.runs.run import Run, listed_run
from cifar_lightning.runs.table import write_table

TRAINER = {"max_epochs": 3}


def made(name, label="B1", **settings):
    config = RUN.config | settings
    return replace(RUN, name=f"net-sgd-cosine-{name}", id=label, config=config)


LONGER = made("e9-s0-b", None, epochs=9, trainer={"max_epochs": 9})
OTHER = made("e3-s0-c", batch_size=32)
SEED = replace(made("e3-s1-d"), config=with_seed(1))


@pytest.fixture
def outputs(tmp_path):
    place(tmp_path, made("e3-s0-a", trainer=TRAINER))
    return tmp_path


def test_of_another_length_is_a_new_run(outputs):
    (line,) = relations(outputs, LONGER, None)
    assert line == (
        "a new run: like net-sgd-cosine-e3-s0-a but epochs 3 → 9; what is there stays as it is"
    )
    place(outputs, made("e5-s0-e", trainer={"max_epochs": 5}, epochs=5))
    (line,) = relations(outputs, LONGER, None)
    assert "epochs 3 → 9, and 1 more;" in line
    stopped = made("e3-s0-f", None, trainer=TRAINER | {"max_time": "00:00:01:00"})
    (line,) = relations(outputs, stopped, None)
    assert "but trainer.max_time off → 00:00:01:00, and 1 more;" in line
    assert not [*relations(outputs, replace(SEED, id=None), None)]


def test_an_id_of_another_training_run(outputs):
    (line,) = relations(outputs, OTHER, None)
    assert line == (
        "id=B1: also the ID of net-sgd-cosine-e3-s0-a (batch_size 64 → 32); run=B1 will mean "
        "both, another id= tells them apart"
    )
    assert not [*relations(outputs, replace(OTHER, id="B2"), None)]
    place(outputs, OTHER)
    assert not [*relations(outputs, OTHER, OTHER)]  # it was said


def test_seeds_share_an_id(outputs):
    first = made("e3-s0-a", trainer=TRAINER)
    seed = replace(first, name="net-sgd-cosine-e3-s1-d", config=with_seed(1) | {"trainer": TRAINER})
    assert Kin.of(first.config).seeds == Kin.of(seed.config).seeds
    assert not [*relations(outputs, seed, None)]
    assert not [*shared_ids(outputs, {seed.name: seed.config | {"id": "B1"}})]


def test_another_id_is_said(outputs):
    before = place(outputs, replace(OTHER, id=None)) and replace(OTHER, id=None)
    changed, shared = relations(outputs, OTHER, before)
    assert changed == "net-sgd-cosine-e3-s0-c: its ID is B1, and was c"
    assert shared.startswith("id=B1: also the ID of net-sgd-cosine-e3-s0-a")


def test_ids_of_a_sweep(outputs):
    """Among its own runs, and with others; an automatic one is nobody else's."""
    configs = {one.name: one.config | {"id": one.id} for one in (OTHER, SEED)}
    (line,) = shared_ids(outputs / "none", configs)
    assert line == (
        "id=B1: the ID of 2 different training runs (net-sgd-cosine-e3-s0-c, "
        "net-sgd-cosine-e3-s1-d); run=B1 will mean all of them"
    )
    (line,) = shared_ids(outputs, {OTHER.name: configs[OTHER.name]})
    assert "(net-sgd-cosine-e3-s0-c, net-sgd-cosine-e3-s0-a)" in line
    assert not [*shared_ids(outputs, {OTHER.name: OTHER.config | {"id": None}})]


def test_few_records_are_read(outputs, monkeypatch):
    """The index knows the others; of those in question one is read."""
    monkeypatch.setattr(cache, "RECENT_NS", 0)
    for number in range(5):
        place(outputs, made(f"e3-s0-{number}", batch_size=number + 2))
    write_table(outputs)
    read = []
    for module, name in ((index, "listed_run"), (related, "load_run")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda f, real=real: read.append(f.name) or real(f))
    (line,) = relations(outputs, OTHER, None)
    assert line.endswith("and 5 more; run=B1 will mean all of them, another id= tells them apart")
    assert len(read) == 1


def test_the_commands_say_it(finished_run, tmp_path, command, outputs):
    """Before a longer one is trained, and where a finished one gets another ID."""
    (folder,) = (finished_run / "runs").iterdir()
    run = listed_run(folder)
    assert isinstance(run, Run)
    place(outputs, run)
    ended = command(*TINY, "epochs=2", "id=tiny", "benchmark.variants=[]", "rerun=true")
    assert ended.status == 0, ended.err
    assert f"a new run: like {run.name} but epochs 1 → 2" in ended.out
    assert f"id=tiny: also the ID of {run.name} (epochs 1 → 2)" in ended.out
    assert ended.out.index("a new run") < ended.out.index("epoch 1 of 2")
    again = command(*TINY, "epochs=2", "id=longer", "benchmark.variants=[]")
    assert again.status == 0, again.err
    assert "its ID is longer, and was tiny" in again.out

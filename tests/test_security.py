"""Files from strangers can't run code, and names can't leave their place."""

import json
import os
import pickle
from hashlib import md5

import pytest
import torch
from conftest import TINY, pack_archive

from cifar_lightning.errors import UserError
from cifar_lightning.measure import load_backbone, load_data
from cifar_lightning.results import Run, find_run
from cifar_lightning.sources import ARCHIVE, read_cifar10

COMMAND = (*TINY, "epochs=2", "batch_size=128", "benchmark.variants=[]")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    path = tmp_path / "trap"
    yield path
    assert not path.exists()


@pytest.fixture
def run_folder(command, outputs):
    assert command(*COMMAND).status == 0
    (folder,) = (outputs / "runs").iterdir()
    return folder


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "caught")))
    assert (tmp_path / "caught").exists()


def test_hostile_files_of_a_run(run_folder, command, trap):
    """Weights, a checkpoint, and a run.json that names what to call."""
    weights = run_folder / "weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(UserError, match="not the weights"):
        load_backbone(run_folder)
    torch.save({"x": Hostile(trap)}, weights)
    with pytest.raises(UserError, match="not the weights"):
        load_backbone(run_folder)
    weights.write_bytes(good)

    path = run_folder / Run.FILE
    record = json.loads(path.read_text())
    attack = {"_target_": "os.mkdir", "path": str(trap)}
    for changed in (
        {"model": attack},
        {"data": attack},
        {"model": record["config"]["model"] | {"dropout": attack}},
        {"data": record["config"]["data"] | {"name": attack}},
    ):
        path.write_text(json.dumps(record | {"config": record["config"] | changed}))
        with pytest.raises(UserError, match=r"_target_=os\.mkdir: allowed is what a file in conf/"):
            (load_backbone if "model" in changed else load_data)(run_folder)

    path.write_text(json.dumps(record | {"status": "interrupted"}))
    torch.save({"epoch": 0, "x": Hostile(trap)}, run_folder / "checkpoints" / "last.ckpt")
    ended = command(*COMMAND)
    assert ended.status == 2
    assert "damaged; start over with rerun=true" in ended.err


def test_a_hostile_archive(tmp_path, trap):
    """One that leaves its folder, with a pickle that is no data; the checksum fits both."""
    content = pickle.dumps(Hostile(trap))
    places = (f"../{trap.name}", f"/{trap}", "cifar-10-batches-py/data_batch_1")
    packed = pack_archive(dict.fromkeys(places, content))
    root = tmp_path / "data"
    root.mkdir()
    (root / ARCHIVE).write_bytes(packed)
    with pytest.raises(UserError, match="md5 is"):
        read_cifar10(str(root), [], "0" * 32, 1.0)
    with pytest.raises(UserError, match="trap has no place in it"):
        read_cifar10(str(root), [], md5(packed).hexdigest(), 1.0)
    packed = pack_archive({places[-1]: content})
    (root / ARCHIVE).write_bytes(packed)
    with pytest.raises(UserError, match=r"data_batch_1: .*mkdir has no place in it"):
        read_cifar10(str(root), [], md5(packed).hexdigest(), 1.0)
    assert sorted(path.name for path in root.iterdir()) == [ARCHIVE]


@pytest.mark.parametrize("name", ["../../x", "a/b", "/abs", "a|b", "a,b\nc", "", ".hidden", "-x"])
def test_ids_stay_in_their_place(name, command, outputs):
    ended = command(*TINY, f"id='{name}'")
    assert ended.status == 2
    assert not outputs.exists()


def test_a_name_does_not_lead_out_of_the_outputs(tmp_path):
    (tmp_path / "outputs" / "runs").mkdir(parents=True)
    for query in ("../..", "..", "/", ""):
        with pytest.raises(UserError, match="no such run"):
            find_run(tmp_path / "outputs", query)

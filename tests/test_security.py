"""Files from strangers can't run code, and names can't leave their place."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import pytest
import torch
from conftest import TINY, cifar10, pack_archive
from PIL import Image

import cifar_lightning
from cifar_lightning.benchmark.load import load_data
from cifar_lightning.benchmark.network import load_backbone
from cifar_lightning.config.options import with_config_dir
from cifar_lightning.data.cifar_archive import CIFAR10
from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.run import Run

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

    path = run_folder / "run.json"
    record = json.loads(path.read_text())
    attack = {"_target_": "os.mkdir", "path": str(trap)}
    text = f"${{oc.create:{{_target_:os.mkdir,path:{trap}}}}}"
    for group, key in (("model", "dropout"), ("data", "name"), ("data", "eval_batch_size")):
        for value in (attack, [attack], [[attack]], {"x": attack}, {"x": [{"y": [attack]}]}, text,
                      [text], {text: 1}, "${oc.env:HOME}"):  # fmt: skip
            node = record["config"][group] | {key: value}
            path.write_text(json.dumps(record | {"config": record["config"] | {group: node}}))
            with pytest.raises(UserError, match=r"run\.json: damaged"):
                (load_backbone if group == "model" else load_data)(run_folder)
    for group in ("model", "data"):
        node = record["config"][group] | attack
        path.write_text(json.dumps(record | {"config": record["config"] | {group: node}}))
        with pytest.raises(UserError, match=r"_target_=os\.mkdir: must be what a file in conf/"):
            (load_backbone if group == "model" else load_data)(run_folder)
    path.write_text(json.dumps(record))

    path.write_text(json.dumps(record | {"status": "interrupted"}))
    torch.save({"epoch": 0, "x": Hostile(trap)}, run_folder / "checkpoints" / "last.ckpt")
    ended = command(*COMMAND)
    assert ended.status == 2
    assert "damaged; start over with rerun=true" in ended.err


def test_paths_and_mirrors_of_a_record_are_not_followed(finished_run, tmp_path, trap):
    """This machine says where its data lie; what the record says is told as text."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "copied")) / "runs"
    (folder,) = folder.iterdir()
    run = Run.load(folder)
    cifar = {
        "_target_": "cifar_lightning.data.cifar10.CIFAR10DataModule",
        "root": str(trap),
        "mirrors": [f"file://{tmp_path}/x"],
        "md5": "0" * 32,
    }
    images = {
        "_target_": "cifar_lightning.data.image_folder.ImageFolderDataModule",
        "root": str(tmp_path),
        "cache_dir": str(trap),
    }
    for node in (cifar, images):
        config = run.config | {"data": run.config["data"] | node}
        replace(run, config=config).save(folder)
        with pytest.raises(UserError, match=f"trained on data in {node['root']}: say data_root="):
            load_data(folder)
        if node is images:
            with pytest.raises(UserError, match=f"data.root={tmp_path}/elsewhere: there is no"):
                load_data(folder, f"{tmp_path}/elsewhere")
        assert not trap.exists()


def test_a_hostile_archive(tmp_path, trap):
    """One that leaves its folder, with a pickle that is no data; the checksum fits both."""
    content = pickle.dumps(Hostile(trap))
    places = (f"../{trap.name}", f"/{trap}", "cifar-10-batches-py/data_batch_1")
    packed = pack_archive(dict.fromkeys(places, content))
    root = tmp_path / "data"
    root.mkdir()
    (root / CIFAR10.file).write_bytes(packed)
    with pytest.raises(UserError, match="md5 is"):
        cifar10(root, [], "0" * 32).read()
    with pytest.raises(UserError, match="trap has no place in it"):
        cifar10(root, [], md5(packed).hexdigest()).read()
    packed = pack_archive({places[-1]: content})
    (root / CIFAR10.file).write_bytes(packed)
    with pytest.raises(UserError, match=r"data_batch_1: .*mkdir has no place in it"):
        cifar10(root, [], md5(packed).hexdigest()).read()
    assert sorted(path.name for path in root.iterdir()) == [CIFAR10.file]


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


OWN_NETWORK = """
from torch import nn


def tiny(num_classes: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=4), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes),
    )
"""


def test_ones_own_network_is_called_where_ones_own_configuration_names_it(
    tmp_path, outputs, command, call, monkeypatch
):
    from cifar_lightning.cli import measure, predict

    (tmp_path / "own_networks.py").write_text(OWN_NETWORK)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "tiny.yaml").write_text(
        "_target_: own_networks.tiny\nnum_classes: ${data.num_classes}\nchannels: 4\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = f"--config-dir={tmp_path / 'own'}"
    tiny = ("model=tiny", *(text for text in COMMAND if not text.startswith("model")))
    assert command(own, *tiny, "id=own").status == 0
    asked = ("run=own", f"outputs={outputs}", "protocol=quick", "device=cpu")
    assert call(measure.main, own, *asked).status == 0
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    ended = call(predict.main, "run=own", f"outputs={outputs}", str(image))
    assert (ended.status, ended.out) == (2, "")
    assert "own_networks.tiny: must be what a file in conf/model names" in ended.err
    # From Python, too, for that call alone.
    with with_config_dir(tmp_path / "own"):
        folder = find_run(outputs, "own")
    for source in ("own", folder, folder / "weights.safetensors"):
        classifier = cifar_lightning.load(source, outputs, config_dir=tmp_path / "own")
        assert classifier([image]).shape == (1, 10)
        with pytest.raises(UserError, match=r"own_networks\.tiny: must be what a file in"):
            cifar_lightning.load(source, outputs)

import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cifar_lightning.benchmark.load import load_backbone
from cifar_lightning.cli import export as export_command
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.deploy import export
from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.run import Network, Run


@pytest.fixture
def exported(call, finished_run, tmp_path):
    return lambda *arguments: call(
        export_command.main, f"outputs={finished_run}", f"to={tmp_path / 'to'}", *arguments
    )


@pytest.fixture
def images(finished_run):
    config = Run.load(find_run(finished_run, "tiny")).config["data"]
    data = DigitsDataModule(**{k: v for k, v in config.items() if k != "_target_"})
    return data.normalize(data.images.test.images[:7])


@pytest.mark.parametrize("name", export.FORMATS)
def test_the_card_loads_what_the_run_has(
    exported, finished_run, images, tmp_path, monkeypatch, name
):
    if name == "onnx":
        pytest.importorskip("onnxscript", reason="needs the onnx extra")
        pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    ended = exported("run=tiny", f"format={name}")
    assert ended.status == 0, ended.err
    to = tmp_path / "to"
    card = (to / f"model-{name}.md").read_text()
    assert sorted(path.name for path in to.iterdir()) == sorted(
        [f"model-{name}.md", export.FORMATS[name].file]
    )
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert example.count("\n") == 3
    monkeypatch.chdir(to)
    namespace = {"images": images}
    exec(example, namespace)
    with torch.inference_mode():
        expected = load_backbone(find_run(finished_run, "tiny"))(images)
    torch.testing.assert_close(torch.as_tensor(namespace["logits"]), expected, atol=1e-4, rtol=0)

    run = Run.load(find_run(finished_run, "tiny"))
    assert f"# tiny: mobilenetv3 on {run.config['data']['name']}" in card
    assert "On 359 test images" in card
    assert "359 of them get the same class" in card
    for part in (run.name, run.data_fingerprint, "0, 1, 2, 3", "| fp32", "weight_decay: 0.0005"):
        assert part in card


def test_a_network_that_disagrees_is_not_written(exported, monkeypatch, tmp_path):
    form = export.FORMATS["safetensors"]
    wrong = export.Format(form.file, form.write, lambda path: lambda x: torch.ones(len(x), 10), "")
    monkeypatch.setitem(export.FORMATS, "safetensors", wrong)
    ended = exported("run=tiny", "format=safetensors")
    assert ended.status == 1
    assert "the exported logits differ by" in ended.err
    assert not (tmp_path / "to").exists()


def test_a_file_may_not_say_what_to_call(exported, tmp_path):
    exported("run=tiny", "format=safetensors")
    path = tmp_path / "to" / "model.safetensors"
    network = Network.from_weights(path.read_bytes())
    assert export.load(path)
    harm = str(tmp_path / "harm")
    attack = {"_target_": "os.mkdir", "path": harm}
    text = f"${{oc.create:{{_target_:os.mkdir,path:{harm}}}}}"
    for node in (
        attack,
        network.model | {"dropout": [attack]},
        network.model | {"dropout": text},
        network.model | {"_args_": [attack]},
    ):
        metadata = replace(network, model=node).metadata
        save_file(load_file(path), tmp_path / "evil.safetensors", metadata=metadata)
        with pytest.raises(UserError, match=r"_target_|dropout|_args_"):
            export.load(tmp_path / "evil.safetensors")
        assert not (tmp_path / "harm").exists()


def test_other_files_are_no_export(tmp_path, finished_run):
    os.mkfifo(tmp_path / "fifo")
    for path in (
        tmp_path / "fifo",
        tmp_path,
        tmp_path / "nowhere",
        shutil.copy(__file__, tmp_path),
    ):
        with pytest.raises(UserError, match="not an export of format=safetensors"):
            export.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=onnx"], "error: run: needs a value, say run=B1"),
        (["run=tiny", "format=tflite"], "error: format=tflite: must be onnx, torch_export"),
        (["run=tinny"], "error: run=tinny: no such run in"),
    ],
)
def test_mistakes(exported, tmp_path, arguments, message):
    ended = exported(*arguments)
    assert (ended.status, ended.err.startswith(message)) == (2, True)
    assert not (tmp_path / "to").exists()

import json
import os
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from conftest import DIGITS, needs_packages_of, to_export
from safetensors.torch import load_file, save_file

import cifar_lightning
from cifar_lightning.benchmark.accuracy import Accuracies
from cifar_lightning.benchmark.candidates import of_run
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.benchmark.network import load_backbone
from cifar_lightning.cli import export as export_command
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.deploy import export as exporting
from cifar_lightning.deploy.wanted import FORMATS
from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.variants import onnx, registry
from cifar_lightning.variants.agreement import Disagrees, agreement


@pytest.fixture
def export_run(call, finished_run, tmp_path):
    return lambda *arguments: call(
        export_command.main, f"outputs={finished_run}", f"to={tmp_path / 'to'}", *arguments
    )


@pytest.fixture
def images(finished_run):
    config = Run.load(find_run(finished_run, "tiny")).config["data"]
    data = DigitsDataModule(**{k: v for k, v in config.items() if k != "_target_"})
    return data.normalize(data.images.test.images[:7])


@pytest.mark.parametrize(
    "network",
    [
        ("model=repvgg", "model.channels=[8,16]", "model.depth=[1,2]", "model.output_stride=4"),
        pytest.param(
            ("model=timm", "model.name=test_byobnet", "model.output_stride=8"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda network: network[0],
)
def test_other_kinds_of_networks_from_training_to_a_file(network, call, tmp_path):
    """The weights keep the trained form; what is measured and exported is the executed one."""
    import train

    if "timm" in network[0]:
        pytest.importorskip("timm", reason="needs the extra `timm`")
    needs_packages_of("onnx")
    outputs = f"outputs={tmp_path}"
    ended = call(train.main, *DIGITS, *network, outputs, "epochs=1", "benchmark.variants=[onnx]")
    assert ended.status == 0, ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    run, (row,) = Run.load(folder), rows_of(folder)
    assert row.test_acc == pytest.approx(run.test_acc, abs=1e-3)
    kept = load_file(folder / "weights.safetensors")
    assert any(".branches." in name for name in kept) == (network[0] == "model=repvgg")
    executed = load_backbone(folder)
    assert not any(".branches." in name for name in executed.state_dict())
    to = tmp_path / "to"
    ended = call(export_command.main, outputs, f"run={folder}", "format=onnx", f"to={to}")
    assert ended.status == 0, ended.err
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = executed(images)
    logits = onnx.load_onnx(str(to / "model.onnx"), 1)(images.numpy())
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)


FILES = {
    "onnx": ["model.onnx"],
    "int8": ["model-int8.onnx"],
    "torch_export": ["model.pt2"],
    "aot": ["model-aot.pt2"],
    "executorch": ["model.pte"],
    "executorch_int8": ["model-int8.pte"],
    "ncnn": ["model.ncnn.bin", "model.ncnn.param"],
    "litert": ["model.tflite"],
    "openvino": ["model-openvino.bin", "model-openvino.xml"],
    "openvino_bf16": ["model-openvino-bf16.bin", "model-openvino-bf16.xml"],
    "openvino_int8": ["model-openvino-int8.bin", "model-openvino-int8.xml"],
    "safetensors": ["model.safetensors"],
}


@pytest.mark.parametrize("name", to_export(FORMATS))
def test_the_card_loads_what_the_run_has(exported, finished_run, images, monkeypatch, name):
    to = exported(name)
    card = (to / f"model-{name}.md").read_text()
    reference = [file.replace("model", "resnet8") for file in FILES[name]]
    for_boards = [] if name == "safetensors" else ["bench.py", f"model-{name}.json", *reference]
    assert sorted(path.name for path in to.iterdir()) == sorted(
        [f"model-{name}.md", *FILES[name], f".model-{name}.sha256", *for_boards]
    )
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert example.count("\n") <= (14 if name == "torch_export" else 22)
    monkeypatch.chdir(to)
    namespace = {"images": images if name == "safetensors" else images.numpy()}
    exec(example, namespace)
    with torch.inference_mode():
        expected = load_backbone(find_run(finished_run, "tiny"))(images)
    exact = {"atol": 1e-4, "rtol": 0}
    rough = {"atol": 0.25 * float(expected.abs().max()), "rtol": 0}
    limits = rough if name.endswith(("int8", "bf16")) else exact
    torch.testing.assert_close(torch.as_tensor(namespace["logits"]), expected, **limits)

    run = Run.load(find_run(finished_run, "tiny"))
    assert f"# tiny: cifarnet on {run.config['data']['name']}" in card
    assert "On 359 test images" in card
    assert re.search(r"\b(\d+) of them get the same class", card)[1] == "359" or name.endswith(
        ("int8", "bf16")
    )
    for part in (run.name, run.data_fingerprint, "0, 1, 2, 3", "| fp32", "weight_decay: 0.0005"):
        assert part in card


def test_what_lies_there_already_is_kept(export_run, tmp_path):
    """Another program's file, and a card that was edited; what was exported is replaced."""
    to = tmp_path / "to"
    to.mkdir()
    (to / "model.safetensors").write_bytes(b"mine")
    ended = export_run("run=tiny", "format=safetensors")
    assert ended.status == 0, ended.err
    assert (to / "model.kept-1.safetensors").read_bytes() == b"mine"
    assert "kept as model.kept-1.safetensors" in ended.err + ended.out
    card = to / "model-safetensors.md"
    card.write_text(card.read_text() + "My notes.")
    assert export_run("run=tiny", "format=torch_export").status == 0
    for _ in range(2):
        assert export_run("run=tiny", "format=safetensors").status == 0
    assert "My notes." in (to / "model-safetensors.kept-1.md").read_text()
    assert len(list(to.glob("*kept*"))) == 2


def test_a_network_that_disagrees_is_not_written(export_run, monkeypatch, tmp_path):
    wrong = SimpleNamespace(network=lambda images: torch.ones(len(images), 10))
    monkeypatch.setattr(exporting, "load", lambda path: wrong)
    ended = export_run("run=tiny", "format=safetensors")
    assert ended.status == 1
    assert "the exported network is another one: its logits differ by" in ended.err
    assert not (tmp_path / "to").exists()


def test_a_file_may_not_say_what_to_call(export_run, call, tmp_path):
    export_run("run=tiny", "format=safetensors")
    path = tmp_path / "to" / "model.safetensors"
    network = Network.from_weights(path.read_bytes())
    assert cifar_lightning.load(path)
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
            cifar_lightning.load(tmp_path / "evil.safetensors")
        ended = call(export_command.main, f"run={tmp_path}/evil.safetensors", f"to={tmp_path}/no")
        assert (ended.status, (tmp_path / "no").exists()) == (2, False), ended.err
        assert not (tmp_path / "harm").exists()


def test_other_files_are_no_export(tmp_path, finished_run):
    names = ("fifo", "folder", "nowhere", "text")
    fifo, folder, nowhere, text = (tmp_path / f"{name}.safetensors" for name in names)
    os.mkfifo(fifo)
    folder.mkdir()
    shutil.copy(__file__, text)
    for path in (fifo, folder, nowhere, text):
        with pytest.raises(UserError, match="not a file of weights that was written here"):
            cifar_lightning.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=onnx"], "error: run: needs a value, say run=B1"),
        (["run=tiny", "format=onnnx"], "error: format=onnnx: no such format; did you mean onnx?"),
        (["run=tiny", "format=fused"], "error: format=fused: must be torch_export, onnx, int8, "),
        (["run=tiny", "format=onnx+fp16"], "error: format=onnx+fp16: must be onnx without fp16"),
        (["run=tinny"], "error: run=tinny: no such run in"),
        (["run=tiny", "opset=13"], "error: opset=13: must be 18 to 23"),
        (["run=tiny", "opset=18.5"], "error: opset=18.5: must be 18 to 23"),
        (["run=tiny", "opset=[18]"], "error: opset=[18]: must be 18 to 23"),
        (["run=tiny", "opset=18", "format=torch_export"], "error: opset=18: must be null, as "),
        (["run=tiny", "to=a.pt2"], "error: to=a.pt2: must be a folder, or a file *.onnx where "),
        (["run=tiny", f"to={__file__}/x"], f"error: to={__file__}/x: {__file__} is no folder"),
    ],
)
def test_mistakes(export_run, tmp_path, arguments, message):
    ended = export_run(*arguments)
    assert (ended.status, ended.err.startswith(message)) == (2, True)
    assert not (tmp_path / "to").exists()


# A compiler's library is another one each time.
@pytest.mark.parametrize("name", to_export(name for name in registry.FORMATS if name != "aot"))
def test_what_is_evaluated_is_what_is_written(finished_run, exported, name):
    """Byte for byte: its digest comes into the measurement."""
    to, folder = exported(name), find_run(finished_run, "tiny")
    found = Accuracies(RunData(), torch.device("cpu")).of(of_run(folder, name, 1))
    assert found.files == {
        file: sha256((to / file).read_bytes()).hexdigest() for file in FILES[name]
    }


def test_weights_by_themselves_become_a_file_of_an_opset(exported, finished_run, tmp_path, call):
    onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    weights = shutil.copy(
        exported("safetensors") / "model.safetensors", tmp_path / "mine.safetensors"
    )
    to = tmp_path / "there" / "net.onnx"
    ended = call(export_command.main, f"run={weights}", "opset=18", f"to={to}")
    assert ended.status == 0, ended.err
    assert {path.name for path in to.parent.iterdir()} == {"net.onnx", ".net.onnx.sha256"}
    model = onnx.load(to)
    assert {one.domain: one.version for one in model.opset_import}[""] == 18
    said = {one.key: one.value for one in model.metadata_props}
    assert said == Network.of(Run.load(find_run(finished_run, "tiny"))).description
    assert json.loads(said["classes"]) == [str(number) for number in range(10)]
    ended = call(export_command.main, f"run={weights}", "format=int8", f"to={tmp_path / 'no'}")
    assert ended.status == 2
    assert "format=int8: needs training images to calibrate" in ended.err


def test_the_card_says_what_is_known_of_a_file_that_was_built_anew(finished_run, tmp_path, call):
    """The measurement names another file, and there are the classes that images got there."""
    outputs = shutil.copytree(finished_run, tmp_path / "outputs")
    folder = find_run(outputs, "tiny")
    found, _ = Measurement.read_all(folder, Run.load(folder))
    (fused,) = (one for one in found if one.variant == "fused")
    recipe, files = {"torch_export": 1}, {"model.pt2": "0" * 64}
    replace(fused, variant="torch_export", recipe=recipe, files=files).save(folder)
    shutil.copy(folder / "predictions/fused.npz", folder / "predictions/torch_export.npz")
    given = f"outputs={outputs}", "run=tiny", "format=torch_export", f"to={tmp_path / 'to'}"
    ended = call(export_command.main, *given)
    assert ended.status == 0, ended.err
    card = (tmp_path / "to" / "model-torch_export.md").read_text()
    assert "The file was built anew" in card
    assert "359 of 359 test images get the class that they got there" in card
    assert f"As `torch_export`: {fused.test_acc:.2f} % of the test images; " in card
    told = json.loads((tmp_path / "to" / "model-torch_export.json").read_text())["measurement"]
    assert told["test_acc"] == fused.test_acc
    assert told["carried_over"]["benchmark"] == fused.benchmark


def test_agreement_is_relative_to_the_size_of_logits():
    logits = torch.linspace(-40, 40, 80).view(8, 10)

    def compare(difference, exact=True):
        reference, other = lambda images: images, lambda images: images + difference
        return agreement(reference, other, logits.split(3), exact=exact)

    assert compare(0.03).difference == pytest.approx(0.03 / 40, rel=1e-3)
    with pytest.raises(Disagrees, match=r"differ by 0\.001[23] of the largest one"):
        compare(0.05)
    assert compare(0.05, exact=False).same_class == 8
    with pytest.raises(Disagrees):
        compare(float("nan"))

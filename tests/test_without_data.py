"""Measuring runs whose data, or weights, are not on this machine."""

import pickle
import re
import shutil
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
from conftest import TINY, call_once, cifar10, pack_archive, write_and_read

from cifar_lightning.benchmark import accuracy, processes, together
from cifar_lightning.benchmark.data_check import summary
from cifar_lightning.benchmark.load import load_data
from cifar_lightning.cli import export
from cifar_lightning.cli import report as report_command
from cifar_lightning.data.cifar10 import CIFAR10DataModule
from cifar_lightning.errors import UserError
from cifar_lightning.runs.carried_over import CarriedOver
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.variants import registry

ELSEWHERE = "amd-epyc-elsewhere"
EVALUATED = ["fp32", "fused"]


@pytest.fixture(scope="session")
def trained(made_once, image_folder):
    """Two seeds of one tiny network, measured on another machine, whose images are gone."""
    return made_once("elsewhere", lambda base: measured_elsewhere(base, image_folder)) / "outputs"


def measured_elsewhere(base, image_folder):
    import train

    images, outputs = base / "images", base / "outputs"
    shutil.copytree(image_folder, images)
    data = ["data=imagefolder", "data.name=mine", "data.num_classes=10", f"data.root={images}"]
    for seed in (0, 1):
        call_once(
            train.main, *TINY[1:], *data, f"outputs={outputs}", "id=net", f"seed={seed}",
            "epochs=1", "batch_size=64", f"benchmark.variants=[{','.join(EVALUATED)}]",
        )  # fmt: skip
    shutil.rmtree(images)
    for folder in (outputs / "runs").iterdir():
        for path in (folder / "measurements").iterdir():
            theirs = replace(Measurement.read(path), device="EPYC elsewhere", hardware=ELSEWHERE)
            path.unlink()
            theirs.save(folder)


@pytest.fixture
def outputs(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "outputs")


def folders(outputs):
    return sorted((outputs / "runs").iterdir(), key=lambda one: Run.load(one).config["seed"])


def found(folder, variant):
    """Take a variant's measurements of here and of elsewhere."""
    both = {
        path.name: Measurement.read(path) for path in (folder / "measurements").iterdir()
        if path.name.startswith(f"{variant}@")
    }  # fmt: skip
    theirs = [one for name, one in both.items() if ELSEWHERE in name]
    ours = [one for name, one in both.items() if ELSEWHERE not in name]
    return (ours or [None])[0], (theirs or [None])[0]


def test_latency_is_measured_and_accuracy_carried_over(again, outputs, call):
    ended = again("run=all", "variants=[fp32,fused,onnx]")
    assert ended.status == 0, ended.err
    assert "mine is not here and is not downloaded (" in ended.out
    for folder in folders(outputs):
        for variant in EVALUATED:
            ours, theirs = found(folder, variant)
            assert ours.latency is not None
            assert ours.latency != theirs.latency
            assert (ours.test_acc, ours.confusion) == (theirs.test_acc, theirs.confusion)
            where = CarriedOver("EPYC elsewhere", theirs.engines, theirs.benchmark)
            assert ours.carried_over == where
        onnx, _ = found(folder, "onnx")
        assert (onnx.has_figures, onnx.test_acc, onnx.confusion) == (True, None, None)
        assert "the run's data are not here" in onnx.reason
        assert onnx.latency is not None
    rows = [row for row in write_and_read(outputs) if row.hardware != ELSEWHERE]
    assert {row.variant: row.acc_from is None for row in rows} == {
        "fp32": False, "fused": False, "onnx": True,
    }  # fmt: skip
    ended = call(report_command.main, f"outputs={outputs}", "min_acc=0")
    assert ended.status == 0, ended.err
    told = ended.out.partition("## Not ranked")[0]
    # Rows have other names where noise tells seeds apart.
    assert re.search(r"Accuracy of .*\bf\w+.* is carried over from: benchmark ", told)
    # Before that may stand that something else ran beside it.
    assert re.search(
        r"is not ranked: .*accuracy not checked: the run's data are not here", ended.out
    )
    assert "net onnx" not in told


def test_it_is_carried_over_again_with_where_it_came_from(again, outputs):
    """From here to another number of threads: it was evaluated elsewhere all the same."""
    folder = folders(outputs)[0]
    assert again(f"run={folder}").status == 0
    ours, _ = found(folder, "fp32")
    shutil.rmtree(folder / "predictions")  # what is carried over does without
    assert again(f"run={folder}", "threads=[2]").status == 0
    (path,) = (folder / "measurements").glob("fp32@*-t2-quick.json")
    assert Measurement.read(path).carried_over == ours.carried_over


@pytest.mark.parametrize("change", [{"weights": "0" * 64}, {"recipe": {"fused": 7}}])
def test_what_is_of_other_weights_or_another_recipe_is_not_carried_over(change, again, outputs):
    folder = folders(outputs)[0]
    _, theirs = found(folder, "fused")
    replace(theirs, **change).save(folder)
    assert again(f"run={folder}", "variants=[fused]").status == 0
    ours, _ = found(folder, "fused")
    assert (ours.has_figures, ours.test_acc, ours.carried_over) == (True, None, None)


@pytest.mark.parametrize(("precision", "known"), [("32-true", True), ("bf16-mixed", False)])
def test_fp32_has_the_accuracy_of_the_test_after_training(precision, known, again, outputs):
    """Where nobody measured it yet, and the training was in fp32."""
    folder = folders(outputs)[0]
    run = Run.load(folder)
    shutil.rmtree(folder / "measurements")
    trainer = run.config["trainer"] | {"precision": precision}
    replace(run, config=run.config | {"precision": precision, "trainer": trainer}).save(folder)
    assert again(f"run={folder}").status == 0
    ours, _ = found(folder, "fp32")
    assert ours.test_acc == (run.test_acc if known else None)
    where = CarriedOver(run.machine.device, {"torch": run.versions["torch"]})
    assert ours.carried_over == (where if known else None)
    assert ours.confusion is None


def test_seeds_without_weights_have_the_latency_of_the_others(again, outputs):
    whole, lacking = folders(outputs)
    (lacking / "weights.safetensors").unlink()
    _, theirs = found(lacking, "fused")
    half = [[5 * (column in (row, 9 - row)) for column in range(10)] for row in range(10)]
    replace(theirs, test_acc=50.0, confusion=half).save(lacking)
    ended = again("run=all", "variants=[fp32,fused]")
    assert ended.status == 0, ended.err
    ours, theirs = found(lacking, "fused")
    assert ours.latency == found(whole, "fused")[0].latency
    assert ours.test_acc == 50 != found(whole, "fused")[0].test_acc
    assert ours.carried_over.benchmark == theirs.benchmark


def test_runs_without_any_weights_are_timed_with_random_ones(again, outputs):
    """Their accuracy is what was evaluated elsewhere; a network that can't be built is left out."""
    for folder in folders(outputs):
        (folder / "weights.safetensors").unlink()
        replace(found(folder, "fp32")[1], size_bytes=12345).save(folder)
    ended = again("run=all", "variants=[fp32,onnx]")
    assert ended.status == 0, ended.err
    assert "timed with random weights, as theirs are not here: net\n" in ended.out
    for folder in folders(outputs):
        ours, theirs = found(folder, "fp32")
        assert ours.has_figures
        assert (ours.test_acc, ours.size_bytes) == (theirs.test_acc, 12345)
    assert ours.latency == found(folders(outputs)[0], "fp32")[0].latency
    assert again(f"run={folder}").status == 2  # which was asked for, and can't be had
    run = Run.load(folder)
    model = run.config["model"] | {"depth": 0}
    replace(run, config=run.config | {"model": model}).save(folder)
    ended = again("run=all")
    assert ended.status == 0, ended.err
    assert "left out: " in ended.out
    assert "depth" in ended.out


def test_int8_without_images_to_calibrate_is_only_timed(again, outputs):
    """Latency does not depend on them; an accuracy is that of elsewhere or none."""
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    folder = folders(outputs)[0]
    assert again(f"run={folder}", "variants=[fp32,int8]").status == 0
    ours, _ = found(folder, "int8")
    assert (ours.has_figures, ours.test_acc) == (True, None)
    assert "accuracy not checked: the run's data are not here" in ours.reason


def test_a_process_of_its_own_calibrates_with_noise_where_the_images_are_gone(outputs):
    images = processes._Images(None, True)
    assert images(None).shape == images(folders(outputs)[0]).shape == (64, 3, 32, 32)


def test_a_network_without_weights_is_not_built_in_any_size(again, outputs):
    for folder in folders(outputs):
        (folder / "weights.safetensors").unlink()
        run = Run.load(folder)
        model = run.config["model"] | {"channels": [4096] * 2, "depth": 3}
        replace(run, config=run.config | {"model": model}).save(folder)
    ended = again("run=all")
    assert ended.status == 2
    assert "left out: net: its network has " in ended.out
    assert "5e+08 are the most" in ended.out


def test_data_that_are_here_are_used(again, outputs, image_folder, monkeypatch):
    """What was carried over is evaluated as soon as it can be; a wrong root is a mistake."""
    folder = folders(outputs)[0]
    ended = again(f"run={folder}", f"data_root={outputs}/nowhere")
    assert ended.status == 2
    assert "nowhere: there is no folder" in ended.err
    assert again(f"run={folder}").status == 0
    assert found(folder, "fp32")[0].carried_over is not None
    (folder / "measurements" / f"fp32@{ELSEWHERE}-t1-quick.json").unlink()
    assert again(f"run={folder}", f"data_root={image_folder}").status == 0
    ours, _ = found(folder, "fp32")
    assert ours.carried_over is None
    assert ours.test_acc == pytest.approx(Run.load(folder).test_acc, abs=1e-3)
    monkeypatch.setattr(accuracy, "evaluate", None)  # and never again
    assert again(f"run={folder}").status == 0
    assert found(folder, "fp32")[0].carried_over is None


def test_no_archive_is_downloaded(again, outputs, monkeypatch, tmp_path):
    """A record of CIFAR-10 on a machine without it: no mirror is asked, unless a root is given."""
    folder, asked = folders(outputs)[0], []

    def prepare_data(self):
        asked.append(self.root)
        raise UserError("no network")

    monkeypatch.setattr(CIFAR10DataModule, "prepare_data", prepare_data)
    monkeypatch.chdir(tmp_path)
    run = Run.load(folder)
    target = "cifar_lightning.data.cifar10.CIFAR10DataModule"
    of_folders = {"cache_dir", "resize", "skip_bad"}
    data = {key: one for key, one in run.config["data"].items() if key not in of_folders}
    data |= {"_target_": target, "name": "cifar10", "md5": "0" * 32, "root": "data"}
    replace(run, config=run.config | {"data": data}).save(folder)
    ended = again(f"run={folder}")
    assert ended.status == 0, ended.err
    assert "cifar10 is not here and is not downloaded (data/cifar-10-p" in ended.out
    assert found(folder, "fp32")[0].carried_over is not None
    assert not asked
    assert not (tmp_path / "data").exists()
    assert again(f"run={folder}", f"data_root={tmp_path}").err == "error: no network\n"
    assert asked == [str(tmp_path)]


def test_what_was_measured_here_is_not_again(again, outputs, monkeypatch):
    """With rerun=false: until all is there, or the engines have changed."""
    both = folders(outputs)
    assert again(f"run={both[0]}", "variants=[fp32]").status == 0
    ended = again("run=all", "variants=[fp32,fused]", "rerun=false")
    assert ended.status == 0, ended.err
    assert "measured here before: 1 of 4" in ended.out
    assert all(found(folder, variant)[0] for folder in both for variant in EVALUATED)
    with monkeypatch.context() as patch:
        patch.setattr(together, "time_here", None)  # nothing is timed
        ended = again("run=all", "variants=[fp32,fused]", "rerun=false")
        assert ended.status == 0, ended.err
        assert "measured here before: 4 of 4" in ended.out
        assert ended.out.count("| net ") >= 4
    shutil.rmtree(outputs / "benchmarks")  # as if another machine of this kind had measured
    ended = again("run=all", "variants=[fp32]", "rerun=false")
    assert "measured here before: 0 of 2" in ended.out
    monkeypatch.setattr(registry, "engines", lambda variant: {"torch": "9"})
    ended = again("run=all", "variants=[fp32]", "rerun=false")
    assert "measured here before: 0 of 2" in ended.out


def test_what_is_different_about_other_data_is_said(again, outputs, image_folder, tmp_path):
    """And one can go on with them: the accuracy says so, and is none of the run's own data."""
    folder, images = folders(outputs)[0], shutil.copytree(image_folder, tmp_path / "images")
    shutil.rmtree(folder / "predictions")
    first = min(images.glob("train/*")).rename(tmp_path / "x")
    asked = (f"run={folder}", f"data_root={images}", "variants=[fp32]")
    refused = again(*asked)
    assert refused.status == 2
    assert "is missing from" in refused.err
    first.rename(images / "train" / Run.load(folder).classes[0])
    min(images.glob("test/*/*")).unlink()
    refused = again(*asked)
    assert refused.status == 2
    assert "was trained on other data than these (99 test images, were 100); say" in refused.err
    assert "or data_check=false to go on" in refused.err
    ended = again(*asked, "data_check=false")
    assert ended.status == 0, ended.err
    assert "99 test images, were 100" in ended.out + ended.err
    ours, _ = found(folder, "fp32")
    assert ours.carried_over.data is not None
    assert sum(map(sum, ours.confusion)) == 99
    assert not (folder / "predictions").exists()
    assert again(f"run={folder}", f"data_root={image_folder}", "variants=[fp32]").status == 0
    ours, _ = found(folder, "fp32")
    assert ours.carried_over is None
    assert sum(map(sum, ours.confusion)) == 100


def packed_images(seed, more=()):
    """Write a small archive in CIFAR-10's format, as bytes, with three images of each class."""
    generator = np.random.default_rng(seed)
    files = {"batches.meta": {"label_names": [f"class {number}" for number in range(10)]}}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        pixels = generator.integers(256, size=(30, 3072), dtype=np.uint8)
        files[name] = {"data": pixels, "labels": [*range(10)] * 3}
    pickled = [
        (f"cifar-10-batches-py/{name}", pickle.dumps(content, protocol=2))
        for name, content in files.items()
    ]
    return pack_archive([*pickled, *more])


@pytest.fixture
def trained_on_an_archive(outputs, tmp_path):
    """A run's folder and its archive, which is not the original."""
    folder, root = folders(outputs)[0], tmp_path / "data"
    root.mkdir()
    archive = root / "cifar-10-python.tar.gz"
    archive.write_bytes(packed_images(0))
    data = cifar10(root, [], md5(archive.read_bytes()).hexdigest())
    run, images = Run.load(folder), data.images
    recorded = {key: run.config["data"][key] for key in ("mean", "std", "batch_size", "seed")}
    recorded |= {
        "_target_": "cifar_lightning.data.cifar10.CIFAR10DataModule", "name": "rebuilt",
        "md5": data.md5, "root": str(root), "mirrors": [], "connect_timeout": 1.0,
        "val_fraction": 0.0, "split_seed": 0, "num_workers": 0, "num_classes": 10,
        "eval_batch_size": 2,
    }  # fmt: skip
    replace(
        run, config=run.config | {"data": recorded}, data=summary(images),
        data_fingerprint=images.fingerprint, classes=[*images.classes],
    ).save(folder)  # fmt: skip
    return folder, archive


def test_an_archive_is_known_by_its_images(trained_on_an_archive, caplog):
    """Packed in another way it is the same; the original is told from a copy, and can be taken."""
    folder, archive = trained_on_an_archive
    expected = load_data(folder, str(archive.parent)).images.fingerprint
    archive.write_bytes(packed_images(0, [("cifar-10-batches-py/readme.html", b"")]))
    assert load_data(folder, str(archive.parent)).images.fingerprint == expected
    archive.write_bytes(packed_images(1))
    with pytest.raises(UserError) as refused:
        load_data(folder, str(archive.parent))
    assert "trained on other data than these" in str(refused.value)
    assert str(refused.value).endswith("or data_check=false to go on")
    assert load_data(folder, str(archive.parent), check=False).images.fingerprint != expected
    assert "trained on other data than these" in caplog.messages[-1]
    archive.write_bytes(packed_images(0)[:-40])  # not whole
    with pytest.raises(UserError, match=f"^{archive}: "):
        load_data(folder, str(archive.parent), check=False)


def test_the_original_is_not_downloaded_for_a_run_of_another_archive(
    trained_on_an_archive, monkeypatch
):
    folder, archive = trained_on_an_archive
    archive.unlink()
    asked = []

    def download(path, mirrors, md5, timeout):
        asked.append((len(mirrors), md5))
        raise UserError("not there")

    monkeypatch.setattr("cifar_lightning.data.cifar10.download_archive", download)
    for check in (True, False):
        with pytest.raises(UserError, match="not there"):
            load_data(folder, str(archive.parent), check=check)
    original = CIFAR10DataModule.layout.md5
    assert asked == [(0, original), (3, original)]


def test_pixels_that_differ_by_a_decoders_rounding_are_the_same_data(outputs, image_folder, caplog):
    folder = folders(outputs)[0]
    run = Run.load(folder)
    assert run.data.decoder.startswith("decoder ")
    other = replace(run.data, pixels="0" * 16, decoder="decoder 2, Pillow 1")
    replace(run, data=other).save(folder)
    load_data(folder, str(image_folder))
    (line,) = [one for one in caplog.messages if "slightly other pixels" in one]
    assert line.endswith("than by decoder 2, Pillow 1")


def test_a_data_set_is_found_again_from_another_folder(finished_run, tmp_path, monkeypatch):
    """A relative root is kept absolute; and what lies beside the outputs is found there."""
    (folder,) = shutil.copytree(finished_run / "runs", tmp_path / "outputs" / "runs").iterdir()
    run = Run.load(folder)
    (tmp_path / "data").mkdir()
    cifar = {
        "_target_": "cifar_lightning.data.cifar10.CIFAR10DataModule", "md5": "0" * 32,
        "root": str(tmp_path / "data"), "mirrors": [], "connect_timeout": 1.0,
    }  # fmt: skip
    replace(run, config=run.config | {"data": run.config["data"] | cifar}).save(folder)
    monkeypatch.chdir(tmp_path / "data")
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    with pytest.raises(UserError, match=f"^{archive}: No such file or directory$"):
        load_data(folder, download=False)


def test_a_copied_run_is_exported_with_what_is_known(outputs, call, tmp_path):
    """On random images; nothing is downloaded, and calibration needs images."""
    folder = shutil.move(folders(outputs)[0], tmp_path / "elsewhere")
    to = tmp_path / "to"
    ended = call(export.main, f"run={folder}", "format=fused+torch_export", f"to={to}")
    assert ended.status == 0, ended.err
    card = (to / "model-fused+torch_export.md").read_text()
    assert "On 1000 random images" in card
    assert "it was not measured: accuracy not checked" in card
    ended = call(export.main, f"run={folder}", f"to={to}", "format=int8")
    assert ended.status == 2
    assert "format=int8: needs " in ended.err


def test_weights_by_themselves_are_measured(outputs, again, tmp_path):
    """They have a latency and no row; no folder of a run is touched."""
    weights = shutil.copy(folders(outputs)[0] / "weights.safetensors", tmp_path / "w.safetensors")
    shutil.rmtree(outputs)
    ended = again(f"run={weights}", "variants=[fp32,int8]")
    assert ended.status == 0, ended.err
    run = Network.from_weights(weights.read_bytes()).run
    assert re.search(rf"\| {run[-8:]} +\| fp32 +\| +1 \| +\d", ended.out)
    assert "unsupported: needs " in ended.out
    assert [path.name for path in outputs.iterdir()] == ["benchmarks"]

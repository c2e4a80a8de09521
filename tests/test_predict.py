import csv
import io
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ODD_FILES, ROOT, with_weights
from PIL import Image

import cifar_lightning
from cifar_lightning.cli import predict as predict_command
from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.data.image_files import read_image
from cifar_lightning.deploy.classifier import Classifier
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.run import Run


@pytest.fixture
def digits(finished_run):
    config = Run.load(find_run(finished_run, "tiny")).config["data"]
    return DigitsDataModule(**{k: v for k, v in config.items() if k != "_target_"})


@pytest.fixture
def photos(digits, tmp_path):
    """Three test images as files, in a folder with something else."""
    folder = tmp_path / "my photos"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b=1.png", "deeper/it's.png")):
        pixels = digits.images.test.images[number].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture
def predicted(call, finished_run):
    return lambda *arguments: call(
        predict_command.main,
        f"outputs={finished_run}",
        "run=tiny",
        "device=cpu",
        *map(str, arguments),
    )


def test_a_folder_gives_what_the_network_says(predicted, photos, digits, finished_run):
    ended = predicted(photos, "format=csv", "top=10")
    assert (ended.status, ended.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    images = digits.images.test.images[:3]
    expected = cifar_lightning.load("tiny", finished_run)(images)
    names = ["a.png", "b=1.png", "deeper/it's.png"]
    assert len(rows) == 30
    for number, name in enumerate(names):
        shares = {
            int(row["class"]): float(row["probability"])
            for row in rows
            if row["image"] == str(photos / name)
        }
        assert [shares[k] for k in range(10)] == pytest.approx(expected[number].tolist(), abs=1e-5)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_single_files_with_awkward_names(predicted, photos):
    ended = predicted(photos / "b=1.png", photos / "deeper" / "it's.png", "format=json", "top=2")
    found = json.loads(ended.out)
    assert [len(one["classes"]) for one in found] == [2, 2]
    assert [one["image"] for one in found] == [
        str(photos / "b=1.png"),
        str(photos / "deeper" / "it's.png"),
    ]


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("csv", csv.reader)])
def test_a_result_is_alone_on_stdout(form, read, call, finished_run, photos, tmp_path, monkeypatch):
    """Whatever is damaged beside it, and whatever libraries say."""
    outputs = shutil.copytree(finished_run, tmp_path / "outputs", symlinks=True)
    (outputs / "runs" / "damaged").mkdir()
    (outputs / "runs" / "damaged" / "run.json").write_text("{")
    real = Classifier.preprocess

    def preprocess(self, images):
        print("from a library")
        logging.getLogger("library").warning("a warning of it")
        return real(self, images)

    monkeypatch.setattr(Classifier, "preprocess", preprocess)
    arguments = ("run=tiny", f"outputs={outputs}", "device=cpu", f"format={form}", str(photos))
    ended = call(predict_command.main, *arguments)
    assert ended.status == 0
    assert len([*read(ended.out if form == "json" else io.StringIO(ended.out))]) in (3, 1 + 3 * 3)
    for said in ("damaged", "from a library", "a warning of it"):
        assert said in ended.err
        assert said not in ended.out


def test_text_is_one_line_an_image(predicted, photos):
    lines = predicted(photos).out.splitlines()
    assert len(lines) == 3
    assert all(line.count(" %") == 3 for line in lines)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("size", [(32, 32), (200, 90), (5, 41), (1, 1)])
def test_images_of_any_kind_and_size(tmp_path, mode, size):
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, size).save(path)
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), pixels)


def test_the_middle_is_cut_out_and_the_camera_was_turned(tmp_path):
    image = Image.new("RGB", (96, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[2].min() == 255  # the blue square alone
    half = Image.new("RGB", (32, 32), "red")
    half.paste("blue", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half.save(tmp_path / "b.png", exif=exif)
    assert read_image(tmp_path / "b.png")[2, -1].min() == 255


def test_greys_of_16_bits_and_transparency(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").float().mean() == pytest.approx(127, abs=2)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").min() == 255


def test_what_can_not_be_read_is_named_and_the_rest_classified(predicted, photos):
    torn = photos / "torn.png"
    torn.write_bytes((photos / "a.png").read_bytes()[:60])
    ended = predicted(photos)
    assert ended.status == 1
    assert ended.err.startswith(f"error: {torn}: this image can't be read (")
    assert ended.err.count("\n") == 1
    assert len(ended.out.splitlines()) == 3
    ended = predicted(torn)
    assert ended.status == 2
    assert ended.err.endswith("error: images: none of 1 can be read\n")
    assert ended.out == ""


def test_odd_files_are_named_and_the_rest_classified(predicted, photos):
    for kind, make in ODD_FILES.items():
        make(photos / f"{kind}.png")
    whole = Image.open(photos / "a.png")
    whole.save(photos / "exif.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    ended = predicted(photos, "format=csv", "top=1")
    assert ended.status == 1
    lines = ended.err.splitlines()
    named = {kind for kind in ODD_FILES for line in lines if f"/{kind}.png: this image" in line}
    assert named == set(ODD_FILES)
    assert all(line.startswith(f"error: {photos}") for line in lines)
    rows = [row["image"] for row in csv.DictReader(io.StringIO(ended.out))]
    assert {str(photos / name) for name in ("a.png", "b=1.png", "deeper/it's.png")} <= set(rows)


@pytest.mark.parametrize("damage", ["weights", "mean"])
def test_an_answer_that_is_no_number_is_none(call, finished_run, photos, tmp_path, damage):
    outputs = shutil.copytree(finished_run, tmp_path / "outputs")
    folder = find_run(outputs, "tiny")
    if damage == "weights":
        with_weights(folder, lambda tensor: tensor * float("nan") if tensor.ndim else tensor)
    else:
        run = Run.load(folder)
        data = run.config["data"] | {"mean": [1e308] * 3}
        replace(run, config=run.config | {"data": data}).save(folder)
        with_weights(folder, lambda tensor: tensor)
    ended = call(predict_command.main, f"outputs={outputs}", "run=tiny", "device=cpu", str(photos))
    assert (ended.status, ended.out) == (2, "")
    said = f"error: {folder.name}: the logits are NaN or infinite; the run is damaged\n"
    assert ended.err == said


@pytest.mark.parametrize("form", ["json", "csv"])
def test_stdout_is_the_result_alone(predicted, photos, finished_run, form):
    """Another run's record is damaged, and says so elsewhere."""
    damaged = finished_run / "runs" / "damaged"
    damaged.mkdir()
    try:
        (damaged / "run.json").write_text("{")
        ended = predicted(photos, f"format={form}")
    finally:
        shutil.rmtree(damaged)
    assert ended.status == 0
    assert "damaged" in ended.err
    if form == "json":
        assert len(json.loads(ended.out)) == 3
    else:
        assert ended.out.startswith("image,rank,class,probability\n")


def test_a_reader_that_has_seen_enough(finished_run, photos, forked):
    done = subprocess.run(
        f"{sys.executable} -m cifar_lightning.predict run=tiny outputs={finished_run} '{photos}' "
        "device=cpu | true",
        shell=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "error: nowhere.png: there is no such file or folder"),
        ([], "error: images: needs a value, say the name of an image or a folder"),
        (["{photos}", "format=xml"], "error: format=xml: must be text, csv, json"),
        (["{photos}", "top=0"], "error: top=0: must be an integer of at least 1"),
        (["{photos}", "top=11"], "error: top=11: must be 1 to 10, the classes"),
        (["{photos}", "run=tinny"], "error: run=tinny: no such run in"),
        (["{photos}", "device=abacus"], "error: device=abacus: must be auto"),
        (["{photos}/notes.txt"], "error: {photos}/notes.txt: this image can't be read"),
        (["{empty}"], "error: {empty}: no image in this folder"),
    ],
)
def test_mistakes(predicted, photos, tmp_path, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.pdf").write_bytes(b"%PDF")
    places = {"photos": photos, "empty": empty}
    ended = predicted(*(argument.format(**places) for argument in arguments))
    assert ended.status == 2
    assert ended.err.startswith(message.format(**places))
    assert ended.out == ""

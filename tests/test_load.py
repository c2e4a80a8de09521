"""Using a trained network from Python."""

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import with_weights
from PIL import Image

import cifar_lightning
from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.run import Network, Run


@pytest.fixture
def folder(finished_run):
    return find_run(finished_run, "tiny")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.effect_noise((50, 40), 90).convert("RGB").save(path)
    return path


def test_a_run_its_folder_and_its_weights_are_one_network(finished_run, folder, image):
    found = [
        cifar_lightning.load("tiny", finished_run),
        cifar_lightning.load(folder),
        cifar_lightning.load(folder / "weights.safetensors"),
    ]
    assert {one.run for one in found} == {folder.name}
    assert [one.classes for one in found] == [[str(number) for number in range(10)]] * 3
    first, *others = (one([image]) for one in found)
    assert first.shape == (1, 10)
    assert first.sum() == pytest.approx(1)
    for other in others:
        assert torch.equal(first, other)


def test_files_pil_images_and_tensors_are_one_input(folder, image):
    classifier = cifar_lightning.load(folder)
    with Image.open(image) as opened:
        inputs = classifier.preprocess([image, str(image), opened])
    assert inputs.shape == (3, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[0], inputs[2])
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    record = Network.of(Run.load(folder))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (record.mean, record.std))
    expected = (pixels / 255 - mean) / std
    torch.testing.assert_close(classifier.preprocess(pixels), expected, atol=1e-5, rtol=1e-5)
    for wrong in (pixels.float() / 255, pixels[0], pixels[:, :1], pixels.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="must be"):
            classifier.preprocess(wrong)


def test_another_stride_than_the_weights_were_trained_with_is_refused(folder, tmp_path):
    """It changes no shape, so only what the weights say of themselves can tell."""
    copy = shutil.copytree(folder, tmp_path / folder.name)
    run = Run.load(copy)
    model = run.config["model"]
    assert model["stem_stride"] == 2
    replace(run, config=run.config | {"model": model | {"stem_stride": 1}}).save(copy)
    with pytest.raises(UserError, match="not the weights of this run's network"):
        cifar_lightning.load(copy)
    # By themselves they say what they are, wherever they lie.
    network = cifar_lightning.load(copy / "weights.safetensors").network
    images = torch.zeros(1, 3, 32, 32)
    assert network.stem(images).shape[-1] == 16
    with_weights(copy, lambda tensor: tensor)  # as if they had been trained so
    assert cifar_lightning.load(copy).network.stem(images).shape[-1] == 31


def test_weights_that_do_not_say_of_what_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "weights.safetensors"
    save_file(load_file(folder / "weights.safetensors"), path)
    with pytest.raises(UserError, match="it does not say of which network"):
        cifar_lightning.load(path)


def test_what_is_not_there_is_named(finished_run):
    with pytest.raises(UserError, match=r"run=tinny: no such run in .*did you mean tiny\?"):
        cifar_lightning.load("tinny", finished_run)
    with pytest.raises(UserError, match="device=abacus"):
        cifar_lightning.load("tiny", finished_run, device="abacus")

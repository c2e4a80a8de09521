"""Image folders as people have them."""

import logging
import os
import socket

import numpy as np
import pytest
import torch
from conftest import ODD_FILES
from PIL import Image

from cifar_lightning.data.found_files import find_images
from cifar_lightning.data.image_folder import ImageFolderDataModule, read_image_folder
from cifar_lightning.errors import UserError

SPLITS = ("train", "test")


def write(path, shade=0, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 20, 30)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images."""
    for split in SPLITS:
        for shade, name in enumerate(("cat", "dog")):
            write(tmp_path / "images" / split / name / "a.png", shade)
            write(tmp_path / "images" / split / name / "b.png", shade)
    return tmp_path / "images"


@pytest.fixture
def read(folder, caplog):
    """Read it; give the data and what was said."""

    def run(**settings):
        with caplog.at_level(logging.INFO):
            data = read_image_folder(str(folder), str(folder.parent / "cache"), **settings)
        return data, caplog.text

    return run


@pytest.fixture
def refused(folder):
    def run(**settings):
        with pytest.raises(UserError) as caught:
            read_image_folder(str(folder), str(folder.parent / "cache"), **settings)
        return str(caught.value)

    return run


def test_what_nobody_put_there_is_left_out_in_silence(folder, read):
    for place in (folder, folder / "train", folder / "test", folder / "train" / "cat"):
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git", "$RECYCLE.BIN"):
            write(place / name / "a.png", 99)
        for name in (".hidden.png", "._a.png", "Thumbs.db", "Desktop.ini", ".DS_Store"):
            (place / name).write_bytes(b"none")
    (data, said) = read()
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert "left out" not in said
    assert len(find_images([str(folder)])) == 8


def test_deeper_folders_links_and_any_suffix_are_read(folder, read, tmp_path):
    deeper = folder / "train" / "cat" / "deep" / "er"
    for number, name in enumerate(("1.WEBP", "2.bmp", "3.Tiff", "4.gif", "5.ppm", "6.jp2")):
        write(deeper / name, 100 + number)
    write(tmp_path / "elsewhere" / "7.png", 200)
    (folder / "train" / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "cat" / "again").symlink_to(tmp_path / "elsewhere")
    (deeper / "round").symlink_to(folder / "train" / "cat")
    (deeper / "itself").symlink_to("itself")
    data, said = read()
    assert data.train.labels.tolist() == [0] * 9 + [1] * 2
    assert (data.train.images[:, 0, 0, 0] == 200).sum() == 1
    assert "left out: 1 without a suffix" in said  # the link that leads nowhere


def test_what_else_is_left_out_is_counted(folder, read):
    for place, name in (
        ("train/cat", "notes.txt"), ("test/dog", "more.TXT"), ("train/dog", "LICENSE"),
        ("train", "labels.csv"), ("train", "stray.png"), (".", "README.md"), ("extra", "x.png"),
    ):  # fmt: skip
        path = folder / place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"none")
    _, said = read()
    assert (
        "left out: 1 .csv in no class's folder, 1 .md, 1 .png in no class's folder, 2 .txt, "
        "1 folder called extra, 1 without a suffix"
    ) in said


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(number) for number in range(12)], [str(number) for number in range(12)]),
        (["-1", "10", "2"], ["-1", "2", "10"]),
        (["class10", "class2"], ["class10", "class2"]),  # as torchvision's ImageFolder
        (["10", "2", "x"], ["10", "2", "x"]),
        (["b", "B", "a"], ["B", "a", "b"]),
    ],
)
def test_classes_are_in_torchvisions_order_and_numbers_in_theirs(tmp_path, names, order):
    for shade, name in enumerate(order):
        for split in SPLITS:
            write(tmp_path / "i" / split / name / "a.png", shade)
    assert sorted(names) == sorted(order)
    data = read_image_folder(str(tmp_path / "i"), str(tmp_path))
    assert data.classes == tuple(order)
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(len(order)))


def test_one_name_however_it_is_encoded(folder, read, refused):
    """As macOS writes it, and as others do."""
    (folder / "train" / "cat").rename(folder / "train" / "caf\u00e9")
    (folder / "test" / "cat").rename(folder / "test" / "cafe\u0301")
    data, _ = read()
    assert data.classes == ("caf\u00e9", "dog")
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    write(folder / "train" / "cafe\u0301" / "c.png")
    assert "reads the same as" in refused()


def test_classes_that_differ_between_the_splits(folder, refused):
    write(folder / "train" / "bird" / "a.png")
    write(folder / "test" / "cow" / "a.png")
    write(folder / "test" / "emu" / "a.png")
    assert refused() == (
        f"data.root={folder}: class 'cow' is missing from {folder / 'train'}; "
        f"class 'emu' is missing from {folder / 'train'}; "
        f"class 'bird' is missing from {folder / 'test'}"
    )


def test_empty_folders(folder, refused):
    for split in SPLITS:
        for path in (folder / split / "dog").iterdir():
            path.unlink()
        (folder / split / "dog" / ".hidden.png").write_bytes(b"none")
    assert refused().splitlines() == [
        f"{folder / split / 'dog'}: no image in it" for split in SPLITS
    ]


def test_folders_called_otherwise_are_shown(folder, refused):
    (folder / "train").rename(folder / "Train")
    assert refused().endswith(f"there is no folder {folder / 'train'}; there are: Train, test")


def test_a_folder_that_can_not_be_read(folder, refused, monkeypatch):
    closed = folder / "train" / "cat"

    def scan(path, scandir=os.scandir):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert refused() == f"data.root={folder}: {closed}: Permission denied"
    with pytest.raises(UserError, match=f"^{closed}: Permission denied"):
        find_images([str(folder)])


# --- The source's own validation split ------------------------------------------------------


def module(folder, **settings):
    defaults = {
        "name": "mine", "num_classes": 2, "val_fraction": 0.5, "split_seed": 0, "batch_size": 2,
        "eval_batch_size": 2, "num_workers": 0, "seed": 0, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    places = {"root": str(folder), "cache_dir": str(folder.parent / "cache")}
    return ImageFolderDataModule(**defaults | places | settings)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_its_own_validation_split_is_used(folder, name, caplog):
    before = module(folder).images.fingerprint
    for shade, one in ((50, "cat"), (60, "dog"), (70, "dog")):
        write(folder / name / one / f"{shade}.png", shade)
    for _ in range(2):  # decoded, and from the cache
        data = module(folder)
        with caplog.at_level(logging.INFO):
            shades = {
                split: data.images.train.images[data.indices[split], 0, 0, 0].tolist()
                for split in ("train", "val")
            }
        assert shades == {"train": [0, 0, 1, 1], "val": [50, 60, 70]}
        assert data.images.train.labels[data.indices["val"]].tolist() == [0, 1, 1]
        assert "validation split of 3 images: data.val_fraction is not used" in caplog.text
        caplog.clear()
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.tolist() == [0, 1, 1]
    assert len(data.images.test.labels) == 4
    assert data.images.fingerprint != before
    with pytest.raises(UserError, match=r"data.val_fraction=0: must be above 0"):
        _ = module(folder, val_fraction=0).indices


def test_validation_splits_that_do_not_fit(folder, refused):
    write(folder / "val" / "cat" / "a.png")
    assert refused() == f"data.root={folder}: class 'dog' is missing from {folder / 'val'}"
    (folder / "valid").mkdir()
    assert refused() == f"data.root={folder}: only one of val, valid can be for validation"


# --- Images that are no use -----------------------------------------------------------------


@pytest.fixture
def bad(folder, monkeypatch):
    """Images of another size, torn and empty ones, and what is no file at all."""
    made = {}
    for kind, make in ODD_FILES.items():
        made[kind] = folder / "train" / "cat" / f"{kind}.png"
        make(made[kind])
    made["socket"] = folder / "test" / "dog" / "socket.jpg"
    monkeypatch.chdir(made["socket"].parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
    made["torn"] = folder / "train" / "dog" / "torn.png"
    made["torn"].write_bytes((folder / "train" / "dog" / "a.png").read_bytes()[:50])
    made["empty"] = folder / "test" / "cat" / "empty.jpg"
    made["empty"].touch()
    made["size"] = folder / "test" / "cat" / "size.png"
    write(made["size"], 80, (40, 30))
    return made


def test_all_of_them_are_named_at_once(folder, bad, refused):
    told = refused()
    for path in bad.values():
        assert f"{path}: this image " in told
    *_, last = told.splitlines()
    assert len(told.splitlines()) == len(bad) + 1
    assert f"data.root={folder}: {len(bad)} of {8 + len(bad)} images are no use" in last
    assert "data.resize=true" in last
    assert "data.skip_bad=true" in last
    assert not (folder.parent / "cache").exists()


def test_one_can_go_on_without_them(folder, bad, read, refused):
    data, said = read(skip_bad=True)
    assert (len(data.train.labels), len(data.test.labels)) == (4, 4)
    for path in bad.values():
        assert f"left out: {path}: this image " in said
    # What is kept knows of them, too.
    again, _ = read(skip_bad=True)
    assert again.fingerprint == data.fingerprint
    assert str(bad["torn"]) in refused()
    resized, _ = read(skip_bad=True, resize=True)
    assert (len(resized.train.labels), len(resized.test.labels)) == (4, 5)
    assert resized.test.images[:, 0, 0, 0].tolist() == [0, 0, 80, 1, 1]
    assert resized.fingerprint != data.fingerprint
    write(bad["torn"], 90)  # mended
    assert 90 in read(skip_bad=True)[0].train.images.unique()


def test_a_class_needs_images_that_are_of_use(folder, refused):
    for path in (folder / "test" / "dog").iterdir():
        path.write_bytes(b"none")
    assert refused(skip_bad=True) == f"data.root={folder}: no image of use in test/dog"


def test_many_alike_are_told_in_short(folder, refused):
    for number in range(50):
        write(folder / "train" / "cat" / f"{number}.png", size=(28, 28))
    lines = refused().splitlines()
    assert len(lines) == 22
    assert lines[-2] == f"{folder}: 30 more: this image is 28x28, must be 32x32"


def test_photos_of_any_size(folder, read):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, 15:75] = (200, 100, 50)
    for split in SPLITS:
        Image.fromarray(pixels).save(folder / split / "cat" / "photo.png")
    data, _ = read(resize=True)
    assert data.train.images[2].unique().tolist() == [50, 100, 200]


# --- What data are known by -----------------------------------------------------------------


def test_data_are_known_by_their_files_not_by_a_decoders_rounding(folder, read, monkeypatch):
    from cifar_lightning.data import image_cache, image_files

    data, _ = read()
    decode = image_files.to_input
    monkeypatch.setattr(image_files, "to_input", lambda *a: decode(*a) ^ 1)  # by one grey level
    monkeypatch.setattr(image_cache, "DECODER", "another JPEG library")
    other, _ = read()
    assert other.pixels != data.pixels
    assert other.fingerprint == data.fingerprint
    monkeypatch.setattr(image_cache, "DECODING", 0)
    assert read()[0].fingerprint != data.fingerprint

"""What an archive promises is checked, and nothing that a pickle names is imported or called."""

import io
import logging
import os
import pickle
import sys
import tarfile
import time
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
from conftest import cifar10, pack_archive
from torchvision import datasets

from cifar_lightning.data import cifar_archive
from cifar_lightning.data.cifar_archive import CIFAR10, CIFAR100
from cifar_lightning.errors import UserError

NAMES = ["airplane", "bird", "cat"]
FOLDER = "cifar-10-batches-py"


def contents(images=6):
    """A good archive's members, before they are pickled."""
    generator = np.random.default_rng(0)
    members = {
        name: {
            "batch_label": name,
            "labels": [0, 1, 2, 0, 1, 2][:images],
            "data": generator.integers(256, size=(images, 3072), dtype=np.uint8),
            "filenames": [f"{number}.png" for number in range(images)],
        }
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    }
    members["batches.meta"] = {
        "label_names": NAMES,
        "num_cases_per_batch": images,
        "num_vis": 3072,
    }
    return members


def pickled(members, protocol=2):
    return {
        f"{FOLDER}/{name}": pickle.dumps(member, protocol=protocol)
        for name, member in members.items()
    }


@pytest.fixture
def read(tmp_path):
    def run(files):
        path = tmp_path / "archive.tar.gz"
        path.write_bytes(pack_archive(files))
        return cifar_archive.read(path)

    return run


@pytest.fixture
def refused(read, tmp_path):
    """Read what has to be refused, and give the line without the archive's name."""

    def run(files):
        begin = time.perf_counter()
        with pytest.raises(UserError) as caught:
            read(files)
        assert time.perf_counter() - begin < 5
        line = str(caught.value)
        assert line.startswith(f"{tmp_path / 'archive.tar.gz'}: ")
        assert line.isprintable()
        assert len(line) < len(str(tmp_path)) + 250
        return line.partition(": ")[2]

    return run


@pytest.mark.parametrize("protocol", range(5))
def test_a_good_archive_is_read_whatever_pickled_it(read, protocol):
    members = contents()
    found = read({f"{FOLDER}/readme.html": b"", **pickled(members, protocol)})
    assert found.classes == tuple(NAMES)
    assert found.train.labels.tolist() == [0, 1, 2, 0, 1, 2] * 5
    expected = np.concatenate([members[f"data_batch_{number}"]["data"] for number in range(1, 6)])
    assert np.array_equal(found.train.images, expected.reshape(-1, 3, 32, 32))
    assert np.array_equal(found.test.images.reshape(6, 3072), members["test_batch"]["data"])


def test_the_order_of_members_has_no_say(read):
    files = pickled(contents())
    expected = read(files)
    found = read(dict(reversed(files.items())))
    assert np.array_equal(found.train.images, expected.train.images)


def test_another_number_of_images_is_said(read, caplog):
    with caplog.at_level(logging.INFO):
        read(pickled(contents()))
    assert "6 images in data_batch_1, 10000 in the original" in caplog.text


def change(**changes):
    return lambda batch: batch | changes


def drop(key):
    return lambda batch: {name: value for name, value in batch.items() if name != key}


def map_data(function):
    return lambda batch: batch | {"data": function(batch["data"])}


BATCHES = {
    "labels of half the images": (change(labels=[0, 1, 2]), "3 labels for 6 images"),
    "too many labels": (change(labels=[0] * 7), "7 labels for 6 images"),
    "names of some": (change(filenames=["a"]), "1 filenames for 6 images"),
    "a negative label": (change(labels=[0, 1, 2, 0, 1, -100]), "labels has -100, must be 0 to 2"),
    "a label too large": (change(labels=[0, 1, 2, 0, 1, 3]), "labels has 3, must be 0 to 2"),
    "an endless label": (change(labels=[10**5000] * 6), "labels has a int, must be 0 to 2"),
    "labels of numbers": (change(labels=[0.0] * 6), "labels must be a list of integers"),
    "labels of truths": (change(labels=[True] * 6), "labels must be a list of integers"),
    "labels of text": (change(labels="012012"), "labels must be a list of integers"),
    "no labels": (drop("labels"), "labels must be a list of integers"),
    "no images": (drop("data"), "data must be an array of bytes"),
    "images as text": (change(data="x" * 18432), "data must be an array of bytes"),
    "floats": (map_data(lambda d: d.astype("f4")), "data has elements of type f4, must be u1"),
    "signed bytes": (map_data(lambda d: d.astype("i1")), "data has elements of type i1, must be"),
    "objects": (map_data(lambda d: d.astype(object)), "data has elements of type O8, must be u1"),
    "another shape": (
        map_data(lambda d: d.reshape(6, 3, 1024)),
        "data has the shape (6, 3, 1024), must be (n, 3072)",
    ),
    "other images": (map_data(lambda d: d[:, :3000]), "data has the shape (6, 3000), must be"),
    "no image": (map_data(lambda d: d[:0]), "__builtin__.bytes has no place in it"),
    "fewer images": (
        lambda b: b | {"data": b["data"][:3], "labels": [0, 1, 2], "filenames": ["a"] * 3},
        "3 images, must be 6",
    ),
    "a list": (lambda batch: list(batch), "must be a mapping"),
    "a number": (lambda batch: 7, "must be a mapping"),
}


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_4", "test_batch"])
@pytest.mark.parametrize("case", BATCHES)
def test_batches_that_are_off(refused, case, name):
    made, line = BATCHES[case]
    members = contents()
    members[name] = made(members[name])
    assert refused(pickled(members)).startswith(f"{name}: {line}")


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["cat"] * 10, "label_names has cat twice"),
        (["cat", ""], "label_names must be a list of names"),
        (["cat", " "], "label_names must be a list of names"),
        (["cat", 7], "label_names must be a list of names"),
        (["cat"], "label_names must have at least 2 names, not 1"),
        ([], "label_names must have at least 2 names, not 0"),
        ("cat", "label_names must be a list of names"),
        (None, "label_names must be a list of names"),
    ],
)
def test_names_that_are_off(refused, names, line):
    members = contents()
    members["batches.meta"]["label_names"] = names
    assert refused(pickled(members)) == f"batches.meta: {line}"


@pytest.mark.parametrize("said", ["6", 0, -1, True, 6.0])
def test_numbers_of_images_that_are_off(refused, said):
    members = contents()
    members["batches.meta"]["num_cases_per_batch"] = said
    assert refused(pickled(members)).startswith(
        "batches.meta: num_cases_per_batch must be an integer"
    )


def test_where_the_archive_does_not_say_all_batches_are_alike(read, refused):
    members = contents()
    del members["batches.meta"]["num_cases_per_batch"]
    assert len(read(pickled(members)).test.labels) == 6
    members["test_batch"] = contents(5)["test_batch"]
    assert refused(pickled(members)) == "test_batch: 5 images, must be 6"


def test_members_are_there_once_and_at_their_place(refused):
    files = pickled(contents())
    test = files[f"{FOLDER}/test_batch"]
    assert refused([*files.items(), (f"{FOLDER}/test_batch", test)]) == (
        f"{FOLDER}/test_batch is there twice"
    )
    assert refused([*files.items(), (f"./{FOLDER}/test_batch", test)]) == (
        f"{FOLDER}/test_batch is there twice"
    )
    for path in ("test_batch", "x/test_batch", f"{FOLDER}/x/test_batch", f"{FOLDER}/data_batch_6"):
        assert refused(files | {path: test}) == f"{path} has no place in it"
    for path in files:
        others = {name: content for name, content in files.items() if name != path}
        assert refused(others) == f"{path} is missing"
    assert "no place in it" in refused(files | {"\x1b[2J" + "long" * 100: b""})


def test_a_link_is_no_member(tmp_path):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo(f"{FOLDER}/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="test_batch: no regular file"):
        cifar_archive.read(path)


def nested_tuples(depth):
    """A mapping whose key is a tuple in a tuple in a tuple; hashing it overflows the stack."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "can't be read as a pickle"),
        (b"no pickle", "can't be read as a pickle"),
        (pickle.dumps({"data": "x" * 100})[:-20], "can't be read as a pickle"),
        (nested_tuples(1_000_000), "more than 100 tuples in it"),
        (b"\x80\x02]" + b"]" * 100_000 + b"a" * 100_000 + b".", "must be a mapping"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "a memo larger than the file"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc.", "can't be read as a pickle"),
        (b"\x80\x02}cnumpy.distutils.conv_template\ndtype\n.", "numpy.distutils.conv_template.dty"),
        (b"\x80\x02cbuiltins\neval\n(U\x011tR.", "builtins.eval has no place in it"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "can't be read as a pickle"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "can't be read as a pickle"),
        (b"\x80\x02c_codecs\nencode\n(U\x01xU\x03zipetR.", "can't be read as a pickle"),
    ],
)
def test_members_that_are_no_pickle_of_data(refused, content, line):
    files = pickled(contents()) | {f"{FOLDER}/data_batch_2": content}
    assert refused(files).startswith(f"data_batch_2: {line}")


def test_bytes_are_never_taken_for_addresses(refused):
    """An array of objects whose type claims to be plain bytes, made of what lies in memory."""
    array = np.zeros((6, 3072), np.uint8)
    function, arguments, state = array.__reduce__()
    raw = b"A" * array.nbytes

    class Kind:
        def __reduce__(self):
            flags = (3, "|", None, None, None, -1, -1, 0)
            return np.dtype, ("O8", False, True), flags

    class Array:
        def __reduce__(self):
            return function, arguments, (1, (6, 384), Kind(), False, raw)

    members = contents()
    members["test_batch"]["data"] = Array()
    assert state[1] == (6, 3072)
    assert refused(pickled(members)).startswith("test_batch: data has elements of type O8, must be")


class Imports:
    def __reduce__(self):
        return (os.mkdir, ("nowhere",))


def test_nothing_is_imported(refused, monkeypatch, tmp_path):
    """A module whose import would do something, named as one of numpy's own."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    files = pickled(contents())
    for name in ("trap\ndtype", "numpy.trap\nndarray", "numpy.f2py.__main__\n_reconstruct"):
        files[f"{FOLDER}/test_batch"] = b"\x80\x02c" + name.encode() + b"\n."
        assert "has no place in it" in refused(files)
    files[f"{FOLDER}/test_batch"] = pickle.dumps(Imports())
    assert "mkdir has no place in it" in refused(files)
    assert "trap" not in sys.modules


@pytest.mark.parametrize("kind", ["cut", "garbage", "empty", "plain"])
def test_damaged_archives(tmp_path, kind):
    path = tmp_path / "archive.tar.gz"
    whole = pack_archive(pickled(contents()))
    plain = io.BytesIO()
    tarfile.open(fileobj=plain, mode="w").close()
    path.write_bytes(
        {"cut": whole[:-3000], "garbage": b"no archive", "empty": b"", "plain": plain.getvalue()}[
            kind
        ]
    )
    with pytest.raises(UserError, match=r"archive\.tar\.gz: can't be read as a \.tar\.gz \("):
        cifar_archive.read(path)


def test_a_member_larger_than_any_of_the_family(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_archive, "MAX_MEMBER", 1000)
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(pack_archive(pickled(contents())))
    with pytest.raises(UserError, match=r"data_batch_1: \d+ bytes, must be at most 1000"):
        cifar_archive.read(path)


# --- CIFAR-100 ------------------------------------------------------------------------------


def contents100():
    """A good archive of CIFAR-100's format: 12 training and 5 test images of 3 fine classes."""
    generator = np.random.default_rng(1)

    def member(images):
        return {
            "filenames": [f"{number}.png" for number in range(images)],
            "batch_label": "training batch 1 of 1",
            "fine_labels": [number % 3 for number in range(images)],
            "coarse_labels": [0] * images,
            "data": generator.integers(256, size=(images, 3072), dtype=np.uint8),
        }

    meta = {"fine_label_names": NAMES, "coarse_label_names": ["things"]}
    return {"train": member(12), "test": member(5), "meta": meta}


def pickled100(members):
    return {
        "cifar-100-python/file.txt~": b"",
        **{f"cifar-100-python/{name}": pickle.dumps(one, 2) for name, one in members.items()},
    }


@pytest.fixture
def cifar100(tmp_path):
    def run(files):
        path = tmp_path / CIFAR100.file
        path.write_bytes(pack_archive(files))
        return cifar_archive.read(path, CIFAR100)

    return run


def test_cifar_100_is_read_by_its_fine_classes(cifar100, caplog):
    members = contents100()
    with caplog.at_level(logging.INFO):
        found = cifar100(pickled100(members))
    assert found.classes == tuple(NAMES)
    assert found.train.labels.tolist() == members["train"]["fine_labels"]
    assert np.array_equal(found.train.images.reshape(12, 3072), members["train"]["data"])
    assert np.array_equal(found.test.images.reshape(5, 3072), members["test"]["data"])
    assert "12 images in train, 50000 in the original" in caplog.text


@pytest.mark.parametrize(
    ("member", "change", "line"),
    [
        ("test", {"fine_labels": [0, 1, 2, 0, 3]}, "fine_labels has 3, must be 0 to 2"),
        ("train", {"fine_labels": [0]}, "1 fine_labels for 12 images"),
        ("train", {"coarse_labels": [0]}, "1 coarse_labels for 12 images"),
        ("meta", {"fine_label_names": ["cat"]}, "fine_label_names must have at least 2 names"),
    ],
)
def test_cifar_100_is_checked_as_closely(cifar100, member, change, line):
    members = contents100()
    members[member] |= change
    with pytest.raises(UserError, match=f"{member}: {line}"):
        cifar100(pickled100(members))


def test_the_archives_of_the_family_are_told_apart(cifar100):
    with pytest.raises(UserError, match="has no place in it"):
        cifar100(pickled(contents()))


# --- Unpacked -------------------------------------------------------------------------------


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=lambda layout: layout.folder)
def unpacked(request, tmp_path, monkeypatch):
    """A data module whose root holds what a small archive was unpacked to, and nothing else."""
    packed = pickled(contents()) if request.param is CIFAR10 else pickled100(contents100())
    for name, content in packed.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    paths = {name: tmp_path / request.param.folder / name for name in request.param.digests}
    digests = {name: md5(path.read_bytes()).hexdigest() for name, path in paths.items()}
    data = cifar10(tmp_path, [], request.param.md5)
    monkeypatch.setattr(type(data), "layout", replace(request.param, digests=digests))
    data.num_classes = 3
    return data, paths


def test_what_was_unpacked_is_read_and_nothing_downloaded(unpacked, tmp_path):
    data, paths = unpacked
    before = sorted(tmp_path.rglob("*"))
    data.prepare_data()
    found = data.images
    assert sorted(tmp_path.rglob("*")) == before
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths.values()}
    (tmp_path / data.layout.file).write_bytes(pack_archive(files))
    assert cifar_archive.read(data.archive, data.layout).fingerprint == found.fingerprint


def test_what_was_unpacked_is_the_originals(unpacked):
    """All that differ are named, and nothing in them is unpickled."""
    data, paths = unpacked
    first, second, *_ = paths
    paths[first].write_bytes(pickle.dumps(Imports()))
    paths[second].unlink()
    with pytest.raises(UserError) as caught:
        _ = data.images
    told = str(caught.value)
    assert told.startswith(f"{paths[first].parent}: {first}: md5 is ")
    assert f"; {second}: No such file or directory; remove the folder" in told


def test_of_another_archive_nothing_is_known_once_it_is_unpacked(unpacked):
    data, _ = unpacked
    data.md5 = "0" * 32
    with pytest.raises(UserError, match="no mirror gave it"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("layout", "theirs"),
    [(CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)],
    ids=["10", "100"],
)
def test_checksums_are_torchvisions(layout, theirs):
    listed = [*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])]
    assert layout.digests == dict(map(tuple, listed))
    assert (layout.md5, layout.file, layout.folder) == (
        theirs.tgz_md5, theirs.filename, theirs.base_folder,
    )  # fmt: skip

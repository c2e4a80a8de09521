import hashlib
import os
import pickle
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import ODD_FILES, cifar10, pack_archive
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cifar_lightning.data.cifar_archive import CIFAR10
from cifar_lightning.data.digits import read_digits
from cifar_lightning.data.image_cache import ImageCache
from cifar_lightning.data.image_folder import read_image_folder
from cifar_lightning.errors import UserError

ARCHIVE = CIFAR10.file
FILES = ("train", "test")  # the tensors of a cache
CLASSES = ["airplane", "bird", "cat"]


@pytest.fixture(scope="module")
def archive():
    """A small archive in CIFAR-10's format, as bytes: 5 x 6 training and 6 test images."""
    generator = np.random.default_rng(0)

    def batch():
        pixels = generator.integers(256, size=(6, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [0, 1, 2, 0, 1, 2]}

    files = {f"data_batch_{number}": batch() for number in range(1, 6)}
    files |= {"test_batch": batch(), "batches.meta": {"label_names": CLASSES}}
    pickled = {
        f"cifar-10-batches-py/{name}": pickle.dumps(content, protocol=2)
        for name, content in files.items()
    }
    return pack_archive(pickled), files


def md5(content):
    return hashlib.md5(content).hexdigest()


class Mirror:
    """An HTTP server on loopback that misbehaves as told by the path."""

    def __init__(self, content):
        mirror = self
        self.requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                mirror.requests.append((self.path, wanted))
                start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
                if self.path == "/norange":
                    start = 0
                if start >= len(content):
                    self.send_error(416)
                    return
                body = content[start:]
                if self.path == "/wrong":
                    body = b"x" * len(body)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server.server_port}/{path}"


@pytest.fixture
def mirror(archive):
    served = Mirror(archive[0])
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def dead():
    """An address that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/{ARCHIVE}"


def test_lightning_downloads_once_and_reads_in_each_process(tmp_path, archive, mirror):
    data = cifar10(tmp_path, [mirror.url("good")], md5(archive[0]))
    with pytest.raises(UserError, match=f"{ARCHIVE}: No such file"):
        data.setup("fit")
    data.prepare_data()
    data.num_classes = 3
    data.setup("fit")
    assert len(data.images.train.labels) == 30
    data.prepare_data()
    assert len(mirror.requests) == 1


def read(root, archive, *mirrors):
    data = cifar10(root, mirrors, md5(archive[0]))
    data.prepare_data()
    return data.read()


def test_the_archive_is_read_whole(tmp_path, archive):
    (tmp_path / ARCHIVE).write_bytes(archive[0])
    data = read(tmp_path, archive)
    assert data.train.images.shape == (30, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == tuple(CLASSES)
    stored = archive[1]["data_batch_2"]["data"][1].reshape(3, 32, 32)
    assert np.array_equal(data.train.images[7].numpy(), stored)


def test_downloads_from_the_first_mirror_that_answers(tmp_path, archive, mirror, dead):
    data = read(
        tmp_path / "new",
        archive,
        dead,
        mirror.url("wrong"),
        mirror.url("good"),
        mirror.url("never"),
    )
    assert len(data.train.labels) == 30
    assert [path for path, _ in mirror.requests] == ["/wrong", "/good"]
    assert (tmp_path / "new" / ARCHIVE).read_bytes() == archive[0]
    assert not list((tmp_path / "new").glob("*.part"))


def test_a_cut_download_is_continued(tmp_path, archive, mirror):
    with pytest.raises(UserError, match="cut off after"):
        read(tmp_path, archive, mirror.url("cut"))
    half = len(archive[0]) // 2
    assert (tmp_path / f"{ARCHIVE}.part").stat().st_size == half
    read(tmp_path, archive, mirror.url("good"))
    assert mirror.requests[-1] == ("/good", f"bytes={half}-")


def test_a_mirror_that_can_not_continue_starts_anew(tmp_path, archive, mirror):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(archive[0][:100])
    assert len(read(tmp_path, archive, mirror.url("norange")).train.labels) == 30


def test_a_part_that_does_not_fit_is_dropped(tmp_path, archive, mirror):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(b"garbage")
    assert len(read(tmp_path, archive, mirror.url("good")).train.labels) == 30
    assert [wanted for _, wanted in mirror.requests] == ["bytes=7-", None]


def test_a_whole_part_is_taken(tmp_path, archive, mirror):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(archive[0])
    assert len(read(tmp_path, archive, mirror.url("good")).train.labels) == 30


def test_without_network_the_message_says_what_to_do(tmp_path, archive, dead):
    with pytest.raises(UserError) as caught:
        read(tmp_path, archive, dead)
    message = str(caught.value)
    assert dead in message
    assert "refused" in message
    assert "by hand" in message
    assert "data=digits" in message
    assert "\n" not in message


def test_nothing_is_left_where_nothing_was(tmp_path, archive, dead):
    with pytest.raises(UserError):
        read(tmp_path / "new", archive, dead)
    assert not (tmp_path / "new").exists()


def test_a_root_that_is_a_file(tmp_path, archive, dead):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.root=.*file"):
        read(tmp_path / "file", archive, dead)


def test_a_wrong_checksum_names_both(tmp_path, archive):
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    with pytest.raises(
        UserError, match=f"md5 is {md5(b'something else')}, expected {md5(archive[0])}"
    ):
        read(tmp_path, archive)


def test_an_archive_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / ARCHIVE)
    with pytest.raises(UserError, match=f"{ARCHIVE}: not a regular file"):
        cifar10(tmp_path, [], "").read()


# --- Image folders --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two classes of PNG and JPEG."""
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            Image.new("RGB", (32, 32), (50 * number, 20, 30)).save(place / "a.png")
            Image.new("L", (32, 32), 100).save(place / "b.JPG")
    return tmp_path / "images"


def read_folder(folder):
    return read_image_folder(str(folder), str(folder.parent / "cache"))


def test_real_images_are_pillows_pixels(image_folder, tmp_path):
    data = read_image_folder(str(image_folder), str(tmp_path))
    assert data.train.images.shape == (300, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [10] * 10
    name = data.classes[4]
    first = sorted((image_folder / "train" / name).iterdir())[0]
    expected = np.asarray(Image.open(first).convert("RGB")).transpose(2, 0, 1)
    index = int(torch.nonzero(data.train.labels == 4)[0])
    assert np.array_equal(data.train.images[index].numpy(), expected)


def test_png_and_jpeg_of_any_mode(folder):
    data = read_folder(folder)
    assert data.train.images[2, :, 0, 0].tolist() == [50, 20, 30]
    assert data.train.labels.tolist() == [0, 0, 1, 1]


def test_decoded_once_and_again_after_a_change(folder):
    first = read_folder(folder)
    (cache,) = (folder.parent / "cache").iterdir()
    stamp = cache.stat().st_mtime_ns
    assert read_folder(folder).fingerprint == first.fingerprint
    assert cache.stat().st_mtime_ns == stamp
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "train" / "cat" / "a.png")
    assert read_folder(folder).fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_anew(folder):
    first = read_folder(folder)
    (cache,) = (folder.parent / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:50])
    assert read_folder(folder).fingerprint == first.fingerprint


def kept(cache):
    with safe_open(cache, "pt") as stored:
        return stored.metadata(), {name: stored.get_tensor(name).tolist() for name in FILES}


def rewrite(cache, tensors=None, **about):
    """Change what a cache file holds or says, and leave the rest."""
    said, _ = kept(cache)
    save_file(load_file(cache) | (tensors or {}), cache, metadata=said | about)


def test_folders_alike_but_for_their_pixels_share_nothing(folder, tmp_path):
    """Equal names, sizes and times, as unpacked archives have: what lies there is what is read."""

    def make(root, shade):
        for path in folder.rglob("*.*"):
            target = root / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((32, 32, 3), shade, np.uint8)
            Image.fromarray(pixels).save(target, format="BMP")  # all of one size
            os.utime(target, (0, 0))

    def shades(root):
        data = read_image_folder(str(root), str(tmp_path / "shared"))
        return data.train.images.unique().tolist(), data.fingerprint

    first, second = tmp_path / "A", tmp_path / "B"
    make(first, 10)
    make(second, 20)
    of_first, of_second = shades(first), shades(second)
    assert (of_first[0], of_second[0]) == ([10], [20])
    assert of_first[1] != of_second[1]
    assert (shades(first), shades(second)) == (of_first, of_second)
    shutil.rmtree(first)
    second.rename(first)  # other files at the same place
    assert shades(first) == of_second
    victim = first / "train" / "cat" / "a.png"
    with victim.open("r+b") as stream:  # the same file with other content
        stream.seek(100)
        stream.write(b"\x07")
    os.utime(victim, (0, 0))
    assert 7 in shades(first)[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.write_bytes(b""),
        lambda cache: cache.write_bytes(cache.read_bytes()[:-100]),
        lambda cache: rewrite(cache, {"train": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}),
        lambda cache: rewrite(cache, {"train": torch.zeros(4, 3, 32, 32)}),
        lambda cache: rewrite(cache, {"train": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}),
        lambda cache: rewrite(cache, root="/elsewhere"),
        lambda cache: rewrite(cache, content="0"),
        lambda cache: rewrite(cache, fingerprint="0"),
        lambda cache: save_file({"x": torch.zeros(1)}, cache),
        lambda cache: (cache.unlink(), os.mkfifo(cache)),
    ],
)
def test_a_cache_that_does_not_fit_is_made_anew(folder, change):
    first = read_folder(folder)
    (cache,) = (folder.parent / "cache").iterdir()
    whole = kept(cache)
    change(cache)
    assert read_folder(folder).fingerprint == first.fingerprint
    assert kept(cache) == whole


def test_a_cache_says_what_was_decoded_even_if_it_changes_meanwhile(folder, monkeypatch):
    """What lies there after decoding is not what the cache was made of, so it is no use."""
    path, later = folder / "train" / "cat" / "a.png", folder / "train" / "dog" / "a.png"
    decode = ImageCache.decode

    def changed_meanwhile(cache):
        decoded = decode(cache)
        shutil.copy(later, path)
        return decoded

    monkeypatch.setattr(ImageCache, "decode", changed_meanwhile)
    assert read_folder(folder).train.images[0, :, 0, 0].tolist() == [0, 20, 30]
    monkeypatch.undo()
    assert read_folder(folder).train.images[0, :, 0, 0].tolist() == [50, 20, 30]


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling", "device", "bomb", "script"])
@pytest.mark.parametrize("cached", [False, True])
def test_what_is_no_image_file_is_named(folder, kind, cached):
    """Never a hang, and no decoding of what is too large."""
    if cached:
        read_folder(folder)
    path = folder / "train" / "cat" / "a.png"
    path.unlink()
    ODD_FILES[kind](path)
    with pytest.raises(UserError) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(f"{path}: this image ")
    assert "\n" not in str(caught.value)


def refused(folder):
    with pytest.raises(UserError) as caught:
        read_folder(folder)
    assert not (folder.parent / "cache").exists()
    return str(caught.value)


def test_folders_that_are_missing(folder, tmp_path):
    assert f"there is no folder {tmp_path / 'nowhere' / 'train'}" in refused(tmp_path / "nowhere")
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
    assert refused(folder) == f"{folder / 'test' / 'dog'}: no image in it"
    (folder / "test" / "dog").rmdir()
    assert f"class 'dog' is missing from {folder / 'test'}" in refused(folder)


def test_images_that_can_not_be_used(folder):
    path = folder / "test" / "dog" / "a.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refused(folder).startswith(f"{path}: this image can't be read")
    Image.new("RGB", (31, 32)).save(path)
    assert refused(folder) == (
        f"{path}: this image is 31x32, must be 32x32; data.resize=true takes images of any size; "
        "data.skip_bad=true leaves out what is no use"
    )
    path.write_bytes(b"")
    assert refused(folder).startswith(f"{path}: this image can't be read")


def test_a_truncated_jpeg(folder):
    path = folder / "train" / "cat" / "b.JPG"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(folder).startswith(f"{path}: this image can't be read")


def test_digits():
    data = read_digits()
    assert len(data.train.labels) + len(data.test.labels) == 1797
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.train.images.max() == 255
    assert read_digits().fingerprint == data.fingerprint
    shares = (
        data.test.labels.bincount() / torch.cat([data.train.labels, data.test.labels]).bincount()
    )
    assert torch.all((shares - 0.2).abs() < 0.01)

"""One decoder: a network is trained on what it is shown later, whatever the file."""

import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from cifar_lightning.data import image_files
from cifar_lightning.data.image_files import decode_files, read_image
from cifar_lightning.data.image_folder import read_image_folder

RANDOM = np.random.default_rng(0)
RAMP = np.arange(32 * 32).reshape(32, 32)
COLOURS = RANDOM.integers(256, size=(32, 32, 3), dtype=np.uint8)
HIDDEN = np.dstack([COLOURS, np.where(RAMP % 2, 255, 0)[..., None].astype(np.uint8)])


def greys(white, kind):
    return Image.fromarray((RAMP / RAMP.max() * white).astype(kind))


def palette(**more):
    image = Image.fromarray((RAMP % 4).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return image, more


def with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(COLOURS), {"exif": exif}


BROKEN_EXIF = {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"}
KINDS = {
    "grey of 16 bits.png": (greys(65535, np.uint16), {}),
    "grey of 16 bits.tif": (greys(65535, np.uint16), {}),
    "grey of 16 bits, the other way round.tif": (greys(65535, ">u2"), {}),
    "grey of 16 bits.pgm": (greys(65535, np.uint16), {}),
    "grey.png": (greys(255, np.uint8), {}),
    "numbers from 0 to 1.tif": (greys(1, np.float32), {}),
    "black and white.png": (greys(255, np.uint8).convert("1"), {}),
    "grey with alpha.png": (Image.fromarray(HIDDEN).convert("LA"), {}),
    "hidden colours.png": (Image.fromarray(HIDDEN), {}),
    "hidden colours.webp": (Image.fromarray(HIDDEN), {"lossless": True, "exact": True}),
    "palette.png": palette(),
    "palette with a clear colour.png": palette(transparency=2),
    "palette with alpha.png": palette(transparency=bytes([0, 99, 255, 255])),
    "palette with a clear colour.gif": palette(transparency=2),
    "animated.gif": (Image.fromarray(COLOURS), {
        "save_all": True, "append_images": [Image.new("RGB", (32, 32), "red")],
    }),
    "animated.webp": (Image.fromarray(COLOURS), {
        "save_all": True, "append_images": [Image.new("RGB", (32, 32), "red")],
    }),
    "ink.jpg": (Image.fromarray(COLOURS).convert("CMYK"), {}),
    "ink.tif": (Image.fromarray(COLOURS).convert("CMYK"), {}),
    "grey.jpg": (greys(255, np.uint8), {}),
    "plain.bmp": (Image.fromarray(COLOURS), {}),
    "plain.JPEG": (Image.fromarray(COLOURS), {}),
    "broken exif.jpg": (Image.fromarray(COLOURS), BROKEN_EXIF),
    "broken exif.png": (Image.fromarray(COLOURS), BROKEN_EXIF),
    **{f"turned {n}.jpg": with_exif(n) for n in range(1, 9)},
    "turned 6.png": with_exif(6),
    "turned by 99.png": with_exif(99),
}  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder of images of each kind, in one class."""
    root = tmp_path_factory.mktemp("kinds")
    for split in ("train", "test"):
        for name, (image, more) in KINDS.items():
            path = root / split / "one" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **more)
    return root


def test_training_and_prediction_see_the_same(kinds, tmp_path):
    trained = read_image_folder(str(kinds), str(tmp_path)).train.images
    for name, pixels in zip(sorted(KINDS), trained, strict=True):
        assert torch.equal(read_image(kinds / "train" / "one" / name), pixels), name
    shown = decode_files([kinds / "train" / "one" / name for name in sorted(KINDS)], resize=True)
    assert np.array_equal(shown.images, trained)


def shown(kinds, name):
    return read_image(kinds / "train" / "one" / name).numpy().transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("name", [name for name in KINDS if "16 bits" in name or "numbers" in name])
def test_greys_are_scaled_not_clipped(kinds, name):
    assert np.abs(shown(kinds, name)[..., 0] - shown(kinds, "grey.png")[..., 0]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_clear_is_white(kinds, suffix):
    expected = np.where(RAMP[..., None] % 2, COLOURS, 255)
    assert np.array_equal(shown(kinds, f"hidden colours.{suffix}"), expected)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_clear_colour_of_a_palette_is_white(kinds, suffix):
    seen = shown(kinds, f"palette with a clear colour.{suffix}")
    assert np.all(seen[RAMP % 4 == 2] == 255)
    assert np.all(seen[RAMP % 4 == 0] == [255, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_in_any_way(kinds, orientation):
    with Image.open(kinds / "train" / "one" / f"turned {orientation}.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(shown(kinds, f"turned {orientation}.jpg"), expected)


def test_of_an_animation_the_first_frame(kinds):
    for name in ("animated.gif", "animated.webp"):
        assert shown(kinds, name).std() > 30  # the second one is all red


def test_other_sizes_are_cut_upright(tmp_path):
    photo = Image.new("RGB", (96, 64), "red")
    photo.paste("blue", (0, 0, 96, 32))
    photo.save(tmp_path / "a.jpg", exif=with_exif(6)[1]["exif"], quality=95)
    pixels = read_image(tmp_path / "a.jpg").float()
    assert pixels[2, :, 20:].min() > 200  # blue is at the right after a quarter turn
    assert pixels[0, :, :12].min() > 200


def tiff(array, **tags):
    content = io.BytesIO()
    info = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray(array).save(content, "TIFF", tiffinfo=info, **tags)
    return content.getvalue()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((32, 32), 255, np.int32), "32-bit greys of no known range, must have 8 or 16"),
        (np.full((32, 32), 255, np.float32), "greys from 255 to 255, must be 0 to 1"),
        (np.full((32, 32), -0.5, np.float32), "greys from -0.5 to -0.5, must be 0 to 1"),
        (np.full((32, 32), np.nan, np.float32), "greys from nan to nan, must be 0 to 1"),
    ],
)
def test_greys_of_no_known_range_are_refused(tmp_path, array, reason):
    (tmp_path / "a.tif").write_bytes(tiff(array))
    with pytest.raises(ValueError, match=f"a.tif: this image has {reason}"):
        read_image(tmp_path / "a.tif")


def test_pillow_has_nothing_to_say(kinds):
    """Not of broken EXIF; and the caller's own filters stay."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        decode_files([kinds / "train" / "one" / name for name in KINDS], resize=True)
        assert warnings.filters == before
    assert not caught


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "LARGE", 100)
    monkeypatch.setattr(image_files, "usable_cores", lambda: 8)
    inside, most = [], []

    def middle(image):
        inside.append(1)
        time.sleep(0.002)
        most.append(len(inside))
        inside.pop()
        return image

    monkeypatch.setattr(image_files, "_middle", middle)
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        Image.new("RGB", (40, 40)).save(path)
    assert not decode_files(paths, resize=True).errors
    assert max(most) == 1


def test_an_interruption_waits_for_no_more_than_what_is_being_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    begun = []

    def interrupted(self, *arguments):
        for number, _ in enumerate(mapped(self, *arguments)):
            begun.append(number)
            if number == 10:
                raise KeyboardInterrupt
            yield

    mapped = ThreadPoolExecutor.map
    monkeypatch.setattr(ThreadPoolExecutor, "map", interrupted)
    decoded = []
    monkeypatch.setattr(image_files, "to_input", lambda *_: decoded.append(1) or 0)
    with pytest.raises(KeyboardInterrupt):
        decode_files([tmp_path / "a.png"] * 5_000, resize=False)
    assert len(decoded) < 4_000

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.predictions import Predictions

TRUE = np.array([0, 1, 2, 2, 1], np.uint8)
PREDICTED = np.array([0, 2, 2, 1, 1], np.uint8)


def test_what_was_written_is_read(tmp_path):
    Predictions(PREDICTED, TRUE).save(tmp_path, "fp16+compile")
    found = Predictions.read(tmp_path, "fp16+compile")
    assert (found.predicted == PREDICTED).all()
    assert found.right.tolist() == [True, False, True, False, True]
    assert found.confusion(3) == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert np.array(found.confusion(4)).sum() == 5
    with pytest.raises(ValueError, match="not of 2 classes"):
        found.confusion(2)
    with pytest.raises(FileNotFoundError):
        Predictions.read(tmp_path, "fp32")


def packed(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def bomb():
    """Make an array whose header says that it has 10^12 numbers."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117)
    array = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for name in ("predicted", "true"):
            target.writestr(f"{name}.npy", array)
    return stream.getvalue()


def large():
    """Make a small file that unpacks to 100 MB."""
    return packed(predicted=np.zeros(10**8, np.uint8), true=TRUE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        packed(predicted=PREDICTED),
        packed(predicted=PREDICTED, true=TRUE[1:]),
        packed(predicted=PREDICTED.astype(float), true=TRUE),
        packed(predicted=PREDICTED[None], true=TRUE[None]),
        packed(predicted=np.array([{"a": 1}], object), true=np.array([1], np.uint8)),
        packed(predicted=PREDICTED, true=TRUE)[:-30],
        bomb(),
        large(),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, content):
    path = RunFolder(tmp_path).prediction("fp32")
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        Predictions.read(tmp_path, "fp32")
    assert "\n" not in str(caught.value)


@given(st.data())
def test_a_damaged_file_never_does_more_than_fail(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    content = bytearray(packed(predicted=PREDICTED, true=TRUE))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = RunFolder(folder).prediction("fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        found = Predictions.read(folder, "fp32")
    except ValueError:
        return
    assert found.predicted.shape == found.true.shape

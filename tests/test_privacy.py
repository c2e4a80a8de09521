"""What is passed on tells nothing of the machine that it was made on."""

import getpass
import gzip
import lzma
import re
import shutil
import socket
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, to_export
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lightning.cli import endings
from cifar_lightning.cli import report as report_command
from cifar_lightning.comparison import tensorboard
from cifar_lightning.deploy.wanted import FORMATS
from cifar_lightning.runs.find import find_run
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.system import event_files
from cifar_lightning.system.escaping import without_secrets

# What a run keeps for its owner; docs/reliability.md says so.
RECORDED = {"run.json", "train.log", "output.log", ".hydra", ".lock"}


@pytest.fixture
def private(finished_run, tmp_path):
    """Texts that must not be passed on."""
    home = str(Path.home())
    words = {str(finished_run), str(tmp_path), str(ROOT), tempfile.gettempdir(), home}
    words |= {socket.gethostname(), f"/{getpass.getuser()}/"}
    return {word.encode() for word in words if len(word) > 3}


def contents(path):
    """Give a file's bytes, and those that are packed into it."""
    raw = path.read_bytes()
    yield path.name, raw
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path.name}/{name}", archive.read(name)
    if path.suffix == ".png":  # compressed texts
        for chunk in re.findall(rb"(?:zTXt|iTXt)[^\0]*\0+(.*?)(?=....IDAT)", raw, re.DOTALL):
            for unpack in (zlib.decompress, gzip.decompress, lzma.decompress):
                try:
                    yield f"{path.name} text", unpack(chunk)
                except Exception:
                    continue


def told(folder, private):
    """Name each private text in each file below a folder, and in the files' names."""
    for path in sorted(folder.rglob("*")):
        for word in private:
            if word in path.name.encode():
                yield f"{path.name}: its name has {word!r}"
        if path.is_file():
            for name, content in contents(path):
                for word in private:
                    place = content.find(word)
                    if place >= 0:
                        yield f"{name}: {content[max(place - 40, 0) : place + 80]!r}"


def test_the_search_finds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", "x" * 1000 + "/somebody/here")
    (tmp_path / "named-somewhere").touch()
    assert len(list(told(tmp_path, {b"/somebody/", b"somewhere"}))) == 2


@pytest.mark.parametrize("name", to_export(FORMATS))
def test_exports_tell_nothing(exported, private, name):
    to = exported(name)
    pair = name.startswith(("ncnn", "openvino"))
    assert len(list(to.iterdir())) == (3 if name == "safetensors" else 8 if pair else 6)
    assert list(told(to, private)) == []
    for path in to.iterdir():
        for part, content in contents(path):
            assert b"site-packages" not in content, part
            assert b'.py"' not in content, part


def test_onnx_has_no_metadata_anywhere(exported):
    onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    model = onnx.load(exported("onnx") / "model.onnx")

    def texts(message, path):
        for field, value in message.ListFields():
            parts = value if field.is_repeated else [value]
            for part in parts:
                if field.message_type:
                    yield from texts(part, f"{path}.{field.name}")
                elif isinstance(part, str):
                    yield f"{path}.{field.name}", part

    found = list(texts(model, ""))
    assert any(path.endswith(".node.op_type") for path, _ in found)
    assert not [entry for entry in found if "/" in entry[1] or "File " in entry[1]]
    assert not [path for path, _ in found if path.endswith(".doc_string")]


def test_a_runs_results_and_the_report_tell_nothing(call, finished_run, tmp_path, private):
    outputs = shutil.copytree(finished_run, tmp_path / "outputs")
    folder = find_run(outputs, "tiny")
    for path in (folder / "measurements").iterdir():  # or there are no plots
        replace(Measurement.read(path), status="ok", reason=None).save(folder)
    ended = call(report_command.main, f"outputs={outputs}")
    assert ended.status == 0, ended.err
    tensorboard.draw(folder)
    for path in outputs.rglob("*"):
        if path.name in RECORDED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    suffixes = {path.suffix for path in outputs.rglob("*") if path.is_file()}
    assert {".safetensors", ".json", ".csv", ".md", ".html", ".png", ".svg"} <= suffixes
    assert list(outputs.rglob("*tfevents*.results"))
    assert list(told(outputs, private)) == []


def test_event_files_are_read_in_order_and_beyond_a_start_dropped(tmp_path):
    with event_files.Writer(str(tmp_path)) as writer:
        for step in range(5):
            writer.add_scalar("curve", step, step)
    with event_files.Writer(str(tmp_path), purge_step=3) as writer:
        writer.add_scalar("curve", 30, 3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.value for point in events.Scalars("curve")] == [0, 1, 2, 30]
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d+\.\d{6}", name) for name in names)


def test_a_writer_that_was_closed_goes_on(tmp_path):
    writer = event_files.Writer(str(tmp_path))
    writer.add_scalar("curve", 1, 1)
    writer.close()
    writer.add_scalar("curve", 2, 2)
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.value for point in events.Scalars("curve")] == [1, 2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/x.tar.gz?key=SECRET (refused)", "https://host/x.tar.gz (refused)"),
        ("http://me:SECRET@host:80/x", "http://host:80/x"),
        ("http://SECRET@host", "http://host"),
        ("http://host/x#SECRET", "http://host/x"),
        ("a=[http://one/?SECRET,http://me:SECRET@two/]", "a=[http://one/"),
        ("a=[http://one/,http://me:SECRET@two/]", "a=[http://one/,http://two/]"),
        ("HTTPS://me:SECRET@host/", "HTTPS://host/"),
        ("s3+x://me:SECRET@host/", "s3+x://host/"),
        ("postgresql+x://me:SECRET/SECRET@host:80/x", "postgresql+x://host:80/x"),
        ("no address: a@b?c", "no address: a@b?c"),
    ],
)
def test_addresses_are_shown_without_what_may_be_a_password(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/x?token=SECRET",
        "http://me:SECRET@127.0.0.1:9/x",
        "http://SECRET@127.0.0.1:9/x",
        "http://127.0.0.1:9/x y?token=SECRET",
        "http://[::1/x?token=SECRET",
        "nothing://me:SECRET@host/x",
    ],
)
def test_a_mirrors_token_is_not_printed(command, outputs, tmp_path, url):
    ended = command(f"data.root={tmp_path / 'data'}", f"data.mirrors=['{url}']")
    assert ended.status == 2
    assert "no mirror gave it: " in ended.err
    assert "SECRET" not in ended.err + ended.out
    assert len(ended.err.splitlines()) == 1


def test_the_log_of_a_fault_has_no_password(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["tune.py", "storage=a+b://me:SECRET@host/x"])
    endings.to_ending(KeyError("a://me:SECRET@other"), started=True)
    (path,) = tmp_path.glob("cifar-lightning-error-*.log")
    text = path.read_text()
    assert "SECRET" not in text
    assert "host/x" in text
    assert "a://other" in text

"""Ctrl-C and its like: an end at once where nothing is lost, else where the work looks for it."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TINY_MOBILENET
from PIL import Image

from cifar_lightning.cli import measure
from cifar_lightning.errors import Interrupted
from cifar_lightning.runs.run import Run
from cifar_lightning.runs.timed_before import CACHE
from cifar_lightning.system import signals
from cifar_lightning.system.locks import alone
from cifar_lightning.training.module import ImageClassifier
from cifar_lightning.variants import registry


@pytest.fixture
def handlers():
    with signals.handled():
        yield


def press(number=signal.SIGINT):
    signal.raise_signal(number)


def test_a_signal_ends_at_once_or_waits_to_be_looked_for(handlers):
    with signals.deferred():
        press()
        with pytest.raises(Interrupted, match="interrupted"):
            signals.check()
    with pytest.raises(Interrupted), signals.deferred(), signals.immediate():
        pytest.fail("one that has come ends it before")


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_long_work_inside_what_defers_ends_at_once(number, handlers):
    with signals.deferred():
        with pytest.raises(Interrupted) as ended, signals.immediate():
            press(number)
        assert ended.value.exit_status == 128 + number
        assert signals._deferring  # again


def test_it_ends_whatever_a_library_makes_of_the_signal(handlers):
    def another_error():
        try:
            press()
        except KeyboardInterrupt:
            raise RuntimeError("a compiler failed") from None

    def nothing():
        with suppress(BaseException):
            press()

    for library in (another_error, nothing):
        signals._received = None
        with signals.deferred(), pytest.raises(Interrupted), signals.immediate():
            library()


def test_other_errors_stay_what_they_are(handlers):
    with signals.deferred(), pytest.raises(KeyError), signals.immediate():
        raise KeyError


def test_what_is_inside_can_defer_again(handlers):
    steps = []

    def work():
        with signals.deferred():
            press()
            steps.append("to its end")

    with signals.deferred(), pytest.raises(Interrupted), signals.immediate():
        work()
    assert steps == ["to its end"]


def test_preparing_a_network_ends_at_once(finished_run, call, monkeypatch):
    """Exporting and compiling take up to a minute; nothing is measured yet."""
    cache = finished_run / CACHE
    before = {*finished_run.rglob("*")} | {cache}
    monkeypatch.setattr(registry, "prepare", lambda *_, **__: press())
    ended = call(
        measure.main, f"outputs={finished_run}", "run=tiny", "protocol=quick", "device=cpu"
    )
    assert (ended.status, ended.err) == (130, "error: interrupted\n")
    assert {*finished_run.rglob("*")} | {cache} == before


@pytest.mark.parametrize(("compiled", "batches"), [("true", 0), ("false", 1)])
def test_the_first_step_of_a_compiled_training_ends_at_once(
    compiled, batches, command, outputs, monkeypatch
):
    done = []

    def step(*_):
        press()  # while it is compiled
        done.append("a batch")
        return torch.zeros(1, requires_grad=True), None

    monkeypatch.setattr(ImageClassifier, "_step", step)
    ended = command(*TINY, f"compile={compiled}", "benchmark.variants=[]")
    assert ended.status == 130, ended.err
    assert len(done) == batches
    (folder,) = (outputs / "runs").iterdir()
    assert Run.load(folder).status == "interrupted"


def images(folder):
    """Link so many images that decoding them takes seconds."""
    (folder / "one").mkdir(parents=True)
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "one" / f"{number}.png")
    for split, count in (("train", 30_000), ("test", 30)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                os.link(
                    folder / "one" / f"{number % 30}.png", folder / split / name / f"{number}.png"
                )
    return (
        "data=imagefolder", f"data.root={folder}", "data.name=mine", "data.num_classes=2",
        "model.output_stride=32", "benchmark.variants=[]", "trainer.accelerator=cpu",
    )  # fmt: skip


MEASURE = ("-m", "cifar_lightning.measure", "run=tiny", "protocol=quick")
LONG_WORK = {
    # The command, what it says before, and seconds after that.
    "decoding images": (("train.py",), "decode train", 0.5),
    "checking a sweep": (("train.py", *TINY_MOBILENET, "seed=range(0,60)", "-m"), "", 3.0),
    "compiling": ((*MEASURE, "variants=[compile]"), "3 references", 3.0),
    "exporting to ONNX": ((*MEASURE, "variants=[onnx]"), "3 references", 1.0),
    "waiting for a lock": (MEASURE, "waiting for another measurement", 0.5),
    "compiling a training": (("train.py", *TINY_MOBILENET, "compile=true"), "M MACs", 2.0),
    "exporting": (("-m", "cifar_lightning.export", "run=tiny", "format=onnx"), "", 1.0),
    "drawing a report": (
        (
            "-m",
            "cifar_lightning.report",
        ),
        "",
        1.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", LONG_WORK)
def test_long_work_of_a_real_process_ends_at_once(
    what, number, finished_run, outputs, tmp_path, fork
):
    arguments, says, seconds = LONG_WORK[what]
    if what == "decoding images":
        arguments += images(tmp_path / "images")
    shutil.copytree(finished_run, outputs)
    before = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    lock = Path(tempfile.gettempdir(), "cifar-lightning-cpu.lock")
    with alone(lock, "held") if "lock" in what else nullcontext():
        process = subprocess.Popen(
            [fork, *arguments, f"outputs={outputs}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        said = b""
        while says.encode() not in said:
            more = os.read(process.stdout.fileno(), 1000)
            assert more, said
            said += more
        time.sleep(seconds)
        assert process.poll() is None, "it has ended already"
        begin = time.perf_counter()
        process.send_signal(number)
        said += process.communicate(timeout=60)[0]
        took = time.perf_counter() - begin
    assert process.wait() == 128 + number, said
    assert b"Traceback" not in said
    assert said.splitlines()[-1].startswith(b"error: ")
    assert took < 3  # 1 s on a machine that does nothing else
    kept = {path: path.read_bytes() for path in before if path.is_file()}
    assert {path for path in kept if kept[path] != before[path]} == set()
    assert kept.keys() == before.keys()
    assert not list(outputs.rglob(".cifar-lightning-*"))

"""Real small data and ways to run the commands.

What only some tests need is imported by their fixtures: the GPU tests run without Hydra, too.
"""

from __future__ import annotations

import csv
import gc
import gzip
import importlib.util
import io
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from multiprocessing import resource_tracker
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from composing import composed_once
from forks import Lighter, forks
from PIL import Image

from cifar_lightning.system.locks import locked

sys.meta_path.insert(0, Lighter)

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from cifar_lightning.data.cifar10 import CIFAR10DataModule
    from cifar_lightning.runs.results import Row

# The networks of the tests are so small that a second thread slows them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `make test` hands its own level and flags on; a `make` of a test begins anew.
for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):
    os.environ.pop(name, None)
# Under nohup a closed window is ignored, by child processes, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ROOT = Path(__file__).resolve().parent.parent
# All of CIFAR-10 as an archive of class folders, where it lies beside the checkout.
CIFAR10_COPY = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"

# Of files that are another user's.
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")

# The smallest real training: digits, and a network that takes a quarter of the time per step and a
# tenth per call of what a narrow MobileNetV3 takes.
DIGITS = ("data=digits", "augment=crop", "benchmark=quick", "trainer.accelerator=cpu")
TINY = (
    *DIGITS, "model=cifarnet", "model.stem_stride=2", "model.channels=[8,16]",
    "model.downsample=stride",
)  # fmt: skip
# The default network, narrow: with dropout, inverted residuals and squeeze-and-excitation.
TINY_MOBILENET = (*DIGITS, "model.output_stride=32", "model.width=0.35")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def _bomb(path: Path) -> None:
    """Write a PNG of a few bytes that says it has 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + checksum
    path.write_bytes(content)


# What can lie where an image is expected, and how to make it.
ODD_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "dangling": lambda path: path.symlink_to(path.with_name("nowhere")),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "bomb": _bomb,
    "script": lambda path: path.write_text(  # a program that Ghostscript would run
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    ),
}


def pack_archive(files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    """Pack files, by their path, into a .tar.gz that is the same each time."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path, content in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SHARED_FORK = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Import torch, but where this process only hands tests to workers, start a server for them."""
    # A shell's background jobs ignore Ctrl-C, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None):
        shared = ExitStack()
        config.stash[SHARED_FORK] = str(shared.enter_context(forks()))
        config.add_cleanup(shared.close)
        return
    # Where a test measures with two threads, they sleep while they wait: beside other tests,
    # threads that spin take thirty times as long. OpenMP reads it once; started processes are as
    # by default.
    with pytest.MonkeyPatch.context() as only_here:
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
            only_here.setenv("OMP_WAIT_POLICY", "PASSIVE")
        import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Give a worker the program that all share."""
    node.workerinput["fork"] = node.config.stash[SHARED_FORK]


def pytest_collection_finish() -> None:
    """Leave what the imports made out of the garbage collections; each measurement makes some."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True)
def no_signal_yet(monkeypatch):
    """Forget a signal that an earlier test has sent."""
    monkeypatch.setattr("cifar_lightning.system.signals._received", None)


@pytest.fixture(scope="session", autouse=True)
def own_benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Wait for no benchmark but those of this process's tests."""
    tmp_path_factory.getbasetemp()  # stays where it is
    folder = tempfile.mkdtemp(prefix="tests-")
    Path(folder).chmod(0o1777)  # as the system's is
    # At exit, after what multiprocessing removes from it, which has the priority -100.
    Finalize(None, shutil.rmtree, [folder], exitpriority=-200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)  # the lock of a device lies there
        patch.setattr("tempfile.tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def composed(made_once: Callable[..., Path]) -> Iterator[None]:
    """Compose each choice of Hydra's files once."""
    folder = made_once("composed", lambda folder: None)
    with composed_once(folder) if importlib.util.find_spec("hydra") else nullcontext():
        yield  # the GPU tests do without Hydra


def cifar10(root: Path, mirrors: Sequence[str], md5: str) -> CIFAR10DataModule:
    """Make the data module of an archive; what only training needs is left at 0."""
    from cifar_lightning.data.cifar10 import CIFAR10DataModule

    shared = dict.fromkeys(("val_fraction", "split_seed", "num_workers", "seed"), 0)
    shared |= {"name": "cifar10", "num_classes": 10, "batch_size": 2, "eval_batch_size": 2}
    return CIFAR10DataModule(
        root=str(root), mirrors=list(mirrors), md5=md5, connect_timeout=2.0,
        mean=[0.0] * 3, std=[1.0] * 3, **shared,
    )  # fmt: skip


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def again(outputs: Path, call: Callable[..., Ended]) -> Callable[..., Ended]:
    """Measure a test's outputs with the command, quickly, in this process."""
    from cifar_lightning.cli import measure

    settings = f"outputs={outputs}", "protocol=quick", "device=cpu"
    return lambda *overrides: call(measure.main, *settings, *overrides)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run a command's ``main`` in this process."""

    # This process goes on after a signal.
    monkeypatch.setattr("cifar_lightning.cli.start._end_now", lambda status: None)

    def run(main: Callable[[], None], *arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        for handler in list(logging.root.handlers):  # an earlier command's, on a closed stream
            if type(handler) in (logging.StreamHandler, logging.FileHandler):
                logging.root.removeHandler(handler)
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return Ended(status, out, err)

    return run


@pytest.fixture
def command(outputs: Path, call: Callable[..., Ended]) -> Callable[..., Ended]:
    """Run ``train.py`` in this process, with its results in a folder of the test's own."""
    import train

    def run(*overrides: str) -> Ended:
        flags = [override for override in overrides if override.startswith("-")]
        rest = [override for override in overrides if not override.startswith("-")]
        return call(train.main, *flags, f"outputs={outputs}", *rest)

    return run


@pytest.fixture(scope="session")
def fork(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a Python whose processes begin with the libraries loaded: see `forks`."""
    if shared := getattr(request.config, "workerinput", {}).get("fork"):
        yield shared
        return
    resource_tracker.ensure_running()  # not by it, as that one stays till the end
    with forks() as program:
        yield str(program)


@pytest.fixture
def forked(fork: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what this test and its commands start by ``sys.executable`` begin so."""
    monkeypatch.setattr(sys, "executable", fork)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(fork))


def call_once(main: Callable[[], None], *arguments: str) -> None:
    """Run a command's ``main`` in this process for fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [main.__module__, *arguments])
        main()


# What compiles or lowers takes 20 s of processor time a network; `test_engines` has a small one.
LONG_EXPORTS = {"aot", "executorch", "executorch_int8"}


def to_export(names: Iterable[str]) -> list[Any]:
    """Give formats to parametrize a test with; those whose export takes long make it a slow one."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in LONG_EXPORTS else ()) for name in names
    ]


@pytest.fixture(scope="session")
def exported(finished_run: Path, made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """Export the finished run in a format, if its packages are here; return the folder."""
    from cifar_lightning.cli import export

    def to(name: str) -> Path:
        needs_packages_of(name)
        given = (f"outputs={finished_run}", "run=tiny", f"format={name}")
        return made_once(
            f"exported-{name}", lambda folder: call_once(export.main, *given, f"to={folder}")
        )

    return to


def needs_packages_of(variant: str) -> None:
    """Skip a test where what prepares and executes a variant is not installed."""
    extras = {
        "onnx": ("onnxscript", "onnxruntime"),
        "executorch": ("executorch", "torchao"),
        "ncnn": ("ncnn", "pnnx"),
        "openvino": ("onnxscript", "openvino", "nncf"),
        "litert": ("ai_edge_litert", "litert_torch"),
    }
    extra = "onnx" if variant == "int8" else variant.partition("_")[0]
    for package in extras.get(extra, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, of the extra `{extra}`")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a folder, to be read only, that the first worker to ask for it has filled."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # all workers'

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with locked(base / f"{name}.lock", f"waiting for {name}"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def finished_run(made_once: Callable[..., Path], fork: str) -> Path:
    """Train a tiny network for one epoch, measure two variants; return its outputs."""
    arguments = (*TINY, "epochs=1", "id=tiny", "benchmark.variants=[fp32,fused]")

    def train(folder: Path) -> None:
        command = [fork, "train.py", *arguments, f"outputs={folder / 'outputs'}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    return made_once("finished", train) / "outputs"


def write_and_read(outputs: Path) -> list[Row]:
    """Write the results table; return its rows as they are in the file."""
    from cifar_lightning.runs.results import Row
    from cifar_lightning.runs.table import write_table

    write_table(outputs)
    with (outputs / "results.csv").open(newline="") as stream:
        stored = [
            {name: cell or None for name, cell in one.items()} for one in csv.DictReader(stream)
        ]
    return msgspec.convert(stored, list[Row], strict=False)


def with_weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change every tensor of a run's weights, as a stranger would: its record goes along."""
    from safetensors.torch import load_file, save_file

    from cifar_lightning.runs.folder import RunFolder
    from cifar_lightning.runs.run import Network, Run

    path, run = RunFolder(folder).weights, Run.load(folder)
    weights = {name: change(tensor) for name, tensor in load_file(path).items()}
    save_file(weights, path, Network.of(run).metadata)
    replace(run, weights=sha256(path.read_bytes()).hexdigest()).save(folder)


@cache
def _composed(*overrides: str) -> DictConfig:
    from hydra import compose, initialize_config_dir

    from cifar_lightning.config.schema import CONF_DIR
    from cifar_lightning.runs.resolve import register

    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.fixture
def resolved() -> Callable[..., tuple[dict, dict]]:
    """Compose and resolve a configuration; return it with the groups' choices."""
    from cifar_lightning.runs.resolve import resolve

    def make(*overrides: str) -> tuple[dict, dict]:
        composed = _composed(*overrides)
        return resolve(composed), dict(composed.hydra.runtime.choices)

    return make


@pytest.fixture(scope="session")
def image_folder(made_once: Callable[..., Path]) -> Path:
    """30 training and 10 test images a class: of CIFAR-10 where its copy is there, else digits."""
    return made_once("images", _write_images)


def _write_images(base: Path) -> None:
    import torch

    from cifar_lightning.data.digits import read_digits

    if CIFAR10_COPY.exists():
        wanted = {"train": 30, "test": 10}
        seen: Counter[tuple[str, str]] = Counter()
        with tarfile.open(CIFAR10_COPY) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                split, name = Path(member.name).parts[-3:-1]
                seen[split, name] += 1
                if seen[split, name] <= wanted[split]:
                    target = base / split / name / Path(member.name).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
        return
    digits = read_digits()
    for split, part, count in (("train", digits.train, 30), ("test", digits.test, 10)):
        for label, name in enumerate(digits.classes):
            (base / split / name).mkdir(parents=True)
            for index in torch.nonzero(part.labels == label).flatten()[:count]:
                pixels = part.images[index].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(base / split / name / f"{int(index):04d}.png")

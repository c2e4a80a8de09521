"""Output that nobody reads any more ends nothing."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from cifar_lightning.runs.run import Run

WRITER = """
import logging, os, sys
from tqdm import tqdm
from cifar_lightning.system import streams
streams.secure()
logging.basicConfig(stream=sys.stdout, level="INFO")
stream = open(os.devnull)
assert stream.fileno() > 2, stream.fileno()  # none of the three numbers was free
sys.stderr.isatty(), sys.stdout.isatty()
for number in tqdm(range(200), mininterval=0):
    print(number, "." * 100)
    logging.info("line %d", number)
    print(number, "." * 100, file=sys.stderr)
    sys.stdout.flush()
os.system("echo from a child")
open(sys.argv[1], "w").write("to the end")
"""


@pytest.mark.parametrize(
    "how",
    ["{0}", "{0} | head -n 1", "{0} 2>&1 | head -n 1", "{0} >&-", "{0} 2>&-", "{0} >&- 2>&- <&-"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_it_goes_on_to_its_end(unbuffered, how, tmp_path):
    ended = tmp_path / "ended"
    writer = tmp_path / "writer.py"
    writer.write_text(WRITER)
    line = how.format(f"{sys.executable} {writer} {ended}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert ended.read_text() == "to the end", done.stderr
    assert "Error" not in done.stderr
    assert done.returncode == 0
    if "head" in how:
        assert "line 199" not in done.stdout
    if how == "{0}":
        assert done.stdout.count("line ") == 200
        assert "from a child" in done.stdout


def test_a_terminal_that_goes_away(tmp_path):
    ours, its = pty.openpty()
    writer = tmp_path / "writer.py"
    writer.write_text(f"import time\ntime.sleep(0.5)\n{WRITER}")
    process = subprocess.Popen(
        [sys.executable, writer, tmp_path / "ended"],
        cwd=ROOT, stdin=its, stdout=its, stderr=its, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(its)
    os.close(ours)
    assert process.wait(30) == 0
    assert (tmp_path / "ended").read_text() == "to the end"


def test_a_full_disk_is_an_error(tmp_path):
    code = "from cifar_lightning.system import streams\nstreams.secure()\nprint('x', flush=True)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode != 0
    assert "No space left" in done.stderr


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {}])
def test_names_are_utf8_whatever_the_locale(locale, tmp_path):
    """Classes are called by their folders; what is printed is in the terminal's encoding."""
    (tmp_path / "猫ü").touch()
    (tmp_path / os.fsdecode(b"\xff")).touch()
    code = (
        "import os, sys\nfrom types import SimpleNamespace as Module\n"
        "from cifar_lightning.cli import start\nfrom cifar_lightning.system import streams\n"
        "def main():\n    streams.secure()\n    print(*sorted(os.listdir(sys.argv[1])))\n"
        "    print(ascii(sys.argv[2]), open(os.devnull).encoding, os.environ.get('PYTHONUTF8'))\n"
        "start.import_module = lambda name: Module(main=main)\nstart.report()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, "ü"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, **({"PYTHONUTF8": "0"} if locale else {"PYTHONUTF8": "1"}), **locale},
    )  # fmt: skip
    shown = r"\u732b\xfc" if locale else "猫ü"
    assert done.stdout.splitlines() == [f"{shown} \\udcff", r"'\xfc' utf-8 1"]


@pytest.mark.parametrize("how", ["{0} 2>&1 | head -n 1", "{0} >&- 2>&-", "nohup {0} & wait $!"])
def test_a_training_without_a_terminal(how, outputs, forked):
    settings = " ".join([*TINY, "epochs=1", "batch_size=128", "benchmark.variants=[]"])
    train = f"{sys.executable} train.py outputs={outputs} {settings}"
    if "nohup" in how:
        # The window is closed as soon as the run's folder is there.
        look = f"until [ -e {outputs}/runs/*/train.log ]; do sleep 0.1; done"
        line = f"nohup {train} & {look}; kill -HUP $!; wait $!"
    else:
        line = how.format(train)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (outputs / "runs").iterdir()
    assert Run.load(folder).status == "finished"
    assert "trained in" in (folder / "train.log").read_text()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL

"""Starts Python processes as forks of one that has the libraries loaded.

A real process needs five seconds to import torch and Lightning; a fork needs none. `forks` gives a
program that is called like Python (``-c``, ``-m`` or a file, with arguments) and that hands its
arguments, folder, environment and open files over to a server, which forks a process for each. That
process imports this project's modules itself, ends as any Python process does, gets the signals
that the program gets, and is killed with it. Its benchmarks are as light as the tests' own.
`multiprocessing` can spawn by it, too.
"""

from __future__ import annotations

import atexit
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fcntl import F_DUPFD, fcntl
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import PathFinder
from itertools import dropwhile
from math import inf
from pathlib import Path
from socket import AF_UNIX
from types import ModuleType
from typing import Any, ClassVar

from composing import composed_once

LIBRARIES = (
    "hydra.main", "jinja2", "lightning", "matplotlib.figure", "msgspec", "psutil",
    "safetensors.torch", "scipy.stats", "sklearn.datasets", "tabulate",
    "tensorboard.backend.event_processing.event_accumulator", "torch.utils.flop_counter",
    "torch.utils.tensorboard", "torchmetrics.classification", "torchvision.transforms.v2", "tqdm",
)  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
files = []
for number in map(int, os.listdir("/proc/self/fd")):
    try:
        os.fstat(number)
        files.append(number)
    except OSError:  # the one that listed them
        pass
ignored = [number for number in {forwarded} if signal.getsignal(number) == signal.SIG_IGN]
forwarded = {{*{forwarded}}} - {{*ignored}}
signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = [sys.argv, os.getcwd(), dict(os.environ), ignored, files]
request = json.dumps(request).encode()
# The server can't do without one, even where all are closed.
socket.send_fds(server, [len(request).to_bytes(8, "big")], [*files, server.fileno()])
server.sendall(request)
process = int.from_bytes(server.recv(8), "big")
for number in forwarded:
    signal.signal(number, lambda number, _: os.kill(process, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
status = int.from_bytes(server.recv(8), "big", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextmanager
def forks() -> Iterator[Path]:
    """Start the server, which composes as `composed_once` does; yield the program."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder, socket.socket(AF_UNIX) as listener:
        address, program, composed = (
            f"{folder}/server",
            Path(folder, "python"),
            f"{folder}/composed",
        )
        Path(composed).mkdir()
        listener.bind(address)
        listener.listen()
        forwarded = list(map(int, FORWARDED))
        program.write_text(
            PROGRAM.format(python=sys.executable, forwarded=forwarded, address=address)
        )
        program.chmod(0o755)
        with subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), composed],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()],
        ):  # fmt: skip
            yield program  # at the end the server's input is closed, which ends it, too


def serve(listener: socket.socket) -> tuple[list[str], Path]:
    """Fork for every request; return in the forked process, with its arguments and the program.

    Between the server and each of these there is a process that waits for its end or the client's.
    """
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            with suppress(ChildProcessError):
                while True:
                    os.wait()
            os._exit(0)
        client, _ = listener.accept()
        if os.fork():
            client.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        listener.close()
        size, received, *_ = socket.recv_fds(client, 8, 100)
        with client.makefile("rb") as stream:
            request = json.loads(stream.read(int.from_bytes(size, "big")))
        process = os.fork()
        if process == 0:
            client.close()
            return become(*request, received)
        for number in received:
            os.close(number)
        client.sendall(process.to_bytes(8, "big"))
        if client in select.select([os.pidfd_open(process), client], [], [])[0]:
            os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with suppress(BrokenPipeError):
            client.sendall(status.to_bytes(8, "big", signed=True))
        os._exit(0)


def become(
    argv: list[str],
    folder: str,
    environment: dict[str, str],
    ignored: list[int],
    files: list[int],
    received: list[int],
) -> tuple[list[str], Path]:
    """Take over what a client had when it called; return the arguments and the program."""
    import torch

    beyond = 3 + max(files, default=0)
    *mine, _ = [fcntl(number, F_DUPFD, beyond) for number in received]
    os.closerange(0, beyond)
    for number, file in zip(files, mine, strict=True):
        os.dup2(file, number)
    os.closerange(beyond, 1000)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number not in files:
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as TMPDIR says now
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return argv[1:], Path(argv[0])


def shorten_quick(protocols: ModuleType) -> None:
    """Let the quick protocol take its rounds, but never more of them until figures settle."""
    protocols.PROTOCOLS["quick"] = replace(
        protocols.PROTOCOLS["quick"], warmup_block=2, warmup_s=0.0, warmup_tolerance=inf,
        block_s=0.001, independent_rounds=1, tolerance=inf, budget_s=60.0,
    )  # fmt: skip


def narrow_references(candidates: ModuleType) -> None:
    """Let all references be one narrow ResNet-8, else nearly all of a benchmark's time is theirs.

    `references.__wrapped__` gives the real ones.
    """
    real = candidates.references

    @wraps(real)
    def references(device: Any) -> list[Any]:
        sources = real(device)
        narrow = sources[0].candidate.model | {"width": 0.25}
        return [replace(one, candidate=replace(one.candidate, model=narrow)) for one in sources]

    candidates.references = references


def compare_few(prepare: ModuleType) -> None:
    """Let a candidate's logits be compared on a few images."""
    prepare.COMPARED_IMAGES = 4


def prove_on_one(precision: ModuleType) -> None:
    """Let a CPU's precision be told from one image; cuDNN might choose other algorithms for it."""
    if not precision.torch.cuda.is_available():
        precision.PROOF_IMAGES = 1


def register_once(registration: ModuleType) -> None:
    """Let ONNX's exporter collect its operators once, which takes half a second, or more."""
    registry = registration.ONNXRegistry
    registry.from_torchlib = staticmethod(cache(registry.from_torchlib))


class Lighter:
    """Changes modules as they are imported, so that a test's benchmark takes a moment.

    It stands first in ``sys.meta_path``.
    """

    CHANGES: ClassVar[dict[str, Callable[[ModuleType], None]]] = {
        "cifar_lightning.config.protocols": shorten_quick,
        "cifar_lightning.benchmark.candidates": narrow_references,
        "cifar_lightning.benchmark.prepare": compare_few,
        "cifar_lightning.variants.precision": prove_on_one,
        "torch.onnx._internal.exporter._registration": register_once,
    }

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in cls.CHANGES:
            return None
        spec: Any = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            cls.CHANGES[name](module)

        spec.loader.exec_module = exec_module
        return spec


def run(*given: str) -> None:
    """Do what Python does with these arguments; flags such as ``-B`` have no effect."""
    kind, *arguments = dropwhile(lambda one: one[0] == "-" and one not in ("-c", "-m"), given)
    where = {"-c": "", "-m": str(Path.cwd())}
    sys.path.insert(0, where.get(kind, str(Path(kind).resolve().parent)))
    sys.meta_path.insert(0, Lighter)
    if kind == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        module = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(module))
    elif kind == "-m":
        name, *arguments = arguments
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Serve; in a fork, run what was asked for, and end without taking the libraries apart."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' own Ctrl-C
    gc.disable()
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()
    gc.enable()
    with composed_once(Path(sys.argv[2])):
        arguments, program = serve(socket.socket(fileno=int(sys.argv[1])))
        sys.executable = str(program)
        multiprocessing.set_executable(str(program))
        status = 0
        try:
            run(*arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else bool(end.code)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            status = 1
            traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if not stream.closed:  # as multiprocessing's tracker of resources closes its output
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    del sys.path[0]  # the tests' folder
    main()

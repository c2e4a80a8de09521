"""Seconds until the command answers: help, a mistake, and the first step of a training.

python -m perf.startup
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from perf.interleaved import conditions, interleave, table

ROUNDS = 5


def answer(*arguments: str) -> float:
    """Run the command to its end; return the seconds it took."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "train.py", *arguments], capture_output=True)
    return time.perf_counter() - begin


def first_step() -> float:
    """Start a training on digits; return the seconds until its first step begins."""
    with tempfile.TemporaryDirectory() as outputs:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", "train.py", f"outputs={outputs}", "data=digits", "epochs=1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        seen = b""
        while b"train: " not in seen:  # drawn just before the first step
            new = process.stderr.read(1)
            if not new:
                raise RuntimeError(f"the training ended before its first step: {seen.decode()}")
            seen += new
        seconds = time.perf_counter() - begin
        process.kill()
        process.communicate()
        return seconds


def main() -> None:
    """Print the table."""
    sides = {
        "--help": lambda: answer("--help"),
        "a mistake in a top-level key": lambda: answer("epohcs=3"),
        "the first training step": first_step,
    }
    print("## Start-up\n")
    print(table(interleave(sides, ROUNDS), "s", 2, "--help"))
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main()

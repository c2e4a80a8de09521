"""What many runs cost: the results table at a run's end, finding a run, and the report.

python -m perf.scale runs=10,100,1000,10000

The runs are generated (`perf.generated_runs`), once for each number; ``folder=`` keeps them.
Each figure is of a process of its own: seconds, in brackets its processor time, and its highest
memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

REPORT_UP_TO = 1000  # runs
WHOSE = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
ROUNDS = 3  # of a run's end; the median counts


def table(outputs: Path) -> None:
    """Make the table from nothing."""
    from cifar_lightning.runs.index import INDEX
    from cifar_lightning.runs.table import write_table

    (outputs / INDEX).unlink(missing_ok=True)
    _timed(lambda: write_table(outputs))


def end(outputs: Path) -> None:
    """Write the table after one run has ended; the others' rows are there."""
    from cifar_lightning.runs.find import find_run
    from cifar_lightning.runs.run import Run
    from cifar_lightning.runs.table import write_table

    write_table(outputs)
    folder = find_run(outputs, "n7")
    run = Run.load(folder)
    replace(run, val_acc=((run.val_acc or 0.0) + 1) % 100).save(folder)
    _timed(lambda: write_table(outputs))


def find(outputs: Path) -> None:
    """Find a run by its ID."""
    from cifar_lightning.runs.find import find_run

    _timed(lambda: find_run(outputs, "n7"))


def report(outputs: Path) -> None:
    """Write the report, start included."""
    command = [sys.executable, "-m", "cifar_lightning.report", f"outputs={outputs}"]
    _timed(lambda: subprocess.run(command, check=True, capture_output=True))


def _timed(work: Callable[[], object]) -> None:
    before, begin = _processor_s(), time.perf_counter()
    work()
    seconds, processor_s = time.perf_counter() - begin, _processor_s() - before
    peak = max(resource.getrusage(one).ru_maxrss for one in WHOSE)
    print(seconds, processor_s, peak / 1000)


def _processor_s() -> float:
    used = [resource.getrusage(one) for one in WHOSE]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(what: str, outputs: Path) -> tuple[float, ...]:
    """Measure one thing in a fresh process: seconds, processor time in seconds, megabytes."""
    code = f"from pathlib import Path; from perf import scale; scale.{what}(Path({str(outputs)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    return tuple(map(float, done.stdout.split()[-3:]))


def row(count: int, outputs: Path) -> str:
    """Measure everything with a number of runs."""
    figures = [measured("table", outputs)]
    figures.append(sorted(measured("end", outputs) for _ in range(ROUNDS))[ROUNDS // 2])
    figures.append(measured("find", outputs))
    if count <= REPORT_UP_TO:
        figures.append(measured("report", outputs))
    cells = [f"{wall:.2f} s ({cpu:.2f}), {size:.0f} MB" for wall, cpu, size in figures]
    page = outputs / "report" / "index.html"
    cells += [f"{page.stat().st_size / 1e6:.1f} MB"] if page.exists() else ["", ""]
    return f"| {count:,} | {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> None:
    """Print the table.

    What is heavy is imported last: a process counts the memory of the one that started it.
    """
    given = dict(argument.split("=", 1) for argument in arguments)
    counts = [int(count) for count in given.get("runs", "10,30,100,1000,10000").split(",")]
    print("## Many runs\n")
    print("| runs | the table from nothing | at a run's end | a run found | report | its page |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            outputs = Path(given.get("folder", folder)) / f"runs-{count}"
            if not outputs.exists():
                said = [f"runs={count}", f"outputs={outputs}"]
                subprocess.run([sys.executable, "-m", "perf.generated_runs", *said], check=True)
            print(row(count, outputs), flush=True)
    from perf.interleaved import conditions

    print()
    print(conditions(ROUNDS))


if __name__ == "__main__":
    main(sys.argv[1:])

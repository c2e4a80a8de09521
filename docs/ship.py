"""Copy what ships of a study into docs/results: `python docs/ship.py outputs/study [folder in it]`.

That is an outputs folder, too, which reports can be made of. Of every finished run it holds the
record, measurements and predictions, and for one seed of each network on the Pareto front, or taken
for one of the accuracies asked for, the weights, so that `make rank` can measure it. Benchmarks are
copied with the mean of each block in place of its calls.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cifar_lightning.comparison.choice import Need, choose
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.records import Records
from cifar_lightning.runs.benchmark import BenchmarkMeans, BenchmarkRecord
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import MEGA, Run

SHIPPED = Path(__file__).resolve().parent / "results"
NEEDED = (85.0, 90.0, 93.0)  # percent, each with a verdict
LARGEST_FILE, LARGEST = 10 * MEGA, 25 * MEGA  # bytes, of one file and of all


def ship(outputs: Path, to: Path) -> None:
    """Copy what ships, in place of what was there of runs and benchmarks.

    Raises:
        UserError: If there is no finished run.
        ValueError: If it is too large to ship; nothing is changed then.
    """
    records = Records.read([outputs])
    with_weights = set(_worth_measuring(records))
    to.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to, prefix=".new-") as folder:
        new = Path(folder)
        for one in records.runs:
            if one.run is not None and one.run.status == "finished":
                run, copy = RunFolder(one.folder), RunFolder.of(new, one.run.name)
                wanted = [run.measurements, run.predictions]
                wanted += [run.weights] if one.run.name in with_weights else []
                for path in wanted:
                    _copy(path, copy.path / path.relative_to(run.path))
                _anywhere(one.run).save(copy.path)
                if run.overrides.exists():
                    copy.hydra.mkdir()
                    copy.overrides.write_text(without_folders(run.overrides.read_text()))
        for record in records.benchmarks.values():
            path = BenchmarkRecord.path(new, record.id)
            path.parent.mkdir(exist_ok=True)
            assert isinstance(record, BenchmarkMeans)
            path.write_text(with_means_only(record.whole()).to_json())
        _check_size(new)
        for part in new.iterdir():
            shutil.rmtree(to / part.name, ignore_errors=True)
            part.rename(to / part.name)


def _worth_measuring(records: Records) -> Iterator[str]:
    """Name one run of each network that is best in some respect: the first of its seeds."""
    for leaderboard in compare(records, Need(NEEDED[0])).leaderboards:
        for threads in leaderboard.threads:
            taken = [choose(leaderboard, threads, Need(least)).entry for least in NEEDED]
            for entry in (*taken, *leaderboard.pareto_front(threads)):
                yield min(entry.group.runs, key=lambda run: run.config["seed"]).name


def with_means_only(record: BenchmarkRecord) -> BenchmarkRecord:
    """Leave of each block the mean of its calls: what ranks needs no more."""
    sessions = [
        replace(
            session,
            rounds=[
                replace(
                    one,
                    blocks=[replace(b, calls_ms=[b.mean_ms], walls_ms=[]) for b in one.blocks],
                )
                for one in session.rounds
            ],
        )
        for session in record.sessions
    ]
    return replace(record, sessions=sessions, means_only=True)


def _anywhere(run: Run) -> Run:
    """Leave out where data and outputs lay: that is the machine's own."""
    config = run.config | {"outputs": "outputs"}
    if "root" in config["data"]:
        config["data"] = config["data"] | {"root": "data"}
    return replace(run, config=config)


def without_folders(overrides: str) -> str:
    """Leave the same out of what was said on the command line."""
    own = ("- data.root=", "- outputs=")
    return "".join(line for line in overrides.splitlines(True) if not line.startswith(own))


def _copy(path: Path, to: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, to, dirs_exist_ok=True)
    elif path.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)


def _check_size(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    large = [
        f"{path} has {size / MEGA:.1f} MB" for path, size in sizes.items() if size > LARGEST_FILE
    ]
    if (total := sum(sizes.values())) > LARGEST:
        large.append(f"{folder} has {total / MEGA:.1f} MB")
    if large:
        raise ValueError("; ".join(large))


if __name__ == "__main__":
    ship(Path(sys.argv[1]), SHIPPED.joinpath(*sys.argv[2:3]))

"""Write the study's tables into README.md and docs/results.md, from docs/results: `make results`.

A table stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import csv
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cifar_lightning.comparison.choice import Need, choose
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.columns import COLUMNS
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.floors import floors
from cifar_lightning.comparison.leaderboard import LISTED, Choice, Leaderboard, speed
from cifar_lightning.comparison.provenance import provenance
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.tables import in_order, table
from cifar_lightning.runs.folder import RUNS
from cifar_lightning.runs.layout import draw_table, number
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.run import Run
from cifar_lightning.system import escaping

DOCS = Path(__file__).resolve().parent
PAGES = (DOCS.parent / "README.md", DOCS / "results.md")
NEEDED = (85, 90, 93)  # percent
EAGER = ("fp32", "fused", "channels_last")
WAYS: dict[str, Callable[[Entry], bool]] = {
    "PyTorch, eager": lambda entry: entry.variant in EAGER,
    "with an engine": lambda entry: entry.variant not in EAGER,
}
TRAINING_IMAGES = 45_000  # of CIFAR-10, without those for validation
LIMITED = 1.0  # points below what is published: more epochs would matter


@dataclass(frozen=True)
class Published:
    """The accuracy of a network as somebody published it."""

    accuracy: float
    epochs: str
    how: str
    source: str


@dataclass(frozen=True)
class Study:
    """What the tables are made of.

    Attributes:
        records: Of the study, and of networks found since, each with a recipe of its own.
        published: By the networks' ids.
        engines: Those that are taken in further engines, which another benchmark has timed.
        engines_before: More of the networks, by an earlier protocol.
        timm: Networks of timm's, trained for a look.
        presets: Runs of the fast presets, alone on a CPU.
        seeds: Further runs of the networks, of which there are neither weights nor measurements.
        elsewhere: The networks on other processors, a benchmark each.
    """

    records: Records
    published: dict[str, Published]
    engines: Records | None = None
    engines_before: Records | None = None
    timm: Records | None = None
    presets: Sequence[Run] = ()
    seeds: Sequence[Run] = ()
    elsewhere: Sequence[Records] = ()

    @classmethod
    def read(cls, folder: Path) -> Study:
        with (folder / "published.csv").open() as stream:
            rows = {row.pop("network"): row for row in csv.DictReader(stream)}
        published = {
            name: Published(float(row["accuracy"]), row["epochs"], row["how"], row["source"])
            for name, row in rows.items()
        }
        found = folder / "found"
        return cls(
            Records.read([folder, found] if found.exists() else [folder]),
            published,
            engines=_records(folder / "engines"),
            engines_before=_records(folder / "engines-before"),
            timm=_records(folder / "timm"),
            presets=_runs(folder / "presets"),
            seeds=_runs(folder / "seeds"),
            elsewhere=[Records.read([one]) for one in sorted(folder.glob("processors/*"))],
        )

    @property
    def runs(self) -> list[Run]:
        """All training runs of the networks."""
        return [*(one.run for one in self.records.runs if one.run is not None), *self.seeds]

    @cached_property
    def leaderboard(self) -> Leaderboard:
        """All rows, on the machine that the overall answer is of."""
        return _ranked(self.records)

    def limited(self, entry: Entry) -> Published | None:
        """Give what is published of a network, if that is a point or more above the accuracy."""
        found = self.published.get(entry.label)
        short = found is not None and entry.accuracy.mean <= found.accuracy - LIMITED
        return found if short else None


def _records(outputs: Path) -> Records | None:
    return Records.read([outputs]) if outputs.exists() else None


def _runs(outputs: Path) -> list[Run]:
    """Read the runs of an outputs folder."""
    return [one.run for one in RunResults.read_all(outputs) if one.run is not None]


def taken(study: Study) -> str:
    """Draw what to take for each accuracy, eager and with an engine, on one thread."""
    ways = {name: _ranked(study.records, keep) for name, keep in WAYS.items()}
    lines = [f"Timed in benchmark {_benchmarks(study.leaderboard)}"]
    if study.engines is not None:
        every = _ranked(study.engines)
        number, all_of = (
            len({entry.label for entry in one.entries}) for one in (every, study.leaderboard)
        )
        some = f", {number} of the networks" if number < all_of else ""
        ways[f"with further engines{some}"] = every
        lines.append(f"; with further engines in {_benchmarks(every)}")
    rows = []
    for least in NEEDED:
        cells = [f"at least {least} %"]
        for leaderboard in ways.values():
            choice = _choice(leaderboard, least)
            cells.append(_told(leaderboard, choice.entry) if choice.eligible else "none")
        rows.append(cells)
    return f"{draw_table(['Test accuracy', *ways], rows, ())}\n{''.join(lines)}.\n"


def budget(study: Study) -> str:
    """Draw accuracies beside published ones; say which verdicts depend on the budget."""
    plain = [one for one in study.leaderboard.entries if one.variant == "fp32"]
    rows = [
        [
            entry.label,
            f"{entry.accuracy.mean:.2f}",
            str(entry.group.runs[0].config["epochs"]),
            *([number(found.accuracy, 2), found.epochs or "-", found.how, found.source]),
            "budget-limited" if study.limited(entry) else "",
        ]
        for entry in sorted(plain, key=lambda one: one.accuracy.mean)
        if entry.threads <= 1 and (found := study.published.get(entry.label)) is not None
    ]
    header = ["Network", "Here (%)", "Epochs", "Published (%)", "Epochs", "How", "Source", "Mark"]
    lines = [f"- {escaping.markdown(line)}" for line in dependent(study)]
    none = "No verdict depends on the budget, as far as accuracies are published."
    return "\n".join([draw_table(header, rows, (1, 2, 3, 4)), *(lines or [none]), ""])


def dependent(study: Study) -> Iterator[str]:
    """Say which verdicts another budget could turn, by what is published."""
    boards = {way: _ranked(study.records, keep) for way, keep in WAYS.items()}
    for least in NEEDED:
        for way, leaderboard in boards.items():
            choice = _choice(leaderboard, least)
            told = set()
            for entry in sorted(leaderboard.peers(choice.entry.threads), key=speed):
                limit = None if entry.label in told else study.limited(entry)
                if limit is None or not entry.accuracy.mean < least <= limit.accuracy:
                    continue
                if not choice.eligible or leaderboard.slower(choice.entry, entry):
                    told.add(entry.label)
                    faster = " and is faster" if choice.eligible else ""
                    yield (
                        f"At least {least} %, {way}: {entry.name} has {entry.accuracy.mean:.2f} % "
                        f"here, but {limit.accuracy:g} % in {limit.source}{faster}."
                    )


def ranked(study: Study) -> str:
    """Draw all rows, as the report does."""
    return _rows(study.leaderboard)


def engines(study: Study) -> str:
    """Draw rows of networks in further engines, and what its calls take by themselves."""
    return "" if study.engines is None else _rows(_ranked(study.engines))


def engines_before(study: Study) -> str:
    """Draw the same of more networks, by an earlier protocol."""
    return "" if study.engines_before is None else _rows(_ranked(study.engines_before), LISTED)


def timm(study: Study) -> str:
    """Draw rows of the networks of timm's."""
    return "" if study.timm is None else _rows(_ranked(study.timm))


def processors(study: Study) -> str:
    """Draw what is taken on each processor, and each row's relative latency, on one thread."""
    boards = [study.leaderboard, *(_there(one, study.leaderboard) for one in study.elsewhere)]
    taken = []
    for least in NEEDED:
        cells = [f"at least {least} %"]
        for board in boards:
            choice = _choice(board, least)
            ms = COLUMNS["lat_mean_ms"].shown(board, choice.entry)
            cells.append(f"{choice.entry.name}, {ms} ms" if choice.eligible else "none")
        taken.append(cells)
    timed = [{one.name: one for one in board.peers(board.threads[0])} for board in boards]

    def relative(name: str) -> float:
        return statistics.fmean(there[name].relative for there in timed if name in there)

    rows = [
        [name]
        + [
            COLUMNS["lat_rel"].shown(board, there[name]) if name in there else "-"
            for board, there in zip(boards, timed, strict=True)
        ]
        for name in sorted(set().union(*timed[1:]), key=relative)
    ]
    names = [board.conditions.device for board in boards]
    figures = draw_table(["Relative latency", *names], rows, range(1, len(names) + 1))
    others = "\n\n".join(
        escaping.markdown(f"{provenance(board)} Benchmark {_benchmarks(board)}.")
        for board in boards[1:]
    )
    return f"{draw_table(['Test accuracy', *names], taken, ())}\n{figures}\n{others}\n"


def _there(records: Records, here: Leaderboard) -> Leaderboard:
    """Take of another processor's folder what the study itself has not timed."""
    found = compare(records, Need(NEEDED[0])).leaderboards
    (there,) = [one for one in found if one.conditions.hardware != here.conditions.hardware]
    return there


def _rows(leaderboard: Leaderboard, most: int = sys.maxsize) -> str:
    near = {one for threads in leaderboard.threads for one in leaderboard.listed(threads, most)}
    listed = [entry for entry in in_order(leaderboard, "lat_rel") if entry in near]
    drawn = table(leaderboard, listed)
    if len(listed) < len(leaderboard.entries):
        drawn += (
            f"\nThe {len(listed)} of {len(leaderboard.entries)} rows that are on the Pareto front "
            "or nearest to it.\n"
        )
    how = escaping.markdown(f"{provenance(leaderboard)} Benchmark {_benchmarks(leaderboard)}.")
    if not (known := floors(leaderboard.entries)):
        return f"{drawn}\n{how}\n"
    known.sort(key=lambda one: one.ms)
    cells = [[one.name, f"{one.relative:.3f}", f"{one.ms:.3f}"] for one in known]
    floor = draw_table(["Floor: a call by itself", "Rel. latency", "Lat. mean (ms)"], cells, (1, 2))
    return f"{drawn}\n{how}\n\n{floor}"


def _benchmarks(leaderboard: Leaderboard) -> str:
    """Name those that a leaderboard's latencies are of."""
    names = sorted({str(entry.measurement.benchmark) for entry in leaderboard.entries})
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def trained(study: Study) -> str:
    """Draw what was trained: one row a network."""
    rows = []
    for entry in sorted(study.leaderboard.entries, key=lambda one: one.label):
        if entry.variant != "fp32" or entry.threads > 1:
            continue
        runs = [one for one in study.runs if one.id == entry.label]
        tests = [run.test_acc or math.nan for run in runs]
        minutes = statistics.fmean(run.train_seconds or 0.0 for run in runs) / 60
        rows.append(
            [
                entry.label,
                str(len(runs)),
                str(runs[0].config["epochs"]),
                f"{statistics.fmean(run.val_acc or math.nan for run in runs):.2f}",
                f"{statistics.fmean(tests):.2f}",
                number(statistics.stdev(tests) if len(tests) > 1 else None, 2),
                f"{minutes:.0f}",
                *(COLUMNS[name].shown(study.leaderboard, entry) for name in ("params", "macs")),
            ]
        )
    header = ["Network", "Seeds", "Epochs", "Val. (%)", "Test (%)", "Std", "Minutes"]
    return draw_table([*header, "Params (M)", "MACs (M)"], rows, range(1, 9))


def presets(study: Study) -> str:
    """Draw what the fast presets gave, and how fast they trained: one row a preset."""
    rows = []
    by_id = sorted(study.presets, key=lambda run: str(run.id))
    for name, group in itertools.groupby(by_id, lambda run: str(run.id)):
        runs = sorted(group, key=lambda run: run.config["seed"])
        seconds = statistics.fmean(run.train_seconds or math.nan for run in runs)
        epochs, macs = runs[0].config["epochs"], runs[0].macs or math.nan
        images = epochs * TRAINING_IMAGES
        tests = [run.test_acc or math.nan for run in runs]
        rows.append(
            [
                name,
                str(len(runs)),
                str(epochs),
                f"{seconds / 60:.2f}",
                f"{statistics.fmean(run.val_acc or math.nan for run in runs):.2f}",
                f"{statistics.fmean(tests):.2f}",
                ", ".join(f"{accuracy:.2f}" for accuracy in tests),
                f"{images / seconds:,.0f}",
                f"{6 * macs * images / 1e15:.3f}",
                f"{6 * macs * images / seconds / 1e9:.0f}",
            ]
        )
    header = ["Preset", "Seeds", "Epochs", "Minutes", "Val. (%)", "Test (%)", "By seed"]
    return draw_table([*header, "Images/s", "PFLOP", "GFLOP/s"], rows, (*range(1, 6), 7, 8, 9))


TABLES = {
    "taken": taken,
    "budget": budget,
    "ranked": ranked,
    "trained": trained,
    "engines": engines,
    "engines_before": engines_before,
    "timm": timm,
    "processors": processors,
    "presets": presets,
}


def _ranked(records: Records, keep: Callable[[Entry], bool] = lambda entry: True) -> Leaderboard:
    return compare(records, Need(NEEDED[0]), keep=lambda _, entry: keep(entry)).leaderboards[0]


def _choice(leaderboard: Leaderboard, least: float) -> Choice:
    return choose(leaderboard, leaderboard.threads[0], Need(least))


def _told(leaderboard: Leaderboard, entry: Entry) -> str:
    shown = {
        name: COLUMNS[name].shown(leaderboard, entry)
        for name in ("test_acc", "lat_rel", "lat_mean_ms")
    }
    return f"{entry.name}: {shown['test_acc']} %, {shown['lat_rel']}, {shown['lat_mean_ms']} ms"


def rewritten(text: str, study: Study) -> str:
    """Put the tables into a page, in place of what is between their marks."""
    for name, draw in TABLES.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(begin)
        if mark:
            text = before + begin + draw(study) + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    if not (DOCS / "results" / RUNS).is_dir():
        raise SystemExit("docs/results has no runs yet")
    study = Study.read(DOCS / "results")
    for page in PAGES:
        page.write_text(rewritten(page.read_text(), study))

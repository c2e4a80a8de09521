"""Compare all runs: which network to take, and why.

    python -m cifar_lightning.report min_acc=85 baseline=B1

reads the runs, their measurements and their training curves, and writes tables, plots and a page
that needs no network. It trains and measures nothing.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from plotly.offline import get_plotlyjs

from cifar_lightning import config as configuration
from cifar_lightning import plots, provenance
from cifar_lightning.board import TENSORBOARD
from cifar_lightning.command import command
from cifar_lightning.comparison import (
    Arena,
    Comparison,
    Conditions,
    Entry,
    Estimate,
    changes,
    compare,
    effect,
    verdict,
)
from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.files import write_atomically
from cifar_lightning.finished import relative
from cifar_lightning.results import MEGA, RUNS, Recorded, draw_table

log = logging.getLogger(__name__)

# --- Columns --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Attributes:
        value: What ``table.csv`` holds.
        header: In the table for people; None leaves it out there.
        text: How people read it; None is the value as it is.
        highest: Whether a high value is the better one.
        numeric: Whether it is a number.
    """

    value: Callable[[Arena, Entry], Any]
    header: str | None = None
    text: Callable[[Arena, Entry], str] | None = None
    highest: bool = False
    numeric: bool = True

    def shown(self, arena: Arena, entry: Entry) -> str:
        if self.text is not None:
            return self.text(arena, entry)
        value = self.value(arena, entry)
        return "-" if value is None else str(value)


def _accuracy_rank(arena: Arena, entry: Entry) -> tuple[int, bool]:
    return arena.rank(entry, lambda one: one.accuracy, highest=True)


def _latency_rank(arena: Arena, entry: Entry) -> tuple[int, bool]:
    return arena.rank(entry, lambda one: one.mean_ms, highest=False)


def _rank_text(rank: tuple[int, bool]) -> str:
    return f"{rank[0]}{'=' * rank[1]}"


def _accuracy(arena: Arena, entry: Entry) -> str:
    estimate = entry.accuracy
    std = "" if estimate.std is None else f" ± {estimate.std:.2f}"
    return f"{estimate.mean:.2f}{std}"


def _latency(arena: Arena, entry: Entry) -> str:
    std = "" if entry.mean_ms.std is None else f" ± {entry.mean_ms.std:.3f}"
    return f"{entry.mean_ms.mean:.3f}{std}{'' if entry.converged else ' ~'}"


def _interval(estimate: Estimate, digits: int) -> str:
    if not estimate.known:
        return "-"
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _speedup(arena: Arena, entry: Entry) -> float:
    return arena.baseline.mean_ms.mean / entry.mean_ms.mean


def _place(arena: Arena, entry: Entry) -> str:
    better = arena.dominators.get(entry)
    return "front" if better is None else f"behind {better.name}"


def _dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _of_run(key: str) -> Callable[[Arena, Entry], Any]:
    return lambda arena, entry: entry.runs[0].choices.get(key)


COLUMNS: dict[str, Column] = {
    "id": Column(lambda a, e: e.label, "ID", numeric=False),
    "model": Column(lambda a, e: e.network, "Network", numeric=False),
    "variant": Column(lambda a, e: e.variant, "Variant", numeric=False),
    "seeds": Column(lambda a, e: len(e.runs), "Seeds", highest=True),
    "test_acc": Column(lambda a, e: e.accuracy.mean, "Acc. (%)", _accuracy, highest=True),
    "test_acc_low": Column(
        lambda a, e: _finite(e.accuracy.low),
        "95 % interval",
        lambda a, e: _interval(e.accuracy, 2),
        highest=True,
    ),
    "test_acc_high": Column(lambda a, e: _finite(e.accuracy.high), highest=True),
    "test_acc_std": Column(lambda a, e: e.accuracy.std),
    "acc_rank": Column(
        lambda a, e: _accuracy_rank(a, e)[0],
        "Rank",
        lambda a, e: _rank_text(_accuracy_rank(a, e)),
    ),
    "lat_mean_ms": Column(lambda a, e: e.mean_ms.mean, "Lat. mean (ms)", _latency),
    "lat_mean_low_ms": Column(
        lambda a, e: _finite(e.mean_ms.low),
        "95 % interval",
        lambda a, e: _interval(e.mean_ms, 3),
    ),
    "lat_mean_high_ms": Column(lambda a, e: _finite(e.mean_ms.high)),
    "lat_mean_std_ms": Column(lambda a, e: e.mean_ms.std),
    "lat_rank": Column(
        lambda a, e: _latency_rank(a, e)[0],
        "Rank",
        lambda a, e: _rank_text(_latency_rank(a, e)),
    ),
    "lat_p95_ms": Column(lambda a, e: e.p95_ms, "Lat. p95 (ms)", lambda a, e: _dash(e.p95_ms, 3)),
    "speedup": Column(_speedup, "Speed-up", lambda a, e: f"{_speedup(a, e):.2f}", highest=True),
    "size_mb": Column(lambda a, e: e.size_mb, "Size (MB)", lambda a, e: _dash(e.size_mb, 2)),
    "params": Column(lambda a, e: e.params, "Params (M)", lambda a, e: f"{e.params / MEGA:.2f}"),
    "macs": Column(lambda a, e: e.macs, "MACs (M)", lambda a, e: f"{e.macs / MEGA:.2f}"),
    "place": Column(_place, "Place", numeric=False),
    "optim": Column(_of_run("optim"), numeric=False),
    "scheduler": Column(_of_run("scheduler"), numeric=False),
    "epochs": Column(lambda a, e: e.runs[0].config["epochs"]),
    "converged": Column(lambda a, e: e.converged, numeric=False),
    "dataset": Column(lambda a, e: a.conditions.dataset, numeric=False),
    "fingerprint": Column(lambda a, e: a.conditions.fingerprint, numeric=False),
    "device": Column(lambda a, e: a.conditions.device, numeric=False),
    "threads": Column(lambda a, e: a.conditions.threads or None),
    "protocol": Column(lambda a, e: a.conditions.protocol, numeric=False),
    "runs": Column(lambda a, e: " ".join(run.name for run in e.runs), numeric=False),
}
SHOWN = {name: column for name, column in COLUMNS.items() if column.header}
# Known only once rows have met each other, so nothing can be filtered by them.
RELATIVE = {"acc_rank", "lat_rank", "speedup", "place"}
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
}


def in_order(arena: Arena, sort: str) -> list[Entry]:
    """Sort an arena's entries by a column, the best first; what has no value comes last."""
    column = COLUMNS[sort.removeprefix("-")]
    reverse = column.highest != sort.startswith("-")
    known = [e for e in arena.entries if column.value(arena, e) is not None]
    rest = [e for e in arena.entries if column.value(arena, e) is None]
    return sorted(known, key=lambda e: column.value(arena, e), reverse=reverse) + rest


def check_sort(sort: str) -> None:
    """See that there is such a column.

    Raises:
        UserError: If not.
    """
    name = sort.removeprefix("-")
    if name not in COLUMNS:
        raise unknown_name(f"sort={sort}", "column", name, COLUMNS)


def make_filter(conditions: Sequence[str]) -> Callable[[Conditions, Entry], bool]:
    """Make one test out of conditions such as ``variant=fp32`` or ``test_acc>=80``.

    Raises:
        UserError: If one can't be read, names no column, or compares a text with a number.
    """
    tests: list[Callable[[Arena, Entry], bool]] = []
    for condition in conditions:
        match = re.fullmatch(r"\s*(-?\w+)\s*(>=|<=|!=|=)\s*(.*?)\s*", condition)
        if match is None:
            raise bad_value("filter", condition, "column=value, or !=, >=, <= in place of =")
        name, sign, text = match.groups()
        names = COLUMNS.keys() - RELATIVE
        if name not in names:
            raise unknown_name(f"filter={condition}", "column", name, names)
        tests.append(_test(condition, name, sign, text))

    def keep(conditions: Conditions, entry: Entry) -> bool:
        arena = Arena(conditions.name, conditions, (entry,), entry)
        return all(test(arena, entry) for test in tests)

    return keep


def _test(condition: str, name: str, sign: str, text: str) -> Callable[[Arena, Entry], bool]:
    column, holds = COLUMNS[name], OPERATORS[sign]
    if not column.numeric:
        if sign not in ("=", "!="):
            raise bad_value("filter", condition, f"{name}=... or {name}!=...: it is a text")
        return lambda arena, entry: holds(str(column.value(arena, entry)).lower(), text.lower())
    try:
        number = float(text)
    except ValueError as error:
        raise bad_value("filter", condition, f"{name}{sign} and a number") from error

    def test(arena: Arena, entry: Entry) -> bool:
        value = column.value(arena, entry)
        return value is not None and holds(value, number)

    return test


# --- What is drawn --------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """What is said and drawn of one arena."""

    arena: Arena
    entries: list[Entry]
    sentences: list[str]
    changes: list[str]
    scatter: Figure
    distributions: Figure

    @property
    def figures(self) -> dict[str, Figure]:
        """The plots by the names of their files."""
        slug = self.arena.conditions.slug
        return {f"accuracy-latency-{slug}": self.scatter, f"latency-{slug}": self.distributions}

    @classmethod
    def of(cls, arena: Arena, sort: str, min_acc: float) -> Section:
        return cls(
            arena=arena,
            entries=in_order(arena, sort),
            sentences=verdict(arena, min_acc),
            changes=list(_change_lines(arena)),
            scatter=plots.accuracy_latency(arena, min_acc),
            distributions=plots.latency_distributions(arena),
        )


def _change_lines(arena: Arena) -> Iterator[str]:
    base = arena.baseline
    for entry in arena.entries:
        if entry is base:
            continue
        found = changes(base, entry)
        mark = f" [{len(found)} changes at once]" if len(found) > 1 else ""
        what = "; ".join(found) or "no change of the configuration"
        yield f"{entry.name}{mark}: {what}. {effect(base, entry).capitalize()}."


def read_curve(folder: Path, label: str) -> plots.Curve | None:
    """Read a run's training curve out of its TensorBoard files; None if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (folder / TENSORBOARD).is_dir():
        return None
    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    events = EventAccumulator(
        str(folder / TENSORBOARD), size_guidance={"scalars": 0, "images": 1, "histograms": 1}
    )
    try:
        events.Reload()
    except Exception as error:  # whatever TensorBoard makes of a damaged file
        log.warning("%s: no curve (%s)", folder / TENSORBOARD, error)
        return None
    tags = events.Tags()["scalars"]

    def values(tag: str, factor: float = 1.0) -> list[float]:
        return [factor * point.value for point in events.Scalars(tag)] if tag in tags else []

    curve = plots.Curve(label, values("train/loss"), values("val/acc", 100))
    return curve if curve.train_loss else None


def detailed(comparison: Comparison, query: str | None, min_acc: float) -> Entry | None:
    """Find the entry whose confusions are drawn: the one asked for, else the one to take.

    Raises:
        UserError: If the one asked for is not there or its confusions were not recorded.
    """
    entries = [entry for arena in comparison.arenas for entry in arena.entries]
    if query is not None:
        found = [entry for entry in entries if entry.answers_to(query)]
        if not found:
            raise unknown_name(f"detail={query}", "row", query, {entry.label for entry in entries})
        known = [entry for entry in found if entry.confusion is not None]
        if not known:
            raise UserError(f"detail={query}: its confusion matrix was not recorded; measure again")
        return min(known, key=lambda entry: entry.variant != "fp32")
    choices = [
        arena.choice(min_acc) or max(arena.entries, key=lambda entry: entry.accuracy.mean)
        for arena in comparison.arenas
    ]
    return next((one for one in [*choices, *entries] if one.confusion is not None), None)


# The names of all plots' files.
FIGURES = ("accuracy-latency-*", "latency-*", "curves", "classes", "confusion")


# --- Writing --------------------------------------------------------------------------------


def table(section: Section) -> str:
    """Draw an arena's table in Markdown; ``~`` marks means that had not settled."""
    lines = [tuple(str(column.header) for column in SHOWN.values())]
    lines += [
        tuple(column.shown(section.arena, entry).replace("|", "/") for column in SHOWN.values())
        for entry in section.entries
    ]
    return draw_table(lines, [i for i, column in enumerate(SHOWN.values()) if column.numeric])


def table_csv(sections: Sequence[Section]) -> str:
    """Write every column of every entry as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section in sections:
        for entry in section.entries:
            values = [column.value(section.arena, entry) for column in COLUMNS.values()]
            writer.writerow([round(v, 6) if isinstance(v, float) else v for v in values])
    return text.getvalue()


def markdown(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write everything that can be said without plots."""
    parts = []
    for section in sections:
        parts += [f"## {section.arena.name}", "", *section.sentences[:2], ""]
        parts += [table(section)]
        if section.sentences[2:]:
            parts += ["Not needed:", "", *(f"- {line}" for line in section.sentences[2:]), ""]
        if section.changes:
            parts += [f"Against {section.arena.baseline.name}:", ""]
            parts += [*(f"- {line}" for line in section.changes), ""]
    if comparison.apart:
        parts += ["## Not ranked", "", *(f"- {line}" for line in apart(comparison)), ""]
    return "\n".join(parts)


def apart(comparison: Comparison) -> list[str]:
    """Name each row that is not ranked, and say why."""
    lines = []
    for row in comparison.apart:
        measured = row["variant"] is not None
        where = f" {row['variant']} on {row['device']}" if measured else ""
        status = row["status"] if measured or row["status"] == "failed" else "not measured"
        reason = f": {row['error']}" if row["error"] else ""
        lines.append(f"{row['id']}{where} is {status}{reason}")
    return lines


def interactive(section: Section, min_acc: float, number: int) -> Markup:
    """Draw accuracy against latency so that points can be hovered and zoomed."""
    arena = section.arena
    networks = [entry.network for entry in arena.entries]
    figure = go.Figure()
    front = arena.front
    figure.add_scatter(
        x=[entry.mean_ms.mean for entry in front],
        y=[entry.accuracy.mean for entry in front],
        mode="lines",
        line={"dash": "dash", "width": 1, "shape": "hv", "color": plots.GRID},
        hoverinfo="skip",
        name="front",
    )
    for network in dict.fromkeys(networks):
        entries = [entry for entry in section.entries if entry.network == network]
        figure.add_scatter(
            x=[entry.mean_ms.mean for entry in entries],
            y=[entry.accuracy.mean for entry in entries],
            error_x=_errors([entry.mean_ms for entry in entries]),
            error_y=_errors([entry.accuracy for entry in entries]),
            mode="markers",
            marker={"size": 11, "color": plots.color_of(network, networks)},
            name=str(escape(network)),
            text=[_hover(arena, entry) for entry in entries],
            hovertemplate="%{text}<extra></extra>",
        )
    values = [entry.mean_ms.mean for entry in arena.entries]
    figure.update_layout(
        xaxis={
            "title": "mean latency at batch 1 (ms)",
            "type": "log" if max(values) > 5 * min(values) else "linear",
            "tickvals": _ticks(min(values), max(values)),
            "gridcolor": "rgba(140,149,159,0.3)",
            "zeroline": False,
        },
        yaxis={
            "title": "test accuracy (%)",
            "gridcolor": "rgba(140,149,159,0.3)",
            "zeroline": False,
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        height=460,
    )
    low = min(e.accuracy.mean - e.accuracy.reach[0] for e in arena.entries)
    high = max(e.accuracy.mean + e.accuracy.reach[1] for e in arena.entries)
    if low < min_acc < high:
        figure.add_hline(y=min_acc, line={"dash": "dot", "width": 1, "color": plots.GRID})
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{number}",
        config={"displayModeBar": False, "responsive": True},
    )
    return Markup(drawn)  # plotly escapes what it embeds


def _ticks(low: float, high: float) -> list[float] | None:
    """Choose 1, 2, 5, 10, ... for a logarithmic axis; None leaves it to the library."""
    if high <= 5 * low:
        return None
    return [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]


def _errors(estimates: Sequence[Any]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.reach[1] for one in estimates],
        "arrayminus": [one.reach[0] for one in estimates],
        "thickness": 1,
    }


def _hover(arena: Arena, entry: Entry) -> str:
    lines = [f"<b>{escape(entry.name)}</b>"]
    lines += [
        f"{column.header}: {escape(column.shown(arena, entry))}"
        for name, column in SHOWN.items()
        if name not in ("id", "variant")
    ]
    return "<br>".join(lines)


def page(
    sections: Sequence[Section],
    comparison: Comparison,
    details: dict[str, tuple[str, Figure]],
    min_acc: float,
) -> str:
    """Make the self-contained page.

    Args:
        sections: One for each arena.
        comparison: For the rows that are not ranked.
        details: File names of further figures, each with its heading and drawing.
        min_acc: In percent.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_lightning", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def drawn(figure: Figure) -> Markup:
        return Markup(plots.svg(figure, inline=True))  # matplotlib escapes text

    return environment.get_template("report.html.jinja").render(
        sections=[
            {
                "name": section.arena.name,
                "sentences": section.sentences,
                "changes": section.changes,
                "baseline": section.arena.baseline.name,
                "rows": [
                    {
                        "front": entry not in section.arena.dominators,
                        "chosen": entry is section.arena.choice(min_acc),
                        "cells": [
                            (column.shown(section.arena, entry), _sortable(column, section, entry))
                            for column in SHOWN.values()
                        ],
                    }
                    for entry in section.entries
                ],
                "plot": interactive(section, min_acc, number),
                "distributions": drawn(section.distributions),
            }
            for number, section in enumerate(sections)
        ],
        columns=[(column.header, column.numeric) for column in SHOWN.values()],
        details=[(heading, drawn(figure)) for heading, figure in details.values()],
        apart=apart(comparison),
        code=provenance.code()["commit"],
        plotly=Markup(get_plotlyjs()),
    )


def _sortable(column: Column, section: Section, entry: Entry) -> str:
    value = column.value(section.arena, entry)
    return "" if value is None else str(value)


# --- The command ----------------------------------------------------------------------------


def read(outputs: Sequence[Path]) -> list[Recorded]:
    """Read every run below several folders.

    Raises:
        UserError: If one is no outputs folder, or there is no run in any.
    """
    recorded = []
    for folder in outputs:
        if not (folder / RUNS).is_dir():
            raise UserError(f"outputs={folder}: there is no folder {RUNS} in it; train a run first")
        recorded += [Recorded.read(path) for path in sorted((folder / RUNS).iterdir())]
    if not any(one.lines or one.damaged for one in recorded):
        raise UserError(f"outputs={','.join(map(str, outputs))}: no finished run in it")
    return recorded


@command(
    "report",
    texts=("to", "baseline", "detail", "sort"),
    lists=("outputs", "filter"),
    sweeps=False,
)
def main(cfg: DictConfig) -> None:
    """Write the report and print its tables and verdicts."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    configuration.check(config)
    min_acc, sort = config["min_acc"], config["sort"]
    check_sort(sort)
    keep = make_filter(config["filter"])
    outputs = [Path(path) for path in config["outputs"]]
    if not outputs:
        raise bad_value("outputs", "[]", "at least one folder")
    recorded = read(outputs)
    damaged = [line for one in recorded for line in one.damaged]
    for line in damaged:
        log.warning("%s", line)
    comparison = compare(recorded, config["baseline"], keep)
    if not any(one.lines for one in recorded):
        raise UserError(f"outputs={','.join(map(str, outputs))}: nothing that can be read")
    if not comparison.arenas and config["filter"]:
        raise bad_value("filter", ",".join(config["filter"]), "what at least one row fulfils")
    sections = [Section.of(arena, sort, min_acc) for arena in comparison.arenas]
    details = _details(comparison, recorded, config["detail"], min_acc)
    to = Path(config["to"]) if config["to"] else outputs[0] / "report"
    text = markdown(sections, comparison)
    _write(to, sections, comparison, details, min_acc, text)
    log.info("\n%s", text)
    left_out = f"; {len(damaged)} damaged, left out" if damaged else ""
    log.info("%s%s", relative((to / "index.html").absolute()), left_out)


def _details(
    comparison: Comparison, recorded: Sequence[Recorded], query: str | None, min_acc: float
) -> dict[str, tuple[str, Figure]]:
    """Draw what belongs to runs rather than to a ranking."""
    details = {}
    shown = {
        run.name: entry.label
        if len(entry.runs) == 1
        else f"{entry.label}, seed {run.config['seed']}"
        for arena in comparison.arenas
        for entry in arena.entries
        for run in entry.runs
    }
    folders = {one.run.name: one.folder for one in recorded if one.run is not None}
    curves = [read_curve(folders[name], label) for name, label in shown.items()]
    known = [curve for curve in curves if curve is not None]
    if known:
        details["curves"] = "Training", plots.training_curves(known)
    entry = detailed(comparison, query, min_acc)
    if entry is not None and entry.confusion is not None:
        classes = entry.classes
        confusions = {entry.name: entry.confusion}
        arena = next(arena for arena in comparison.arenas if entry in arena.entries)
        if arena.baseline is not entry and arena.baseline.confusion is not None:
            confusions[arena.baseline.name] = arena.baseline.confusion
        details["classes"] = "Accuracy per class", plots.class_accuracies(confusions, classes)
        details["confusion"] = (
            f"What {entry.name} confuses",
            plots.confusion_matrix(entry.confusion, classes),
        )
    return details


def _write(
    to: Path,
    sections: Sequence[Section],
    comparison: Comparison,
    details: dict[str, tuple[str, Figure]],
    min_acc: float,
    text: str,
) -> None:
    for pattern in FIGURES:  # of rows that are no longer there
        for earlier in [*to.glob(f"{pattern}.png"), *to.glob(f"{pattern}.svg")]:
            earlier.unlink()
    write_atomically(to / "report.md", text)
    write_atomically(to / "table.csv", table_csv(sections))
    figures = {name: figure for name, (_, figure) in details.items()}
    for section in sections:
        figures |= section.figures
    for name, figure in figures.items():
        write_atomically(to / f"{name}.png", plots.png(figure))
        write_atomically(to / f"{name}.svg", plots.svg(figure))
    write_atomically(to / "index.html", page(sections, comparison, details, min_acc))


if __name__ == "__main__":
    main()

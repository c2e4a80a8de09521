"""Compare all runs: which network to take, and why.

    python -m cifar_lightning.report min_acc=85 baseline=B1

reads the runs, their measurements and their training curves, and writes tables, plots and a page
that needs no network. It trains and measures nothing.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence
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
from cifar_lightning import escaping, plots, provenance
from cifar_lightning.columns import COLUMNS, SHOWN, Column, check_sort, in_order, make_filter
from cifar_lightning.command import command
from cifar_lightning.comparison import (
    Arena,
    Comparison,
    Entry,
    Estimate,
    Verdict,
    changes,
    compare,
    effect,
    entries_of,
    plainest,
    verdict,
)
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.files import check_inside, is_disk_full, write_all
from cifar_lightning.finished import relative
from cifar_lightning.folders import TENSORBOARD
from cifar_lightning.results import RUNS, Recorded, csv_value, draw_table

log = logging.getLogger(__name__)

LOG_TICKS = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]
# What the plots of arenas are called, strictly enough to spare other people's files.
OF_ARENAS = re.compile(r"(accuracy-)?latency-.+-protocol(-version-\d+)?-[0-9a-f]{8}\.(png|svg)")

# --- What is drawn --------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """What is said and drawn of one arena."""

    arena: Arena
    entries: list[Entry]
    verdict: Verdict
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
            verdict=verdict(arena, min_acc),
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
        UserError: If the one asked for is not there, is several, or its confusions were not
            recorded.
    """
    entries = [entry for arena in comparison.arenas for entry in arena.entries]
    if query is not None:
        found = entries_of(entries, query, "detail")
        known = [entry for entry in found if entry.confusion is not None]
        if not known:
            raise UserError(f"detail={query}: its confusion matrix was not recorded; measure again")
        return plainest(known)
    choices = [
        arena.choice(min_acc) or max(arena.entries, key=lambda entry: entry.accuracy.mean)
        for arena in comparison.arenas
    ]
    return next((one for one in [*choices, *entries] if one.confusion is not None), None)


# --- Writing --------------------------------------------------------------------------------


def table(section: Section) -> str:
    """Draw an arena's table in Markdown; ``~`` marks means that had not settled."""
    lines = [tuple(str(column.header) for column in SHOWN.values())]
    lines += [
        tuple(column.shown(section.arena, entry) for column in SHOWN.values())
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
            writer.writerow([csv_value(value) for value in values])
    return text.getvalue()


def markdown(sections: Sequence[Section], comparison: Comparison) -> str:
    """Write everything that can be said without plots."""
    parts = []
    for section in sections:
        told = section.verdict
        parts += [f"## {escaping.markdown(section.arena.name)}", ""]
        parts += [escaping.markdown(told.advice), escaping.markdown(told.front)]
        parts += ["", table(section)]
        if told.needless:
            parts += ["Why not the others:", "", *_listed(told.needless), ""]
        if section.changes:
            parts += [escaping.markdown(f"Against {section.arena.baseline.name}:"), ""]
            parts += [*_listed(section.changes), ""]
    if comparison.apart:
        parts += ["## Not ranked", "", *_listed(apart(comparison)), ""]
    return "\n".join(parts)


def _listed(lines: Sequence[str]) -> list[str]:
    return [f"- {escaping.markdown(line)}" for line in lines]


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
            name=str(escape(escaping.visible(network))),
            text=[_hover(arena, entry) for entry in entries],
            hovertemplate="%{text}<extra></extra>",
        )
    wide = plots.wide(arena)
    figure.update_layout(
        xaxis={
            "title": "mean latency at batch 1 (ms)",
            "type": "log" if wide else "linear",
            "tickvals": LOG_TICKS if wide else None,
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


def _errors(estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.reach[1] for one in estimates],
        "arrayminus": [one.reach[0] for one in estimates],
        "thickness": 1,
    }


def _hover(arena: Arena, entry: Entry) -> str:
    lines = [f"<b>{escape(escaping.visible(entry.name))}</b>"]
    lines += [
        f"{column.header}: {escape(escaping.visible(column.shown(arena, entry)))}"
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
        finalize=lambda value: (
            escaping.visible(value)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
    )

    def drawn(figure: Figure) -> Markup:
        return Markup(plots.svg(figure, inline=True))  # matplotlib escapes text

    return environment.get_template("report.html.jinja").render(
        sections=[
            {
                "name": section.arena.name,
                "verdict": section.verdict,
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
        code=provenance.code().commit,
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
        recorded += Recorded.read_all(folder)
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
    check_inside(outputs[0], to)
    text = markdown(sections, comparison)
    try:
        _write(to, sections, comparison, details, min_acc, text)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"to={to}: {error.strerror}: {error.filename}") from error
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
    """Replace the files of a report, all of them together; others in the folder stay."""
    files: dict[str, str | bytes] = {"report.md": text, "table.csv": table_csv(sections)}
    figures = {name: figure for name, (_, figure) in details.items()}
    for section in sections:
        figures |= section.figures
    for name, figure in figures.items():
        files |= {f"{name}.png": plots.png(figure), f"{name}.svg": plots.svg(figure)}
    write_all(to, files | {"index.html": page(sections, comparison, details, min_acc)})
    for earlier in to.glob("*latency-*"):
        # Perhaps of rows that are no longer there.
        if OF_ARENAS.fullmatch(earlier.name) and earlier.name not in files:
            earlier.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
